//! The API server of the tests: admission, clients, errors as of the real one.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use weir_tests::apiserver::tls::{Authority, Pair};
use weir_tests::apiserver::{ApiServer, User};
use weir_tests::hook::{Answer, Hook};

use super::kubectl::Kubectl;

/// A request with the status of its answer, its `Warning` headers and its body.
pub(crate) struct Said {
    pub(crate) code: u16,
    pub(crate) warnings: Vec<String>,
    pub(crate) body: Value,
}

/// Posts an object to a server over TLS.
pub(crate) fn post(server: &ApiServer, path: &str, body: &Value) -> Said {
    let root = ureq::tls::Certificate::from_pem(server.ca().unwrap().as_bytes()).unwrap();
    let tls = ureq::tls::TlsConfig::builder()
        .root_certs(ureq::tls::RootCerts::new_with_certs(&[root]))
        .unversioned_rustls_crypto_provider(std::sync::Arc::new(rustls::crypto::ring::default_provider()))
        .build();
    let config = ureq::Agent::config_builder().tls_config(tls).http_status_as_error(false).build();
    let agent: ureq::Agent = config.into();
    let sent = agent.post(format!("{}{path}", server.url())).content_type("application/json").send(body.to_string());
    let mut answer = sent.unwrap();
    let warnings = answer.headers().get_all("warning").iter().map(|value| value.to_str().unwrap().to_owned()).collect();
    let code = answer.status().as_u16();
    Said { code, warnings, body: serde_json::from_str(&answer.body_mut().read_to_string().unwrap()).unwrap() }
}

/// What a case is, the replicas, the bundle, more of the entry, and the status and the message that come of it.
type Case = (&'static str, Vec<std::net::SocketAddr>, String, Value, u16, String);

const PODS: &str = "/api/v1/namespaces/shop/pods";

fn namespace(labels: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": labels}})
}

fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "app", "image": "a"}]},
    })
}

/// An entry for the Service `NAME.hooks`.
fn entry(name: &str, bundle: &str, more: &Value) -> Value {
    let mut entry = json!({
        "name": format!("{name}.test.dev"), "sideEffects": "None", "admissionReviewVersions": ["v1"], "timeoutSeconds": 5,
        "clientConfig": {"caBundle": STANDARD.encode(bundle), "service": {"name": name, "namespace": "hooks", "path": "/mutate"}},
        "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}],
    });
    for (key, value) in more.as_object().unwrap() {
        entry[key] = value.clone();
    }
    entry
}

fn configuration(name: &str, entries: &[Value]) -> Value {
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": name}, "webhooks": entries,
    })
}

const CONFIGURATIONS: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";

fn configure(server: &ApiServer, name: &str, entries: &[Value]) {
    let said = post(server, CONFIGURATIONS, &configuration(name, entries));
    assert_eq!(said.code, 201, "{}", said.body);
}

struct Bench {
    server: ApiServer,
    authority: Authority,
    pair: Pair,
}

/// A cluster with the namespace `shop`, and an authority with a certificate for the Service `one.hooks`.
fn bench() -> Bench {
    let server = ApiServer::cluster().unwrap();
    server.put("namespaces", namespace(&json!({"kubernetes.io/metadata.name": "shop", "mesh": "on"})));
    let authority = Authority::new("hooks").unwrap();
    let pair = authority.issue("one", &["one.hooks.svc", "two.hooks.svc"]).unwrap();
    Bench { server, authority, pair }
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
    pod["spec"]["containers"].as_array().unwrap().iter().map(|container| container["name"].as_str().unwrap()).collect()
}

#[test]
fn asks_the_webhooks_that_are_meant_with_everything_a_review_has() {
    let Bench { server, authority, pair } = bench();
    let hook = Hook::start(&pair, adding("side")).unwrap();
    server.route("hooks", "one", 443, &[hook.addr()]);
    let condition =
        json!([{"name": "plain", "expression": "!has(object.spec.hostNetwork) || object.spec.hostNetwork == false"}]);
    let selected = json!({"namespaceSelector": {"matchLabels": {"mesh": "on"}}, "matchConditions": condition});
    configure(&server, "a", &[entry("one", &authority.cert(), &selected)]);

    let said = post(&server, PODS, &pod("web"));
    assert_eq!((said.code, names(&said.body)), (201, vec!["app", "side"]), "{}", said.body);
    assert_eq!(server.get("pods", "shop", "web"), Some(said.body.clone()));
    let mounted = |container: &Value| {
        container["volumeMounts"][0]["mountPath"] == "/var/run/secrets/kubernetes.io/serviceaccount"
    };
    assert!(
        said.body["spec"]["containers"].as_array().unwrap().iter().all(mounted),
        "also what the webhook added: {}",
        said.body
    );

    let request = &hook.seen()[0]["request"];
    let keys: Vec<&str> = request.as_object().unwrap().keys().map(String::as_str).collect();
    for key in [
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
    ] {
        assert!(keys.contains(&key), "{key} in {keys:?}");
    }
    assert_eq!(
        (&request["operation"], &request["userInfo"]["username"]),
        (&json!("CREATE"), &json!("kubernetes-admin"))
    );

    let mut on_host = pod("host");
    on_host["spec"]["hostNetwork"] = true.into();
    assert_eq!(names(&post(&server, PODS, &on_host).body), ["app"]);
    assert_eq!(names(&post(&server, "/api/v1/namespaces/default/pods", &pod("web")).body), ["app"]);
    let generated = json!({"metadata": {"generateName": "web-"}, "spec": {"containers": [{"name": "app"}]}});
    let made = post(&server, PODS, &generated).body;
    assert!(made["metadata"]["name"].as_str().unwrap().len() > 4, "{made}");
    assert_eq!(hook.seen().len(), 2);
    assert_eq!(hook.seen()[1]["request"].get("name"), None);
    assert_eq!(
        post(&server, "/api/v1/namespaces/nowhere/pods", &pod("web")).body["message"],
        "namespaces \"nowhere\" not found"
    );
}

#[test]
fn asks_again_those_who_want_it_when_a_later_one_changed_the_pod() {
    let Bench { server, authority, pair } = bench();
    let (first, second) = (Hook::start(&pair, adding("one")).unwrap(), Hook::start(&pair, adding("two")).unwrap());
    server.route("hooks", "one", 443, &[first.addr()]);
    server.route("hooks", "two", 443, &[second.addr()]);
    let again = json!({"reinvocationPolicy": "IfNeeded"});
    configure(&server, "b", &[entry("two", &authority.cert(), &again)]);
    configure(&server, "a", &[entry("one", &authority.cert(), &again)]);
    let mut quiet = pod("web");
    quiet["spec"]["automountServiceAccountToken"] = false.into();
    assert_eq!(names(&post(&server, PODS, &quiet).body), ["app", "one", "two"]);
    assert_eq!((first.seen().len(), second.seen().len()), (2, 1), "the first sees what the second added");
    let audit = server.audit().pop().unwrap().annotations;
    let rounds: Vec<&str> = audit.keys().map(String::as_str).collect();
    let key = "mutation.webhook.admission.k8s.io";
    assert_eq!(rounds, [format!("{key}/round_0_index_0"), format!("{key}/round_1_index_0")]);
    // The server itself mounts tokens into what the webhooks added: both see it.
    assert_eq!(names(&post(&server, PODS, &pod("other")).body), ["app", "one", "two"]);
    assert_eq!((first.seen().len(), second.seen().len()), (4, 3));
}

#[test]
fn a_dry_run_asks_who_has_no_side_effects_and_keeps_nothing() {
    let Bench { server, authority, pair } = bench();
    let hook = Hook::start(&pair, adding("side")).unwrap();
    server.route("hooks", "one", 443, &[hook.addr()]);
    configure(&server, "a", &[entry("one", &authority.cert(), &json!({}))]);
    let said = post(&server, &format!("{PODS}?dryRun=All"), &pod("web"));
    assert_eq!((said.code, names(&said.body)), (201, vec!["app", "side"]));
    assert_eq!(server.get("pods", "shop", "web"), None);
    assert_eq!(hook.seen()[0]["request"]["dryRun"], true);
}

#[test]
fn failures_are_told_as_the_real_one_tells_them() {
    let Bench { server, authority, pair } = bench();
    let denying = Hook::start(&pair, |_| Answer::Response(json!({"allowed": false, "status": {"code": 403, "message": "no, and no"}, "warnings": ["say \"a\""], "auditAnnotations": {"why": "so"}}))).unwrap();
    let silent = Hook::start(&pair, |_| Answer::Silence).unwrap();
    let broken = Hook::start(&pair, |_| Answer::Status(500, None)).unwrap();
    let other = Hook::start(&pair, |_| Answer::Response(json!({"allowed": true, "uid": "other"}))).unwrap();
    let shed = {
        let count = std::sync::atomic::AtomicUsize::new(0);
        Hook::start(&pair, move |_| match count.fetch_add(1, std::sync::atomic::Ordering::SeqCst) {
            0 => Answer::Status(429, Some(0)),
            _ => Answer::patch(&json!([{"op": "add", "path": "/metadata/labels/asked", "value": "twice"}])),
        })
        .unwrap()
    };
    let stranger = Authority::new("hooks").unwrap();
    let elsewhere = authority.issue("x", &["elsewhere.hooks.svc"]).unwrap();
    let misnamed = Hook::start(&elsewhere, |_| Answer::allow()).unwrap();
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = |seconds: u8| format!("Post \"https://one.hooks.svc:443/mutate?timeout={seconds}s\": ");
    let unreached = |why: &str| {
        format!(
            "Internal error occurred: failed calling webhook \"one.test.dev\": failed to call webhook: {}{why}",
            url(5)
        )
    };
    let ca = authority.cert();
    let cases: [Case; 8] = [
        ("denied", vec![denying.addr()], ca.clone(), json!({}), 403, "admission webhook \"one.test.dev\" denied the request: no, and no".to_owned()),
        ("refused", vec![gone], ca.clone(), json!({}), 500, unreached(&format!("dial tcp {gone}: connect: connection refused"))),
        ("no endpoint", vec![], ca.clone(), json!({}), 500, unreached("service \"one\" not found")),
        ("unknown authority", vec![other.addr()], stranger.cert(), json!({}), 500, unreached("tls: failed to verify certificate: x509: certificate signed by unknown authority")),
        ("no bundle", vec![other.addr()], String::new(), json!({}), 500, unreached("tls: failed to verify certificate: x509: certificate signed by unknown authority")),
        ("another name", vec![misnamed.addr()], ca.clone(), json!({}), 500, unreached("tls: failed to verify certificate: x509: certificate is not valid for any names, but wanted to match one.hooks.svc")),
        ("silent", vec![silent.addr()], ca.clone(), json!({"timeoutSeconds": 1}), 500, unreached("context deadline exceeded").replace("=5s", "=1s")),
        ("broken", vec![broken.addr()], ca.clone(), json!({}), 500, "Internal error occurred: failed calling webhook \"one.test.dev\": failed to call webhook: an error on the server (\"\") has prevented the request from succeeding".to_owned()),
    ];
    for (what, replicas, bundle, more, code, message) in cases {
        server.remove("mutatingwebhookconfigurations", "", "a");
        configure(&server, "a", &[entry("one", &bundle, &more)]);
        server.route("hooks", "one", 443, &replicas);
        server.identify(None);
        let said = post(&server, PODS, &pod("web"));
        assert_eq!((said.code, &said.body["message"]), (code, &json!(message)), "{what}");
        assert_eq!(server.get("pods", "shop", "web"), None, "{what}");
        let mut ignoring = more;
        ignoring["failurePolicy"] = "Ignore".into();
        server.remove("mutatingwebhookconfigurations", "", "a");
        configure(&server, "a", &[entry("one", &bundle, &ignoring)]);
        let said = post(&server, &format!("{PODS}?dryRun=All"), &pod("web"));
        assert_eq!(said.code, if what == "denied" { 403 } else { 201 }, "{what}: {}", said.body);
        let audit = server.audit().pop().unwrap().annotations;
        match what {
            "denied" => {
                assert_eq!(audit["one.test.dev/why"], "so");
            }
            _ => assert_eq!(
                audit["failed-open.mutation.webhook.admission.k8s.io/round_0_index_0"], "one.test.dev",
                "{what}"
            ),
        }
    }
    server.remove("mutatingwebhookconfigurations", "", "a");
    configure(&server, "a", &[entry("one", &ca, &json!({}))]);
    // Kept connections lead where they led; without them the routes count.
    server.route("hooks", "one", 443, &[other.addr()]);
    server.identify(None);
    let message = post(&server, PODS, &pod("web")).body["message"].as_str().unwrap().to_owned();
    assert!(message.contains("received invalid webhook response: expected response.uid="), "{message}");
    server.route("hooks", "one", 443, &[shed.addr()]);
    server.identify(None);
    assert_eq!(post(&server, PODS, &pod("web")).body["metadata"]["labels"]["asked"], "twice");
}

#[test]
fn warnings_come_as_headers() {
    let Bench { server, authority, pair } = bench();
    let hook =
        Hook::start(&pair, |_| Answer::Response(json!({"allowed": true, "warnings": ["say \"a\"", "two\nlines"]})))
            .unwrap();
    server.route("hooks", "one", 443, &[hook.addr()]);
    configure(&server, "a", &[entry("one", &authority.cert(), &json!({}))]);
    assert_eq!(post(&server, PODS, &pod("web")).warnings, ["299 - \"say \\\"a\\\"\"", "299 - \"two lines\""]);
}

#[test]
fn a_configuration_that_is_wrong_is_refused_with_everything_that_is_wrong() {
    let server = ApiServer::cluster().unwrap();
    let wrong = json!({"name": "short", "clientConfig": {}, "rules": [{"operations": ["CREATE"]}], "matchConditions": [{"name": "c", "expression": "object.x.map(a, b)"}]});
    let said = post(&server, CONFIGURATIONS, &configuration("a", &[wrong]));
    let message = said.body["message"].as_str().unwrap();
    assert_eq!((said.code, &said.body["reason"]), (422, &json!("Invalid")));
    for part in [
        "webhooks[0].name",
        "webhooks[0].clientConfig: Required",
        "webhooks[0].sideEffects: Required",
        "admissionReviewVersions: Required",
        "rules[0].apiGroups: Required",
        "'map' is not known here",
    ] {
        assert!(message.contains(part), "{part} in {message}");
    }
}

#[test]
fn kubectl_gets_along_with_it() {
    let server = ApiServer::cluster().unwrap();
    server.know("admins-token", User::admin());
    let dir = tempfile::tempdir().unwrap();
    let Some(kubectl) = Kubectl::or_skip(&server.kubeconfig(dir.path()).unwrap()) else { return };
    // `create namespace` would send protobuf.
    kubectl.ok(&["create", "--validate=false", "-f", "-"], "{apiVersion: v1, kind: Namespace, metadata: {name: shop}}");
    kubectl.ok(&["label", "namespace", "shop", "istio-injection=enabled"], "");
    let labels = kubectl.ok(&["get", "ns", "shop", "-o", "jsonpath={.metadata.labels}"], "");
    assert_eq!(
        serde_json::from_str::<Value>(&labels).unwrap(),
        json!({"kubernetes.io/metadata.name": "shop", "istio-injection": "enabled"})
    );

    let deployment = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web, namespace: shop}\nspec:\n  replicas: 2\n  selector: {matchLabels: {app: web}}\n  template:\n    metadata: {labels: {app: web}}\n    spec: {containers: [{name: app, image: a}]}\n";
    let apply = ["apply", "--server-side", "--validate=false", "-f", "-"];
    assert!(kubectl.ok(&apply, deployment).contains("deployment.apps/web serverside-applied"));
    kubectl.ok(&apply, &deployment.replace("image: a", "image: b"));
    let other = ["apply", "--server-side", "--validate=false", "--field-manager=other", "-f", "-"];
    let conflict = kubectl.fails(&other, &deployment.replace("image: a", "image: c"));
    assert!(
        conflict.contains("conflict with \"kubectl\"")
            && conflict.contains(".spec.template.spec.containers[name=\"app\"].image"),
        "{conflict}"
    );
    let status = json!({"observedGeneration": 2, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2, "readyReplicas": 2});
    let mut stored = server.get("deployments", "shop", "web").unwrap();
    assert_eq!(stored["metadata"]["generation"], 2);
    stored["status"] = status;
    server.put("deployments", stored);
    assert!(
        kubectl
            .ok(&["rollout", "status", "-n", "shop", "deployment/web", "--timeout=30s"], "")
            .contains("successfully rolled out")
    );
    assert!(
        kubectl
            .ok(
                &["apply", "--validate=false", "-f", "-"],
                "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c, namespace: shop}\ndata: {a: \"1\"}\n"
            )
            .contains("created")
    );
    assert!(kubectl.ok(&["get", "deployments,cm", "-A"], "").contains("deployment.apps/web"));
    let review = "{apiVersion: authorization.k8s.io/v1, kind: SelfSubjectAccessReview, spec: {resourceAttributes: {verb: get, resource: pods}}}";
    let asked = ["create", "--validate=false", "-f", "-", "-o", "jsonpath={.status.allowed}"];
    assert_eq!(kubectl.ok(&asked, review), "true");
    kubectl.ok(&["delete", "-n", "shop", "deployment/web", "--wait=true"], "");
    assert_eq!(server.get("deployments", "shop", "web"), None);
    kubectl.ok(&["delete", "namespace", "shop"], "");
    assert_eq!(server.get("configmaps", "shop", "c"), None, "what is in it goes with it");
    assert!(kubectl.fails(&["get", "pods", "-n", "shop", "--as=system:nobody", "web"], "").contains("not found"));
}
