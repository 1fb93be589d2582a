//! The ValidatingAdmissionPolicies of the manifests, in a real API server: who may change which annotations of a pod.
//!
//! No webhook is installed: a pod in a namespace that is sent to one may carry what the injector writes.

use std::time::{Duration, Instant};

use iptables_rules::annotations::{SETTINGS, SettingSource};
use serde_json::{Value, json};
use weir_tests::wait_until;

use super::api_server::{Cluster, Response};
use super::flows::{expected, labels};
use super::kubectl::Kubectl;
use super::workload::pod;

const POLICIES: &str = include_str!("../../../../manifests/components/admission-policies/policies.yaml");
const AGENT: &str = "system:serviceaccount:weir-node:weir-agent";
/// May do everything in the cluster, but is not of `system:masters`.
const TENANT: &str = "tenant";
const FROZEN: &str = "annotations about traffic capture cannot be changed on an existing pod";
const FORGED: &str = "annotations weir.dev/* are written by the sidecar injector";

/// Starts an API server with the policies, after `edit`, and waits until they are enforced.
fn with_policies(edit: impl Fn(&str) -> String) -> Option<(Cluster, Kubectl)> {
    let cluster = Cluster::kube_apiserver_or_skip()?;
    let kubectl = Kubectl::new_or_skip(cluster.kubeconfig())?;
    kubectl.ok(&["apply", "--server-side", "-f", "-"], &edit(POLICIES));
    let user = |name: &str| json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": name});
    let role = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"});
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "tenant"},
        "roleRef": role, "subjects": [user(TENANT), user(AGENT)],
    });
    cluster.post("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", &binding).expect_ok();
    cluster.create_namespace("shop", &json!({"istio-injection": "enabled"}));
    cluster.create_namespace("plain", &json!({}));
    cluster.post("/api/v1/namespaces/shop/pods", &annotated("probe", &json!({}))).expect_ok();
    wait_until("both policies are enforced", || {
        let forged = create(&cluster, "plain", &annotated("web", &json!({"weir.dev/capture": "{}"})));
        let changed = merge(&kubectl, TENANT, "probe", "", &json!({"weir.dev/capture": "{}"}), true);
        let enforced = forged.message().contains(FORGED) && changed.as_ref().is_err_and(|error| error.contains(FROZEN));
        if enforced { Ok(()) } else { Err(format!("{forged:?} {changed:?}")) }
    });
    Some((cluster, kubectl))
}

fn annotated(name: &str, annotations: &Value) -> Value {
    let mut pod = pod(name);
    pod["metadata"]["annotations"] = annotations.clone();
    pod
}

/// Creates a pod, as a dry run: admission is the same.
fn create(cluster: &Cluster, namespace: &str, pod: &Value) -> Response {
    cluster.post(&format!("/api/v1/namespaces/{namespace}/pods?dryRun=All"), pod)
}

/// Changes annotations of a pod of the namespace `shop` as a user. Null removes one.
fn merge(
    kubectl: &Kubectl,
    user: &str,
    name: &str,
    subresource: &str,
    annotations: &Value,
    dry_run: bool,
) -> Result<(), String> {
    let change = json!({"metadata": {"annotations": annotations}}).to_string();
    let mut args = vec!["-n", "shop", "patch", "pod", name, "--type=merge", "-p", &change, "--as", user];
    let subresource = format!("--subresource={subresource}");
    if subresource.len() > "--subresource=".len() {
        args.push(&subresource);
    }
    if dry_run {
        args.push("--dry-run=server");
    }
    let output = kubectl.run(&args, "");
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

#[test]
fn capture_annotations_of_a_pod_are_frozen() {
    let Some((cluster, kubectl)) = with_policies(str::to_owned) else { return };
    let keys = [
        "weir.dev/capture",
        "weir.dev/original",
        "weir.dev/ipv6",
        "sidecar.istio.io/status",
        "sidecar.istio.io/interceptionMode",
        "traffic.sidecar.istio.io/excludeOutboundIPRanges",
        "proxy.istio.io/config",
        "istio.io/reroute-virtual-interfaces",
        "weir.dev/of-another-version",
        "traffic.sidecar.istio.io/ofAnotherVersion",
    ];
    let all: Value = keys.iter().map(|key| ((*key).to_owned(), "a".into())).collect::<serde_json::Map<_, _>>().into();
    cluster.post("/api/v1/namespaces/shop/pods", &annotated("with", &all)).expect_ok();
    cluster.post("/api/v1/namespaces/shop/pods", &annotated("without", &json!({"note": "a"}))).expect_ok();
    for key in keys {
        for (name, value) in [("with", json!("b")), ("with", Value::Null), ("without", json!("a"))] {
            for subresource in ["", "status"] {
                let denied = merge(&kubectl, TENANT, name, subresource, &json!({key: value}), true).unwrap_err();
                assert!(
                    denied.contains(FROZEN) && denied.contains(key),
                    "{name} {subresource} {key}={value}: {denied}"
                );
            }
        }
    }
    // All keys that change are named.
    let denied = merge(&kubectl, TENANT, "with", "", &json!({keys[0]: "b", keys[3]: null}), true).unwrap_err();
    assert!(denied.contains(keys[0]) && denied.contains(keys[3]), "{denied}");

    for subresource in ["", "status"] {
        let other = json!({"note": "b", "sidecar.istio.io/logLevel": "debug"});
        merge(&kubectl, TENANT, "with", subresource, &other, false).unwrap();
        merge(&kubectl, AGENT, "with", subresource, &json!({"weir.dev/capture": "b"}), true).unwrap();
    }
    // The administrator of the tests is of system:masters.
    let change = json!({"metadata": {"annotations": {"weir.dev/capture": "b"}}});
    cluster.merge_patch("/api/v1/namespaces/shop/pods/with?dryRun=All", &change).expect_ok();
}

#[test]
fn binding_brings_no_capture_annotations() {
    let Some((cluster, kubectl)) = with_policies(str::to_owned) else { return };
    let bind = |path: &str, annotations: Value| {
        let binding = json!({
            "apiVersion": "v1", "kind": "Binding", "metadata": {"name": "probe", "namespace": "shop", "annotations": annotations},
            "target": {"apiVersion": "v1", "kind": "Node", "name": "node"},
        });
        let path = format!("/api/v1/namespaces/shop/{path}");
        kubectl.run(&["create", "--raw", &path, "-f", "-", "--as", TENANT], &binding.to_string())
    };
    for path in ["bindings", "pods/probe/binding"] {
        let output = bind(path, json!({"weir.dev/capture": "{}"}));
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && error.contains(FROZEN), "{path}: {error}");
    }
    let output = bind("pods/probe/binding", json!({"scheduler": "ours"}));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let bound = cluster.get("/api/v1/namespaces/shop/pods/probe").expect_ok();
    assert_eq!(bound["metadata"]["annotations"], json!({"scheduler": "ours"}), "a Binding's annotations reach the pod");
}

#[test]
fn injector_annotations_need_the_injector() {
    let known_only = |text: &str| text.replacen("expression: \"[]\"", "expression: \"['default']\"", 1);
    for revisions_are_known in [true, false] {
        let edit = |text: &str| if revisions_are_known { known_only(text) } else { text.to_owned() };
        let Some((cluster, _)) = with_policies(edit) else { return };
        let revisions = [None, Some("default"), Some("other")];
        let (mut wrong, mut count) = (Vec::new(), 0);
        for (i, enabled) in [None, Some("enabled"), Some("disabled")].into_iter().enumerate() {
            for (j, revision) in revisions.into_iter().enumerate() {
                let namespace = format!("shop-{i}{j}");
                let of_namespace = labels(&[("istio-injection", enabled), ("istio.io/rev", revision)]);
                cluster.create_namespace(&namespace, &of_namespace);
                for inject in [None, Some("true"), Some("false")] {
                    for pods in revisions {
                        let mut asked = annotated("web", &json!({"weir.dev/capture": "{}"}));
                        asked["metadata"]["labels"] =
                            labels(&[("sidecar.istio.io/inject", inject), ("istio.io/rev", pods)]);
                        // Without a list of revisions, any counts as ours.
                        let ours = |name: Option<&'static str>| {
                            if revisions_are_known { name } else { name.map(|_| "default") }
                        };
                        let expected = expected(enabled, ours(revision), inject, ours(pods));
                        let response = create(&cluster, &namespace, &asked);
                        let denied = response.code == 403 && response.message().contains(FORGED);
                        if denied == expected || (expected && response.code != 201) {
                            wrong.push(format!("{enabled:?} {revision:?} {inject:?} {pods:?}: {response:?}"));
                        }
                        count += 1;
                    }
                }
            }
        }
        assert_eq!(wrong, Vec::<String>::new(), "revisions are known: {revisions_are_known}");
        assert_eq!(count, 81);
    }
}

#[test]
fn exceptions_of_injector_annotations() {
    let Some((cluster, _)) = with_policies(str::to_owned) else { return };
    for key in ["weir.dev/capture", "weir.dev/original", "weir.dev/anything"] {
        assert_eq!(create(&cluster, "plain", &annotated("web", &json!({key: "{}"}))).code, 403, "{key}");
    }
    create(&cluster, "plain", &annotated("web", &json!({"weir.dev/ipv6": "leave"}))).expect_ok();
    // The output of `weir inject`.
    cluster.create_namespace("offline", &json!({"weir.dev/offline-injection": "allowed"}));
    create(&cluster, "offline", &annotated("web", &json!({"weir.dev/capture": "{}"}))).expect_ok();
    // Never sent to the webhook, whatever the label.
    cluster.ensure_namespace("local-path-storage", &json!({"istio-injection": "enabled"}));
    assert_eq!(create(&cluster, "local-path-storage", &annotated("web", &json!({"weir.dev/capture": "{}"}))).code, 403);
}

#[test]
fn every_annotation_about_capture_is_frozen_by_name() {
    let annotations = SETTINGS.iter().filter(|setting| setting.source == SettingSource::Annotation);
    let missing: Vec<&str> =
        annotations.map(|setting| setting.name).filter(|name| !POLICIES.contains(&format!("'{name}'"))).collect();
    assert_eq!(missing, Vec::<&str>::new());
}

/// CEL walks maps in quadratic time, and denies when its budget is spent.
#[test]
fn pods_with_very_many_annotations_cost_little() {
    let Some((cluster, kubectl)) = with_policies(str::to_owned) else { return };
    let many = |prefix: &str| -> Value {
        // 256 KiB of keys and values is the most that the API server takes.
        (0..20_000).map(|number| (format!("{prefix}{number}"), "".into())).collect::<serde_json::Map<_, _>>().into()
    };
    let begun = Instant::now();
    cluster.post("/api/v1/namespaces/plain/pods", &annotated("many", &many("a"))).expect_ok();
    cluster.post("/api/v1/namespaces/shop/pods", &annotated("many", &many("a"))).expect_ok();
    merge(&kubectl, TENANT, "many", "", &json!({"note": "b"}), true).unwrap();
    for key in ["weir.dev/capture", "traffic.sidecar.istio.io/excludeInboundPorts"] {
        let denied = merge(&kubectl, TENANT, "many", "", &json!({key: "b"}), true).unwrap_err();
        assert!(denied.contains(FROZEN), "{denied}");
    }
    let mut forged = many("a");
    forged["weir.dev/capture"] = "{}".into();
    assert_eq!(create(&cluster, "plain", &annotated("forged", &forged)).code, 403);
    assert!(begun.elapsed() < Duration::from_mins(1), "{:?}", begun.elapsed());
}

#[test]
fn example_policy_denies_the_uid_of_the_proxy() {
    let example = include_str!("../../../../manifests/examples/deny-proxy-uid.yaml");
    let with_example = |text: &str| format!("{text}\n---\n{example}");
    let Some((cluster, _)) = with_policies(with_example) else { return };
    let with = |of_pod: &Value, of_app: &Value, proxy: &str| {
        let mut pod = pod("web");
        pod["spec"]["securityContext"] = of_pod.clone();
        pod["spec"]["containers"][0]["securityContext"] = of_app.clone();
        let proxy =
            json!({"name": "istio-proxy", "image": proxy, "securityContext": {"runAsUser": 1337, "runAsGroup": 1337}});
        pod["spec"]["initContainers"] = json!([proxy]);
        create(&cluster, "shop", &pod)
    };
    let (none, mesh) = (json!({}), "docker.io/istio/proxyv2:1.28.0");
    wait_until("the example is enforced", || {
        let response = with(&none, &json!({"runAsUser": 1337}), mesh);
        if response.code == 422 || response.code == 403 { Ok(()) } else { Err(format!("{response:?}")) }
    });
    for (of_pod, of_app, proxy) in [
        (json!({"runAsUser": 1337}), none.clone(), mesh),
        (json!({"runAsGroup": 1337}), none.clone(), mesh),
        (none.clone(), json!({"runAsGroup": 1337}), mesh),
        // The name of the proxy is no excuse for an image of one's own.
        (none.clone(), none.clone(), "registry.example/istio-proxy:1"),
    ] {
        let response = with(&of_pod, &of_app, proxy);
        assert!(response.message().contains("1337"), "{of_pod} {of_app} {proxy}: {response:?}");
    }
    with(&none, &none, mesh).expect_ok();
    with(&json!({"runAsUser": 1337}), &json!({"runAsUser": 1000}), mesh).expect_ok();
}

#[test]
fn example_policy_denies_opting_out() {
    let example = include_str!("../../../../manifests/examples/deny-opt-out.yaml");
    let Some((cluster, _)) = with_policies(|text| format!("{text}\n---\n{example}")) else { return };
    cluster.create_namespace("cards", &json!({"istio-injection": "enabled", "pci": "true"}));
    let with = |namespace: &str, labels: Value| {
        let mut pod = pod("web");
        pod["metadata"]["labels"] = labels;
        create(&cluster, namespace, &pod)
    };
    let out = json!({"sidecar.istio.io/inject": "false"});
    wait_until("the example is enforced", || {
        let response = with("cards", out.clone());
        if response.message().contains("must not opt out") { Ok(()) } else { Err(format!("{response:?}")) }
    });
    with("shop", out).expect_ok();
    for labels in [Value::Null, json!({"app": "web"}), json!({"sidecar.istio.io/inject": "true"})] {
        with("cards", labels).expect_ok();
    }
}
