//! The manifests as they are, with two replicas: which pods are injected, and what the client is told.

use std::path::Path;

use serde_json::{Value, json};
use weir_apiserver::fake_webhook::{FakeReply, FakeWebhook};
use weir_apiserver::tls::Authority;
use weir_tests::wait_until;

use super::api_server::{Cluster, on_both};
use super::mesh::{Mesh, NAMESPACE};
use super::workload::{is_injected, pod, roll_out};

on_both!(
    labels_decide_which_pods_are_injected,
    samples_are_injected,
    client_is_told_about_skips_denials_and_dry_runs,
    pods_are_judged_by_capture_assertions,
    containers_of_later_webhooks_are_seen,
);

fn mesh(cluster: &Cluster) -> Option<Mesh> {
    let mesh = Mesh::install(cluster, "")?;
    mesh.wait_ready();
    Some(mesh)
}

/// Returns whether the default revision injects a pod, by the labels `istio-injection` and `istio.io/rev` of the namespace, and
/// `sidecar.istio.io/inject` and `istio.io/rev` of the pod (Istio's documentation, "Controlling the injection policy").
pub(crate) fn expected(
    enabled: Option<&str>,
    revision: Option<&str>,
    inject: Option<&str>,
    pods: Option<&str>,
) -> bool {
    match (enabled, revision, inject, pods) {
        (_, _, Some("false"), _) => false,
        (Some(value), ..) => value == "enabled",
        (None, Some(revision), ..) | (None, None, _, Some(revision)) => revision == "default",
        (None, None, inject, None) => inject == Some("true"),
    }
}

pub(crate) fn labels(pairs: &[(&str, Option<&str>)]) -> Value {
    let set = pairs.iter().filter_map(|(key, value)| Some(((*key).to_owned(), Value::from((*value)?))));
    Value::Object(set.collect())
}

fn labels_decide_which_pods_are_injected(cluster: &Cluster) {
    let Some(_mesh) = mesh(cluster) else { return };
    let revisions = [None, Some("default"), Some("other")];
    let (mut wrong, mut count) = (Vec::new(), [0, 0]);
    for (i, enabled) in [None, Some("enabled"), Some("disabled")].into_iter().enumerate() {
        for (j, revision) in revisions.into_iter().enumerate() {
            let namespace = format!("shop-{i}{j}");
            cluster.create_namespace(&namespace, &labels(&[("istio-injection", enabled), ("istio.io/rev", revision)]));
            for inject in [None, Some("true"), Some("false")] {
                for pods in revisions {
                    let mut asked = pod("web");
                    asked["metadata"]["labels"] =
                        labels(&[("sidecar.istio.io/inject", inject), ("istio.io/rev", pods)]);
                    let response =
                        cluster.post(&format!("/api/v1/namespaces/{namespace}/pods?dryRun=All"), &asked).expect_ok();
                    let expected = expected(enabled, revision, inject, pods);
                    count[usize::from(expected)] += 1;
                    if is_injected(&response) != expected {
                        wrong.push(format!("{enabled:?} {revision:?} {inject:?} {pods:?}: {}", !expected));
                    }
                }
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
    assert_eq!(count, [54, 27]);
    // System namespaces are never injected, and the webhook does not inject its own pods.
    for system in ["kube-system", NAMESPACE] {
        let label = json!({"metadata": {"labels": {"istio-injection": "enabled"}}});
        cluster.merge_patch(&format!("/api/v1/namespaces/{system}"), &label).expect_ok();
    }
    cluster.ensure_service_account("kube-system", "default");
    assert!(!is_injected(&cluster.post("/api/v1/namespaces/kube-system/pods?dryRun=All", &pod("web")).expect_ok()));
    let own = roll_out(cluster, NAMESPACE);
    assert!(own.len() == 2 && own.iter().all(|response| !is_injected(&response.body)), "{own:?}");
}

fn samples_are_injected(cluster: &Cluster) {
    let Some(mesh) = mesh(cluster) else { return };
    let enabled = json!({"istio-injection": "enabled"});
    cluster.create_namespace("shop", &enabled);
    cluster.create_namespace("samples", &enabled);
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let ours = root.join("manifests/examples/nginx.yaml");
    mesh.kubectl.ok(&["apply", "--validate=false", "-f", ours.to_str().unwrap()], "");
    // Istio's own, which are not part of this repository.
    let samples = std::fs::read_dir(root.join("../shared/samples"));
    let samples = samples.inspect_err(|error| weir_lab::skip_or_fail(format_args!("no samples: {error}")));
    for file in samples.into_iter().flatten() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        let objects: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
        // Resources of Istio's CustomResourceDefinitions have no pods.
        let ours = |object: &Value| !object["apiVersion"].as_str().unwrap_or_default().contains("istio.io");
        let items: Vec<Value> = objects.into_iter().filter(ours).collect();
        if items.is_empty() {
            continue;
        }
        let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
        mesh.kubectl.ok(&["apply", "-n", "samples", "--validate=false", "-f", "-"], &list.to_string());
    }
    let created = ["shop", "samples"].map(|namespace| roll_out(cluster, namespace).len());
    assert!(created[0] > 0);
    let pods =
        ["shop", "samples"].map(|namespace| cluster.get(&format!("/api/v1/namespaces/{namespace}/pods")).expect_ok());
    for pod in pods.iter().flat_map(|list| list["items"].as_array().unwrap()) {
        assert!(is_injected(pod), "{pod}");
        let proxy = containers(pod).into_iter().find(|container| container["name"] == "istio-proxy").unwrap();
        let token = "/var/run/secrets/kubernetes.io/serviceaccount";
        let mounts = proxy["volumeMounts"].as_array().unwrap();
        assert!(mounts.iter().any(|mount| mount["mountPath"] == token), "{proxy}");
    }
    mesh.kubectl.ok(&["rollout", "status", "-n", "shop", "deployment/nginx", "--timeout=60s"], "");
    eprintln!("injected {created:?} pods of our example and of Istio's");
}

/// Returns the containers of both lists.
fn containers(pod: &Value) -> Vec<Value> {
    ["initContainers", "containers"].map(|list| pod["spec"][list].as_array().cloned().unwrap_or_default()).concat()
}

fn client_is_told_about_skips_denials_and_dry_runs(cluster: &Cluster) {
    let Some(mesh) = mesh(cluster) else { return };
    cluster.create_namespace("shop", &json!({"istio-injection": "enabled"}));
    let pods = "/api/v1/namespaces/shop/pods";
    let response = cluster.post(pods, &on_host("host"));
    assert!(!is_injected(&response.clone().expect_ok()));
    assert!(response.warnings.iter().any(|warning| warning.contains("host network")), "{:?}", response.warnings);
    let dry = ["create", "-n", "shop", "--validate=false", "--dry-run=server", "-f", "-"];
    let output = mesh.kubectl.run(&dry, &on_host("dry").to_string());
    assert!(String::from_utf8_lossy(&output.stderr).contains("Warning: "), "{output:?}");

    let mut wrong = pod("wrong");
    wrong["metadata"]["annotations"] = json!({
        "sidecar.istio.io/interceptionMode": "MAYBE", "traffic.sidecar.istio.io/excludeInboundPorts": "80,eighty",
    });
    let denied = cluster.post(pods, &wrong);
    let start = "admission webhook \"namespace.sidecar-injector.weir.dev\" denied the request: ";
    assert!(denied.message().starts_with(start), "{}", denied.body);
    for part in
        ["'MAYBE'", "sidecar.istio.io/interceptionMode", "eighty", "traffic.sidecar.istio.io/excludeInboundPorts"]
    {
        assert!(denied.message().contains(part), "{part} in {}", denied.message());
    }
    assert!((400..500).contains(&denied.code), "{}", denied.code);
    let stderr = mesh.kubectl.fails(&["create", "-n", "shop", "--validate=false", "-f", "-"], &wrong.to_string());
    assert!(stderr.contains(start), "{stderr}");

    assert!(is_injected(&cluster.post(&format!("{pods}?dryRun=All"), &pod("dry")).expect_ok()));
    let left = cluster.get(pods).expect_ok();
    let names: Vec<&str> =
        left["items"].as_array().unwrap().iter().map(|pod| pod["metadata"]["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["host"]);
}

fn on_host(name: &str) -> Value {
    let mut pod = pod(name);
    pod["spec"]["hostNetwork"] = true.into();
    pod
}

fn containers_of_later_webhooks_are_seen(cluster: &Cluster) {
    let Some(_mesh) = mesh(cluster) else { return };
    cluster.create_namespace("shop", &json!({"istio-injection": "enabled"}));
    cluster.create_namespace("hooks", &json!({}));
    let authority = Authority::new("hooks").unwrap();
    let pair = authority.issue("late", &["late.hooks.svc"]).unwrap();
    let late = FakeWebhook::start(cluster.webhook_address(), &pair, |review| {
        let containers = review["request"]["object"]["spec"]["containers"].as_array().unwrap();
        if containers.iter().any(|container| container["name"] == "late") {
            return FakeReply::allow();
        }
        let port = json!({"containerPort": 9999});
        FakeReply::patch(&json!([{"op": "add", "path": "/spec/containers/-", "value": {"name": "late", "image": "l", "ports": [port]}}]))
    })
    .unwrap();
    let service = json!({"metadata": {"name": "late"}, "spec": {"ports": [{"name": "https", "port": 443}]}});
    cluster.post("/api/v1/namespaces/hooks/services", &service).expect_ok();
    cluster.set_endpoints("hooks", "late", 443, &[late.addr()]);
    let entry = json!({
        "name": "late.hooks.dev", "sideEffects": "None", "admissionReviewVersions": ["v1"], "failurePolicy": "Ignore",
        "clientConfig": {"caBundle": base64(&authority.cert()), "service": {"name": "late", "namespace": "hooks"}},
        "namespaceSelector": {"matchLabels": {"istio-injection": "enabled"}},
        "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}],
    });
    // After ours by name.
    let configuration = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": "zz-late"}, "webhooks": [entry],
    });
    cluster.post("/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations", &configuration).expect_ok();
    let stored = weir_tests::wait_until("both webhooks are called", || {
        let response = cluster.post("/api/v1/namespaces/shop/pods?dryRun=All", &pod("web")).expect_ok();
        if response.to_string().contains("\"late\"") { Ok(response) } else { Err(response.to_string()) }
    });
    assert!(is_injected(&stored));
    let all = containers(&stored);
    let proxies: Vec<&Value> = all.iter().filter(|container| container["name"] == "istio-proxy").collect();
    let [proxy] = proxies[..] else { panic!("{stored}") };
    let env = proxy["env"].as_array().unwrap();
    let value = |name: &str| {
        env.iter().find(|entry| entry["name"] == name).map(|entry| entry["value"].as_str().unwrap().to_owned())
    };
    assert_eq!(value("ISTIO_META_APP_CONTAINERS").as_deref(), Some("app,late"));
    assert!(value("ISTIO_META_POD_PORTS").unwrap().contains("9999"), "{env:?}");
}

fn base64(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}

const ASSERTIONS: &str = r#"{"apiVersion": "v1", "kind": "List", "items": [
    {"apiVersion": "weir.dev/v1alpha1", "kind": "CaptureAssertion", "metadata": {"name": "databases"}, "spec": {
        "action": "deny", "namespaceSelector": {"matchLabels": {"pci": "true"}},
        "rules": [{"name": "mysql", "direction": "outbound", "ports": [3306], "must": "captured"}]}},
    {"apiVersion": "weir.dev/v1alpha1", "kind": "CaptureAssertion", "metadata": {"name": "everything"}, "spec": {
        "rules": [{"direction": "outbound", "must": "captured"}]}}
]}"#;

/// The webhook denies, or warns about, what `weir assert` finds in the same pods.
fn pods_are_judged_by_capture_assertions(cluster: &Cluster) {
    let dir = tempfile::tempdir().unwrap();
    let policy = dir.path().join("assertions");
    std::fs::write(&policy, ASSERTIONS).unwrap();
    let Some(mesh) = Mesh::install_with(cluster, "", &["--assertions", policy.to_str().unwrap()]) else { return };
    mesh.wait_ready();
    for (namespace, pci) in [("cards", "true"), ("blog", "false")] {
        let labels = json!({"istio-injection": "enabled", "pci": pci});
        cluster.create_namespace(namespace, &labels);
        let is_pci = pci == "true";
        for (asked, breaks_pci, breaks_all) in pods_for_assertions() {
            let pods = format!("/api/v1/namespaces/{namespace}/pods?dryRun=All");
            let is_denied = is_pci && breaks_pci;
            // The labels of a new namespace arrive a moment later; until then they count as broken.
            let response = wait_until("the namespace is known", || {
                let response = cluster.post(&pods, &asked);
                let told = format!("{}{:?}", response.message(), response.warnings);
                if told.contains("not known yet") { Err(told) } else { Ok(response) }
            });
            let text = if is_denied { response.message().to_owned() } else { response.warnings.join(" ") };
            assert_eq!(response.code == 403, is_denied, "{namespace}: {asked}: {response:?}");
            assert_eq!(text.contains("CaptureAssertion databases: mysql: "), is_denied, "{asked}: {text}");
            assert_eq!(
                text.contains("CaptureAssertion everything: rule 1: "),
                breaks_all && !is_denied,
                "{asked}: {text}"
            );

            let mut stored = asked.clone();
            stored["metadata"]["namespace"] = namespace.into();
            let manifest = dir.path().join("pod.yaml");
            let labels =
                json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": namespace, "labels": labels}});
            std::fs::write(&manifest, format!("{stored}\n---\n{labels}\n")).unwrap();
            let mut offline = std::process::Command::new(weir_tests::bin("weir"));
            let offline = offline.arg("assert").arg("-f").args([&policy, &manifest]).output().unwrap();
            let printed = String::from_utf8_lossy(&offline.stdout);
            assert_eq!(offline.status.code(), Some(i32::from(breaks_all)), "{asked}: {offline:?}");
            assert_eq!(printed.contains("mysql"), is_denied, "{asked}: {printed}");
        }
    }
    let replicas = mesh.replicas();
    for labels in [r#"{assertion="databases",action="deny"}"#, r#"{assertion="everything",action="warn"}"#] {
        let counter = format!("weir_webhook_assertion_breaches_total{labels}");
        assert!(replicas.iter().any(|replica| replica.counter(&counter) > 0), "{counter}");
    }
}

/// Returns pods, and whether they break the assertion about MySQL, and that about everything. Most are of an author who wants out of the
/// mesh unseen.
fn pods_for_assertions() -> Vec<(Value, bool, bool)> {
    const PORTS: &str = "traffic.sidecar.istio.io/excludeOutboundPorts";
    const STATUS: &str = "sidecar.istio.io/status";
    const INJECT: &str = "sidecar.istio.io/inject";
    const TEMPLATES: &str = "inject.istio.io/templates";
    let changed = |annotations: Value, spec: Value| {
        let mut pod = pod("web");
        json_patch::merge(&mut pod, &json!({"metadata": {"annotations": annotations}, "spec": spec}));
        pod
    };
    let annotated = |annotations: Value| changed(annotations, json!({}));
    let proxy = |context: Value| json!({"name": "istio-proxy", "image": "auto", "securityContext": context});
    let forged = json!({INJECT: "false", STATUS: r#"{"containers":["istio-proxy"]}"#,
        "weir.dev/capture": r#"{"v":1,"proxyUids":[101]}"#});
    let out = [
        annotated(json!({PORTS: "3306"})),
        annotated(json!({INJECT: "false"})),
        annotated(json!({INJECT: "false", STATUS: "{}"})),
        annotated(json!({INJECT: "false", STATUS: r#"{"containers":["istio-proxy"]}"#})),
        annotated(json!({"sidecar.istio.io/interceptionMode": "NONE"})),
        annotated(json!({TEMPLATES: "grpc-agent"})),
        annotated(json!({TEMPLATES: "grpc-simple"})),
        annotated(json!({TEMPLATES: "gateway"})),
        changed(json!({}), json!({"hostNetwork": true})),
        changed(json!({STATUS: "{}"}), json!({"hostNetwork": true})),
        changed(
            json!({}),
            json!({"containers": [{"name": "app", "image": "app"},
                {"name": "tool", "image": "tool", "securityContext": {"runAsUser": 1337}}]}),
        ),
        // The user of the image would be 101.
        changed(json!({}), json!({"containers": [{"name": "app", "image": "app"}, proxy(json!({"runAsUser": 101}))]})),
        annotated(forged),
    ];
    // The plugin goes by the webhook's annotation, not by a name.
    let own_init = changed(json!({}), json!({"initContainers": [{"name": "istio-init", "image": "mine"}]}));
    let mut all =
        vec![(pod("web"), false, false), (own_init, false, false), (annotated(json!({PORTS: "8080"})), false, true)];
    all.extend(out.map(|pod| (pod, true, true)));
    all
}
