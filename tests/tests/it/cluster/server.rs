//! The fake API server calls webhooks as the real one does: these tests run with both.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use weir_apiserver::fake_webhook::{FakeReply, FakeWebhook};
use weir_apiserver::tls::{Authority, Pair};
use weir_tests::wait_until;

use super::api_server::{Cluster, Response, on_both};

on_both!(
    selected_webhooks_get_complete_reviews,
    webhooks_are_reinvoked_after_later_changes,
    client_is_told_why_a_webhook_call_failed,
    invalid_response_is_a_failure_and_429_is_retried,
    dry_run_stores_nothing_and_warnings_are_headers,
    invalid_configuration_is_rejected_with_all_errors,
);

const PODS: &str = "/api/v1/namespaces/shop/pods";
pub(crate) const CONFIGURATIONS: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";

fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "app", "image": "a"}]},
    })
}

/// Returns a webhook entry for the Service `NAME` in `hooks`, called for pods of the namespace `shop`.
pub(crate) fn entry(name: &str, bundle: &str, more: &Value) -> Value {
    let mut entry = json!({
        "name": format!("{name}.test.dev"), "sideEffects": "None", "admissionReviewVersions": ["v1"], "timeoutSeconds": 5,
        "clientConfig": {"caBundle": STANDARD.encode(bundle), "service": {"name": name, "namespace": "hooks", "path": "/mutate"}},
        "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}],
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "shop"}},
    });
    for (key, value) in more.as_object().unwrap() {
        entry[key] = value.clone();
    }
    entry
}

pub(crate) fn configuration(name: &str, entries: &[Value]) -> Value {
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": name}, "webhooks": entries,
    })
}

/// A cluster with the namespace `shop`, and a certificate for the Services `one`, `two` and `one-0` to `one-7` in `hooks`.
struct Fixture<'a> {
    cluster: &'a Cluster,
    authority: Authority,
    pair: Pair,
}

impl<'a> Fixture<'a> {
    fn new(cluster: &'a Cluster) -> Self {
        cluster.create_namespace("shop", &json!({"mesh": "on"}));
        cluster.create_namespace("hooks", &json!({}));
        let authority = Authority::new("hooks").unwrap();
        let numbered: Vec<String> = (0..8).map(|number| format!("one-{number}.hooks.svc")).collect();
        let mut names = vec!["one.hooks.svc", "two.hooks.svc"];
        names.extend(numbered.iter().map(String::as_str));
        let pair = authority.issue("hooks", &names).unwrap();
        Self { cluster, authority, pair }
    }

    fn hook(&self, reply: impl Fn(&Value) -> FakeReply + Send + Sync + 'static) -> FakeWebhook {
        FakeWebhook::start(self.cluster.webhook_address(), &self.pair, reply).unwrap()
    }

    /// Creates a Service with these replicas.
    fn create_service(&self, name: &str, replicas: &[SocketAddr]) {
        let service = json!({"metadata": {"name": name}, "spec": {"ports": [{"name": "https", "port": 443}]}});
        self.cluster.post("/api/v1/namespaces/hooks/services", &service).expect_ok();
        self.cluster.set_endpoints("hooks", name, 443, replicas);
    }

    fn configure(&self, name: &str, entries: &[Value]) {
        self.cluster.post(CONFIGURATIONS, &configuration(name, entries)).expect_ok();
    }

    /// Creates a pod with a dry run until the response is as expected: the server notices configurations and endpoints a little later.
    #[track_caller]
    fn wait_for_response(&self, what: &str, pod: &Value, expected: impl Fn(&Response) -> bool) -> Response {
        wait_until(what, || {
            let response = self.cluster.post(&format!("{PODS}?dryRun=All"), pod);
            if expected(&response) { Ok(response) } else { Err(format!("{} {}", response.code, response.body)) }
        })
    }
}

/// Returns a webhook that adds a container of that name, unless it exists.
fn add_container(name: &'static str) -> impl Fn(&Value) -> FakeReply + Send + Sync + 'static {
    move |review| {
        let containers = review["request"]["object"]["spec"]["containers"].as_array().unwrap();
        if containers.iter().any(|container| container["name"] == name) {
            return FakeReply::allow();
        }
        FakeReply::patch(&json!([{"op": "add", "path": "/spec/containers/-", "value": {"name": name, "image": "x"}}]))
    }
}

fn names(pod: &Value) -> Vec<&str> {
    let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
    containers.map(|container| container["name"].as_str().unwrap()).collect()
}

fn selected_webhooks_get_complete_reviews(cluster: &Cluster) {
    let fixture = Fixture::new(cluster);
    let hook = fixture.hook(add_container("side"));
    fixture.create_service("one", &[hook.addr()]);
    let plain =
        json!([{"name": "plain", "expression": "!has(object.spec.hostNetwork) || object.spec.hostNetwork == false"}]);
    let selected = json!({"namespaceSelector": {"matchLabels": {"mesh": "on"}}, "matchConditions": plain});
    fixture.configure("a", &[entry("one", &fixture.authority.cert(), &selected)]);
    fixture
        .wait_for_response("the webhook is called", &pod("first"), |response| names(&response.body) == ["app", "side"]);

    let before = hook.reviews().len();
    let stored = cluster.post(PODS, &pod("web")).expect_ok();
    assert_eq!(cluster.get(&format!("{PODS}/web")).expect_ok()["spec"], stored["spec"]);
    let token = "/var/run/secrets/kubernetes.io/serviceaccount";
    let mounted = |container: &Value| container["volumeMounts"][0]["mountPath"] == token;
    assert!(
        stored["spec"]["containers"].as_array().unwrap().iter().all(mounted),
        "also in the added container: {stored}"
    );

    let request = &hook.reviews()[before]["request"];
    let mut keys: Vec<&str> = request.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    let expected = [
        "dryRun",
        "kind",
        "name",
        "namespace",
        "object",
        "oldObject",
        "operation",
        "options",
        "requestKind",
        "requestResource",
        "resource",
        "uid",
        "userInfo",
    ];
    assert_eq!(keys, expected);
    assert_eq!(
        (&request["operation"], &request["userInfo"]["username"]),
        (&json!("CREATE"), &json!("kubernetes-admin"))
    );
    assert_eq!(request["options"]["kind"], "CreateOptions");

    let mut on_host = pod("host");
    on_host["spec"]["hostNetwork"] = true.into();
    let calls = hook.reviews().len();
    assert_eq!(names(&cluster.post(PODS, &on_host).expect_ok()), ["app"], "not selected by the condition");
    cluster.create_namespace("other", &json!({}));
    assert_eq!(
        names(&cluster.post("/api/v1/namespaces/other/pods", &pod("web")).expect_ok()),
        ["app"],
        "not selected by the selector"
    );
    assert_eq!(hook.reviews().len(), calls);
    let mut generated = pod("");
    generated["metadata"] = json!({"generateName": "web-"});
    let made = cluster.post(PODS, &generated).expect_ok();
    assert!(made["metadata"]["name"].as_str().unwrap().len() > 4, "{made}");
    assert_eq!(hook.reviews().last().unwrap()["request"].get("name"), None);
    let nowhere = cluster.post("/api/v1/namespaces/nowhere/pods", &pod("web"));
    assert_eq!((nowhere.code, nowhere.message()), (404, "namespaces \"nowhere\" not found"));
    let mut stranger = pod("stranger");
    stranger["spec"]["serviceAccountName"] = "nobody".into();
    let refused = cluster.post(PODS, &stranger);
    let message = "pods \"stranger\" is forbidden: error looking up service account shop/nobody: serviceaccount \"nobody\" not found";
    assert_eq!((refused.code, refused.message()), (403, message));
}

fn webhooks_are_reinvoked_after_later_changes(cluster: &Cluster) {
    let fixture = Fixture::new(cluster);
    let (first, second) = (fixture.hook(add_container("one")), fixture.hook(add_container("two")));
    fixture.create_service("one", &[first.addr()]);
    fixture.create_service("two", &[second.addr()]);
    let if_needed = json!({"reinvocationPolicy": "IfNeeded"});
    fixture.configure("b", &[entry("two", &fixture.authority.cert(), &if_needed)]);
    fixture.configure("a", &[entry("one", &fixture.authority.cert(), &if_needed)]);
    fixture.wait_for_response("both are called, in order of their names", &pod("first"), |response| {
        names(&response.body) == ["app", "one", "two"]
    });

    let mut quiet = pod("web");
    quiet["spec"]["automountServiceAccountToken"] = false.into();
    let calls = |pod: &Value| {
        let before = (first.reviews().len(), second.reviews().len());
        assert_eq!(names(&cluster.post(PODS, pod).expect_ok()), ["app", "one", "two"]);
        (first.reviews().len() - before.0, second.reviews().len() - before.1)
    };
    assert_eq!(calls(&quiet), (2, 1), "the first is reinvoked for the change of the second");
    assert_eq!(
        calls(&pod("other")),
        (2, 2),
        "the server mounts tokens into the added containers, and both are reinvoked"
    );
    if let Some(server) = cluster.fake_server() {
        let audit = server.audit().pop().unwrap().annotations;
        let rounds: Vec<&str> = audit.keys().map(|key| key.rsplit('/').next().unwrap()).collect();
        assert_eq!(rounds, ["round_0_index_0", "round_1_index_0"]);
    }
}

/// Name, replicas, CA bundle, further fields of the entry; expected status and message.
type Case = (&'static str, Vec<SocketAddr>, String, Value, u16, String);

fn client_is_told_why_a_webhook_call_failed(cluster: &Cluster) {
    let fixture = Fixture::new(cluster);
    let denying = fixture
        .hook(|_| FakeReply::Response(json!({"allowed": false, "status": {"code": 403, "message": "no, and no"}})));
    let (silent, broken) = (fixture.hook(|_| FakeReply::Silence), fixture.hook(|_| FakeReply::Status(500, None)));
    let fine = fixture.hook(|_| FakeReply::allow());
    let elsewhere = fixture.authority.issue("x", &["elsewhere.hooks.svc"]).unwrap();
    let misnamed = FakeWebhook::start(cluster.webhook_address(), &elsewhere, |_| FakeReply::allow()).unwrap();
    let gone = std::net::TcpListener::bind((cluster.webhook_address(), 0)).unwrap().local_addr().unwrap();
    let (ca, stranger) = (fixture.authority.cert(), Authority::new("strangers").unwrap().cert());
    let called = "Internal error occurred: failed calling webhook \"one.test.dev\": failed to call webhook: ";
    let unreached = |why: &str| format!("{called}Post \"https://one.hooks.svc:443/mutate?timeout=5s\": {why}");
    let verified = |why: &str| unreached(&format!("tls: failed to verify certificate: x509: certificate {why}"));
    let unknown = "signed by unknown authority";
    let denied = "admission webhook \"one.test.dev\" denied the request: no, and no".to_owned();
    let refused = unreached(&format!("dial tcp {gone}: connect: connection refused"));
    let late = unreached("context deadline exceeded").replace("=5s", "=1s");
    let misfit = "is valid for elsewhere.hooks.svc, not one.hooks.svc";
    let failed = "an error on the server (\"\") has prevented the request from succeeding";
    let cases: [Case; 8] = [
        ("denied", vec![denying.addr()], ca.clone(), json!({}), 403, denied),
        ("refused", vec![gone], ca.clone(), json!({}), 500, refused),
        ("no endpoint", vec![], ca.clone(), json!({}), 500, unreached("no endpoints available for service \"one\"")),
        ("unknown authority", vec![fine.addr()], stranger, json!({}), 500, verified(unknown)),
        ("no bundle", vec![fine.addr()], String::new(), json!({}), 500, verified(unknown)),
        ("another name", vec![misnamed.addr()], ca.clone(), json!({}), 500, verified(misfit)),
        ("silent", vec![silent.addr()], ca.clone(), json!({"timeoutSeconds": 1}), 500, late),
        ("broken", vec![broken.addr()], ca, json!({}), 500, format!("{called}{failed}")),
    ];
    for (number, (what, replicas, bundle, more, code, message)) in cases.into_iter().enumerate() {
        // A Service for each case: idle connections of the last case would be reused.
        let service = format!("one-{number}");
        fixture.create_service(&service, &replicas);
        let mut served = entry("one", &bundle, &more);
        served["clientConfig"]["service"]["name"] = service.as_str().into();
        let message = message.replace("one.hooks.svc", &format!("{service}.hooks.svc"));
        let message = message.replace("service \"one\"", &format!("service \"{service}\""));
        cluster.delete(&format!("{CONFIGURATIONS}/a"));
        fixture.configure("a", &[served.clone()]);
        fixture.wait_for_response(what, &pod("web"), |response| response.code == code && response.message() == message);
        served["failurePolicy"] = "Ignore".into();
        cluster.delete(&format!("{CONFIGURATIONS}/a"));
        fixture.configure("a", &[served]);
        let code = if what == "denied" { 403 } else { 201 };
        fixture
            .wait_for_response(&format!("{what}, failurePolicy Ignore"), &pod("web"), |response| response.code == code);
    }
    fixture.configure("b", &[entry("two", "", &json!({}))]);
    let absent =
        "failed to call webhook: Post \"https://two.hooks.svc:443/mutate?timeout=5s\": service \"two\" not found";
    fixture.wait_for_response("no Service", &pod("web"), |response| response.message().ends_with(absent));
}

fn invalid_response_is_a_failure_and_429_is_retried(cluster: &Cluster) {
    let fixture = Fixture::new(cluster);
    let other = fixture.hook(|_| FakeReply::Response(json!({"allowed": true, "uid": "other"})));
    fixture.create_service("one", &[other.addr()]);
    fixture.configure("a", &[entry("one", &fixture.authority.cert(), &json!({}))]);
    let invalid = "received invalid webhook response: expected response.uid=";
    fixture.wait_for_response("another uid", &pod("web"), |response| {
        response.code == 500 && response.message().contains(invalid)
    });
    cluster.delete(&format!("{CONFIGURATIONS}/a"));
    let count = AtomicUsize::new(0);
    let busy = fixture.hook(move |_| match count.fetch_add(1, Ordering::SeqCst) {
        0 => FakeReply::Status(429, Some(1)),
        _ => FakeReply::patch(&json!([{"op": "add", "path": "/metadata/labels/asked", "value": "twice"}])),
    });
    fixture.create_service("two", &[busy.addr()]);
    fixture.configure("b", &[entry("two", &fixture.authority.cert(), &json!({}))]);
    fixture.wait_for_response("the webhook is called again", &pod("web"), |response| {
        response.body["metadata"]["labels"]["asked"] == "twice"
    });
    assert_eq!(busy.reviews().len(), 2, "within one request of the client");
}

fn dry_run_stores_nothing_and_warnings_are_headers(cluster: &Cluster) {
    let fixture = Fixture::new(cluster);
    let warning = json!({"allowed": true, "warnings": ["say \"a\"", "and b"]});
    let hook = fixture.hook(move |_| FakeReply::Response(warning.clone()));
    fixture.create_service("one", &[hook.addr()]);
    fixture.configure("a", &[entry("one", &fixture.authority.cert(), &json!({}))]);
    let response = fixture.wait_for_response("warned", &pod("web"), |response| !response.warnings.is_empty());
    assert_eq!(
        (response.code, response.warnings),
        (201, vec!["299 - \"say \\\"a\\\"\"".to_owned(), "299 - \"and b\"".to_owned()])
    );
    assert_eq!(hook.reviews().last().unwrap()["request"]["dryRun"], true);
    assert_eq!(cluster.get(&format!("{PODS}/web")).code, 404);
}

fn invalid_configuration_is_rejected_with_all_errors(cluster: &Cluster) {
    let condition = json!([{"name": "c", "expression": "object.x.nonsense(1)"}]);
    let wrong = json!({"name": "short", "clientConfig": {}, "rules": [{"operations": ["CREATE"]}], "matchConditions": condition});
    let response = cluster.post(CONFIGURATIONS, &configuration("a", &[wrong]));
    assert_eq!((response.code, &response.body["reason"]), (422, &json!("Invalid")));
    for part in [
        "MutatingWebhookConfiguration.admissionregistration.k8s.io \"a\" is invalid: [",
        "webhooks[0].name: Invalid value: \"short\": should be a domain with at least three segments separated by dots",
        "webhooks[0].clientConfig: Required value: exactly one of url or service is required",
        "webhooks[0].sideEffects: Required value: must specify one of None, NoneOnDryRun",
        "webhooks[0].admissionReviewVersions: Required value: must specify one of v1, v1beta1",
        "webhooks[0].rules[0].apiGroups: Required value",
        "webhooks[0].matchConditions[0].expression: Invalid value: \"object.x.nonsense(1)\"",
    ] {
        assert!(response.message().contains(part), "{part} in {}", response.message());
    }
    // A manager of one field cannot recreate what an administrator has deleted.
    let one_field = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": "a"}, "webhooks": [{"name": "one.test.dev", "clientConfig": {"caBundle": ""}}],
    });
    assert_eq!(
        cluster.apply(&format!("{CONFIGURATIONS}/a"), "fieldManager=weir-webhook&force=true", &one_field).code,
        422
    );
    let mut of_old = one_field;
    of_old["metadata"]["uid"] = "7d7a5a5e-0000-4000-8000-000000000000".into();
    assert_eq!(
        cluster.apply(&format!("{CONFIGURATIONS}/a"), "fieldManager=weir-webhook&force=true", &of_old).code,
        409
    );
    assert_eq!(cluster.get(&format!("{CONFIGURATIONS}/a")).code, 404);
}
