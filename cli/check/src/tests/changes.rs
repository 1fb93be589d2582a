//! Changes of the healthy cluster.

use serde_json::{Value, json};
use weir_injector::selection::InjectorRevision;
use weir_injector::selection::configurations::WebhookOptions;

use super::fixture::{Authority, Fixture};

/// Returns the arguments of the webhook.
pub(super) fn webhook_args(fixture: &mut Fixture) -> &mut Vec<Value> {
    fixture.deployment()["spec"]["template"]["spec"]["containers"][0]["args"].as_array_mut().unwrap()
}

pub(super) fn webhook_entry<'a>(fixture: &'a mut Fixture, prefix: &str) -> &'a mut Value {
    fixture.entries().find(|entry| entry["name"].as_str().unwrap().starts_with(prefix)).unwrap()
}

/// Replaces a text in the settings document `values`.
pub(super) fn change_values(fixture: &mut Fixture, from: &str, to: &str) {
    let values = &mut fixture.get("configmaps", "weir-system", "weir-webhook")["data"]["values"];
    let text = values.as_str().unwrap();
    assert!(text.contains(from), "{text}");
    *values = text.replace(from, to).into();
}

pub(super) fn make_unready(fixture: &mut Fixture, namespace: &str, pod: &str) {
    fixture.get("pods", namespace, pod)["status"]["conditions"][0]["status"] = "False".into();
}

pub(super) fn make_crash(fixture: &mut Fixture, namespace: &str, pod: &str) {
    make_unready(fixture, namespace, pod);
    let last = json!({"terminated": {"reason": "Error", "exitCode": 64}});
    let state =
        json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 5m0s restarting failed container"}});
    fixture.get("pods", namespace, pod)["status"]["containerStatuses"] =
        json!([{"name": "main", "restartCount": 17, "state": state, "lastState": last}]);
}

/// Mounts a Secret with a certificate instead of using the built-in CA.
pub(super) fn mount_certificate(fixture: &mut Fixture, authority: &Authority, name: &str, until: (i32, u8, u8)) {
    webhook_args(fixture).retain(|arg| !arg.as_str().unwrap().starts_with("--ca-secret"));
    let volumes = fixture.deployment()["spec"]["template"]["spec"]["volumes"].as_array_mut().unwrap();
    volumes.push(json!({"name": "certs", "secret": {"secretName": "weir-webhook-certs"}}));
    fixture.add(json!({
        "kind": "Secret", "metadata": {"namespace": "weir-system", "name": "weir-webhook-certs"},
        "data": {"tls.crt": authority.leaf(name, until), "tls.key": "c2VjcmV0"},
    }));
    for entry in fixture.entries() {
        entry["clientConfig"]["caBundle"] = authority.encoded().into();
    }
}

/// Adds the webhook configuration of Istio's own injector.
pub(super) fn add_istio_injector(fixture: &mut Fixture, revision: &str) {
    let injector = InjectorRevision { revision: revision.to_owned(), ..InjectorRevision::default() };
    let entries = injector.webhook_entries().into_iter().map(|entry| {
        json!({
            "name": entry.name, "namespaceSelector": entry.namespace_selector, "objectSelector": entry.object_selector,
            "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}],
            "failurePolicy": "Fail", "clientConfig": {"service": {"name": "istiod", "namespace": "istio-system", "path": "/inject"}},
        })
    });
    let entries: Vec<Value> = entries.collect();
    let metadata = json!({"name": "istio-sidecar-injector", "labels": {"istio.io/rev": revision}});
    fixture.add(json!({"kind": "MutatingWebhookConfiguration", "metadata": metadata, "webhooks": entries}));
}

pub(super) fn add_tag(fixture: &mut Fixture, tag: &str, revision: &str) {
    let injector =
        InjectorRevision { revision: revision.to_owned(), tags: vec![tag.to_owned()], ..InjectorRevision::default() };
    let bundle = fixture.entries().next().unwrap()["clientConfig"]["caBundle"].as_str().unwrap().to_owned();
    let options = WebhookOptions { ca_bundle: Some(bundle), ..WebhookOptions::default() };
    let configuration = injector.webhook_configurations(&options).into_iter().next_back().unwrap();
    fixture.add(configuration);
}

/// Returns an event `FailedCreate` that is `age` seconds old.
pub(super) fn failed_create(kind: &str, namespace: &str, name: &str, message: &str, age: i64) -> Value {
    let now = k8s_openapi::jiff::Timestamp::now() - k8s_openapi::jiff::SignedDuration::from_secs(age);
    json!({
        "kind": "Event", "metadata": {"namespace": namespace, "name": format!("{name}.1")}, "reason": "FailedCreate",
        "involvedObject": {"kind": kind, "namespace": namespace, "name": name}, "message": message,
        "lastTimestamp": now.to_string(),
    })
}

pub(super) const WEBHOOK_TIMEOUT: &str = "Error creating: Internal error occurred: failed calling webhook \"namespace.sidecar-injector.weir.dev\": failed to call webhook: Post \"https://weir-webhook.weir-system.svc:443/inject?timeout=5s\": context deadline exceeded";
