//! The API server of the tests is worth as much as it is like the real one: everything here goes for both.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use weir_apiserver::hook::{Answer, Hook};
use weir_apiserver::tls::{Authority, Pair};

use super::cluster::{Cluster, Said, on_both, until};

on_both!(
    asks_the_webhooks_that_are_meant_with_everything_a_review_has,
    asks_again_those_who_want_it_when_a_later_one_changed_the_pod,
    failures_are_told_to_the_client,
    an_answer_that_is_none_is_a_failure_and_one_that_puts_off_is_not,
    a_dry_run_keeps_nothing_and_warnings_come_as_headers,
    a_configuration_that_is_wrong_is_refused_with_everything_that_is_wrong,
);

const PODS: &str = "/api/v1/namespaces/shop/pods";
pub(crate) const CONFIGURATIONS: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";

fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "app", "image": "a"}]},
    })
}

/// An entry for the Service `NAME.hooks`, for pods of the namespace `shop`.
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

/// A cluster with the namespace `shop`, and an authority with a certificate for the Services `one`, `two` and `one-0` to `one-7` in `hooks`.
struct Bench<'a> {
    cluster: &'a Cluster,
    authority: Authority,
    pair: Pair,
}

impl<'a> Bench<'a> {
    fn new(cluster: &'a Cluster) -> Self {
        cluster.namespace("shop", &json!({"mesh": "on"}));
        cluster.namespace("hooks", &json!({}));
        let authority = Authority::new("hooks").unwrap();
        let numbered: Vec<String> = (0..8).map(|number| format!("one-{number}.hooks.svc")).collect();
        let mut names = vec!["one.hooks.svc", "two.hooks.svc"];
        names.extend(numbered.iter().map(String::as_str));
        let pair = authority.issue("hooks", &names).unwrap();
        Self { cluster, authority, pair }
    }

    fn hook(&self, reply: impl Fn(&Value) -> Answer + Send + Sync + 'static) -> Hook {
        Hook::start(self.cluster.address(), &self.pair, reply).unwrap()
    }

    /// A Service with these replicas.
    fn serve(&self, name: &str, replicas: &[SocketAddr]) {
        let service = json!({"metadata": {"name": name}, "spec": {"ports": [{"name": "https", "port": 443}]}});
        self.cluster.post("/api/v1/namespaces/hooks/services", &service).good();
        self.cluster.route("hooks", name, 443, replicas);
    }

    fn configure(&self, name: &str, entries: &[Value]) {
        self.cluster.post(CONFIGURATIONS, &configuration(name, entries)).good();
    }

    /// Tries until the server, which learns of configurations and endpoints a little later, answers so.
    #[track_caller]
    fn creates(&self, what: &str, pod: &Value, expected: impl Fn(&Said) -> bool) -> Said {
        until(what, || {
            let said = self.cluster.post(&format!("{PODS}?dryRun=All"), pod);
            if expected(&said) { Ok(said) } else { Err(format!("{} {}", said.code, said.body)) }
        })
    }
}

/// Adds a container of that name, unless it is there.
fn adding(name: &'static str) -> impl Fn(&Value) -> Answer + Send + Sync + 'static {
    move |review| {
        let containers = review["request"]["object"]["spec"]["containers"].as_array().unwrap();
        if containers.iter().any(|container| container["name"] == name) {
            return Answer::allow();
        }
        Answer::patch(&json!([{"op": "add", "path": "/spec/containers/-", "value": {"name": name, "image": "x"}}]))
    }
}

fn names(pod: &Value) -> Vec<&str> {
    let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
    containers.map(|container| container["name"].as_str().unwrap()).collect()
}

fn asks_the_webhooks_that_are_meant_with_everything_a_review_has(cluster: &Cluster) {
    let bench = Bench::new(cluster);
    let hook = bench.hook(adding("side"));
    bench.serve("one", &[hook.addr()]);
    let plain =
        json!([{"name": "plain", "expression": "!has(object.spec.hostNetwork) || object.spec.hostNetwork == false"}]);
    let selected = json!({"namespaceSelector": {"matchLabels": {"mesh": "on"}}, "matchConditions": plain});
    bench.configure("a", &[entry("one", &bench.authority.cert(), &selected)]);
    bench.creates("the webhook is asked", &pod("first"), |said| names(&said.body) == ["app", "side"]);

    let before = hook.seen().len();
    let stored = cluster.post(PODS, &pod("web")).good();
    assert_eq!(cluster.get(&format!("{PODS}/web")).good()["spec"], stored["spec"]);
    let token = "/var/run/secrets/kubernetes.io/serviceaccount";
    let mounted = |container: &Value| container["volumeMounts"][0]["mountPath"] == token;
    assert!(
        stored["spec"]["containers"].as_array().unwrap().iter().all(mounted),
        "also in what the webhook added: {stored}"
    );

    let request = &hook.seen()[before]["request"];
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
    let asked = hook.seen().len();
    assert_eq!(names(&cluster.post(PODS, &on_host).good()), ["app"], "by the condition");
    cluster.namespace("other", &json!({}));
    assert_eq!(names(&cluster.post("/api/v1/namespaces/other/pods", &pod("web")).good()), ["app"], "by the selector");
    assert_eq!(hook.seen().len(), asked);
    let mut generated = pod("");
    generated["metadata"] = json!({"generateName": "web-"});
    let made = cluster.post(PODS, &generated).good();
    assert!(made["metadata"]["name"].as_str().unwrap().len() > 4, "{made}");
    assert_eq!(hook.seen().last().unwrap()["request"].get("name"), None);
    let nowhere = cluster.post("/api/v1/namespaces/nowhere/pods", &pod("web"));
    assert_eq!((nowhere.code, nowhere.message()), (404, "namespaces \"nowhere\" not found"));
    let mut stranger = pod("stranger");
    stranger["spec"]["serviceAccountName"] = "nobody".into();
    let refused = cluster.post(PODS, &stranger);
    let message = "pods \"stranger\" is forbidden: error looking up service account shop/nobody: serviceaccount \"nobody\" not found";
    assert_eq!((refused.code, refused.message()), (403, message));
}

fn asks_again_those_who_want_it_when_a_later_one_changed_the_pod(cluster: &Cluster) {
    let bench = Bench::new(cluster);
    let (first, second) = (bench.hook(adding("one")), bench.hook(adding("two")));
    bench.serve("one", &[first.addr()]);
    bench.serve("two", &[second.addr()]);
    let again = json!({"reinvocationPolicy": "IfNeeded"});
    bench.configure("b", &[entry("two", &bench.authority.cert(), &again)]);
    bench.configure("a", &[entry("one", &bench.authority.cert(), &again)]);
    bench.creates("both are asked, by name", &pod("first"), |said| names(&said.body) == ["app", "one", "two"]);

    let mut quiet = pod("web");
    quiet["spec"]["automountServiceAccountToken"] = false.into();
    let asked = |pod: &Value| {
        let before = (first.seen().len(), second.seen().len());
        assert_eq!(names(&cluster.post(PODS, pod).good()), ["app", "one", "two"]);
        (first.seen().len() - before.0, second.seen().len() - before.1)
    };
    assert_eq!(asked(&quiet), (2, 1), "the first sees what the second added");
    assert_eq!(asked(&pod("other")), (2, 2), "the server mounts tokens into what the webhooks added, and both see it");
    if let Some(server) = cluster.own() {
        let audit = server.audit().pop().unwrap().annotations;
        let rounds: Vec<&str> = audit.keys().map(|key| key.rsplit('/').next().unwrap()).collect();
        assert_eq!(rounds, ["round_0_index_0", "round_1_index_0"]);
    }
}

/// What a case is, the replicas, the bundle, more of the entry, and the status and the end of the message that come of it.
type Case = (&'static str, Vec<SocketAddr>, String, Value, u16, String);

fn failures_are_told_to_the_client(cluster: &Cluster) {
    let bench = Bench::new(cluster);
    let denying =
        bench.hook(|_| Answer::Response(json!({"allowed": false, "status": {"code": 403, "message": "no, and no"}})));
    let (silent, broken) = (bench.hook(|_| Answer::Silence), bench.hook(|_| Answer::Status(500, None)));
    let fine = bench.hook(|_| Answer::allow());
    let elsewhere = bench.authority.issue("x", &["elsewhere.hooks.svc"]).unwrap();
    let misnamed = Hook::start(cluster.address(), &elsewhere, |_| Answer::allow()).unwrap();
    let gone = std::net::TcpListener::bind((cluster.address(), 0)).unwrap().local_addr().unwrap();
    let (ca, stranger) = (bench.authority.cert(), Authority::new("strangers").unwrap().cert());
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
        // Another Service each time: connections that are kept from the last case lead elsewhere.
        let service = format!("one-{number}");
        bench.serve(&service, &replicas);
        let mut served = entry("one", &bundle, &more);
        served["clientConfig"]["service"]["name"] = service.as_str().into();
        let message = message.replace("one.hooks.svc", &format!("{service}.hooks.svc"));
        let message = message.replace("service \"one\"", &format!("service \"{service}\""));
        cluster.delete(&format!("{CONFIGURATIONS}/a"));
        bench.configure("a", &[served.clone()]);
        bench.creates(what, &pod("web"), |said| said.code == code && said.message() == message);
        served["failurePolicy"] = "Ignore".into();
        cluster.delete(&format!("{CONFIGURATIONS}/a"));
        bench.configure("a", &[served]);
        let code = if what == "denied" { 403 } else { 201 };
        bench.creates(&format!("{what}, ignored"), &pod("web"), |said| said.code == code);
    }
    bench.configure("b", &[entry("two", "", &json!({}))]);
    let absent =
        "failed to call webhook: Post \"https://two.hooks.svc:443/mutate?timeout=5s\": service \"two\" not found";
    bench.creates("no Service", &pod("web"), |said| said.message().ends_with(absent));
}

fn an_answer_that_is_none_is_a_failure_and_one_that_puts_off_is_not(cluster: &Cluster) {
    let bench = Bench::new(cluster);
    let other = bench.hook(|_| Answer::Response(json!({"allowed": true, "uid": "other"})));
    bench.serve("one", &[other.addr()]);
    bench.configure("a", &[entry("one", &bench.authority.cert(), &json!({}))]);
    let invalid = "received invalid webhook response: expected response.uid=";
    bench.creates("another uid", &pod("web"), |said| said.code == 500 && said.message().contains(invalid));
    cluster.delete(&format!("{CONFIGURATIONS}/a"));
    let count = AtomicUsize::new(0);
    let busy = bench.hook(move |_| match count.fetch_add(1, Ordering::SeqCst) {
        0 => Answer::Status(429, Some(1)),
        _ => Answer::patch(&json!([{"op": "add", "path": "/metadata/labels/asked", "value": "twice"}])),
    });
    bench.serve("two", &[busy.addr()]);
    bench.configure("b", &[entry("two", &bench.authority.cert(), &json!({}))]);
    bench.creates("asked again", &pod("web"), |said| said.body["metadata"]["labels"]["asked"] == "twice");
    assert_eq!(busy.seen().len(), 2, "within one request of the client");
}

fn a_dry_run_keeps_nothing_and_warnings_come_as_headers(cluster: &Cluster) {
    let bench = Bench::new(cluster);
    let warning = json!({"allowed": true, "warnings": ["say \"a\"", "and b"]});
    let hook = bench.hook(move |_| Answer::Response(warning.clone()));
    bench.serve("one", &[hook.addr()]);
    bench.configure("a", &[entry("one", &bench.authority.cert(), &json!({}))]);
    let said = bench.creates("warned", &pod("web"), |said| !said.warnings.is_empty());
    assert_eq!(
        (said.code, said.warnings),
        (201, vec!["299 - \"say \\\"a\\\"\"".to_owned(), "299 - \"and b\"".to_owned()])
    );
    assert_eq!(hook.seen().last().unwrap()["request"]["dryRun"], true);
    assert_eq!(cluster.get(&format!("{PODS}/web")).code, 404);
}

fn a_configuration_that_is_wrong_is_refused_with_everything_that_is_wrong(cluster: &Cluster) {
    let condition = json!([{"name": "c", "expression": "object.x.nonsense(1)"}]);
    let wrong = json!({"name": "short", "clientConfig": {}, "rules": [{"operations": ["CREATE"]}], "matchConditions": condition});
    let said = cluster.post(CONFIGURATIONS, &configuration("a", &[wrong]));
    assert_eq!((said.code, &said.body["reason"]), (422, &json!("Invalid")));
    for part in [
        "MutatingWebhookConfiguration.admissionregistration.k8s.io \"a\" is invalid: [",
        "webhooks[0].name: Invalid value: \"short\": should be a domain with at least three segments separated by dots",
        "webhooks[0].clientConfig: Required value: exactly one of url or service is required",
        "webhooks[0].sideEffects: Required value: must specify one of None, NoneOnDryRun",
        "webhooks[0].admissionReviewVersions: Required value: must specify one of v1, v1beta1",
        "webhooks[0].rules[0].apiGroups: Required value",
        "webhooks[0].matchConditions[0].expression: Invalid value: \"object.x.nonsense(1)\"",
    ] {
        assert!(said.message().contains(part), "{part} in {}", said.message());
    }
    // A manager of one field cannot bring back what an administrator has deleted.
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
