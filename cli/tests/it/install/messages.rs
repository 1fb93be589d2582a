//! Previews, questions and warnings of `weir install`, `upgrade` and `uninstall`.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{CONFIGURATIONS, Cluster};
use crate::run::weir;

#[test]
fn values_with_two_documents_are_rejected_with_the_place() {
    let dir = tempfile::tempdir().unwrap();
    let values = dir.path().join("values.yaml");
    std::fs::write(&values, "images: {hub: r.example}\n---\nplatform: k3s\n").unwrap();
    let run = weir(&["install", "--dry-run", "--values", values.to_str().unwrap()], "");
    assert_eq!(run.code, 1);
    assert!(run.stderr.contains("values.yaml: has more than one YAML document, at line 3, column 1"), "{}", run.stderr);
}

#[test]
fn install_shows_what_will_change_and_asks() {
    let cluster = Cluster::new(true);
    let hub = ["--set", "images.hub=r.example", "--kubeconfig", cluster.kubeconfig.as_str()];
    let bare = weir(&["install", "-y", "--kubeconfig", &cluster.kubeconfig], "");
    assert!(bare.code == 1 && bare.stderr.contains("images.hub: not set, and weir-agent:"), "{}", bare.stderr);
    let asked = weir(&[&["install"], &hub[..]].concat(), "");
    assert!(asked.code == 2 && asked.stderr.contains("Continue? stdin is not a terminal; pass -y"), "{}", asked.stderr);
    for line in [
        "context:    test\n",
        &format!("server:     {}/\n", cluster.server.url()),
        "+ daemonset.apps/weir-agent -n weir-node\n",
    ] {
        assert!(asked.stdout.contains(line), "{line}: {}", asked.stdout);
    }
    assert_eq!(cluster.objects(), [""; 0], "nobody has confirmed");
    let early = cluster.run(&["upgrade"]);
    assert!(early.code == 1 && early.stderr.contains("Weir is not installed in this cluster"), "{}", early.stderr);

    let done = cluster.weir(&["install"]);
    assert!(done.contains("\nWeir is installed.\n") && !done.contains("comes up"), "{done}");
    // Nothing to change, nothing to ask.
    assert_eq!(weir(&[&["install"], &hub[..]].concat(), "").code, 0);
    let upgrade = cluster.weir(&["upgrade", "--set", "images.tag=9.9.9"]);
    assert!(upgrade.contains("running:    webhook default: r.example/weir-webhook:"), "{upgrade}");
    let change = format!(
        "~ deployment.apps/weir-webhook -n weir-system\n    spec.template.spec.containers[0].image: r.example/weir-webhook:{} -> r.example/weir-webhook:9.9.9\n",
        env!("CARGO_PKG_VERSION")
    );
    assert!(upgrade.contains(&change), "{upgrade}");
}

#[test]
fn rights_that_are_not_needed_any_more_are_deleted() {
    let cluster = Cluster::new(true);
    let istio = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "istio-system"}});
    cluster.server.put("namespaces", istio);
    let created = cluster.weir(&["install", "--set", "config.from=istio,node.deletePods=true"]);
    for line in [
        "role.rbac.authorization.k8s.io/weir-webhook in istio-system created\n",
        "role.rbac.authorization.k8s.io/weir-webhook in weir-system created\n",
    ] {
        assert!(created.contains(line), "{line}: {created}");
    }
    cluster.weir(&["install", "--revision", "1-1", "--set", "config.from=istio"]);
    cluster.weir(&["tag", "set", "prod", "--revision", "1-1"]);
    let said = cluster.weir(&["install"]);
    assert!(said.contains("- role.rbac.authorization.k8s.io/weir-webhook -n istio-system\n"), "{said}");
    let roles = |resource: &str, namespace: &str, name: &str| cluster.server.get(resource, namespace, name).is_some();
    assert!(!roles("roles", "istio-system", "weir-webhook") && !roles("rolebindings", "istio-system", "weir-webhook"));
    assert!(!roles("clusterroles", "", "weir-agent-delete-pods"));
    assert!(roles("roles", "weir-system", "weir-webhook") && roles("roles", "istio-system", "weir-webhook-1-1"));
    assert!(roles("clusterroles", "", "weir-revision-tag-prod"), "a tag's own");
}

#[test]
fn install_names_istios_injector_and_plugin() {
    let cluster = Cluster::new(true);
    let entry = json!({
        "name": "namespace.sidecar-injector.istio.io", "admissionReviewVersions": ["v1"], "sideEffects": "None", "failurePolicy": "Fail",
        "clientConfig": {"service": {"name": "istiod", "namespace": "istio-system", "path": "/inject"}},
        "namespaceSelector": {"matchLabels": {"istio-injection": "enabled"}},
        "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["nothing"]}],
    });
    let metadata = json!({"name": "istio-sidecar-injector", "labels": {"istio.io/rev": "default"}});
    let object = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration", "metadata": metadata, "webhooks": [entry]});
    cluster.server.put(CONFIGURATIONS, object);
    let metadata =
        json!({"namespace": "istio-system", "name": "istio-cni-node", "labels": {"k8s-app": "istio-cni-node"}});
    cluster
        .server
        .put("daemonsets", json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": metadata, "spec": {}}));
    let said = cluster.weir(&["install", "--dry-run=server"]);
    assert!(
        said.contains(
            "Istio's own injector is active for revision default (mutatingwebhookconfiguration istio-sidecar-injector)"
        ),
        "{said}"
    );
    assert!(said.contains("istio-cni is installed (daemonset istio-system/istio-cni-node)"), "{said}");
    let beside = cluster.weir(&["install", "--dry-run=server", "--revision", "weir"]);
    assert!(!beside.contains("injector is active"), "{beside}");
}

#[test]
fn waiting_shows_reasons_and_gives_up_on_what_cannot_heal() {
    let cluster = Cluster::new(false);
    let labels = json!({"app.kubernetes.io/name": "weir-webhook", "weir.dev/rev": "default"});
    let status = json!({"containerStatuses": [{"state": {"waiting": {"reason": "ImagePullBackOff", "message": "registry not reachable"}}}]});
    let pod = |name: &str, status: Value| json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "weir-system", "name": name, "labels": labels}, "spec": {"nodeName": "n"}, "status": status});
    cluster.server.put("pods", pod("slow", status));
    let run = cluster.run(&["install", "--timeout", "2s"]);
    assert_eq!(run.code, 1);
    assert!(run.stdout.contains("  pod slow on n: ImagePullBackOff: registry not reachable\n"), "{}", run.stdout);
    let status = json!({"containerStatuses": [{"state": {"waiting": {"reason": "InvalidImageName", "message": "cannot parse"}}}]});
    cluster.server.put("pods", pod("hopeless", status));
    let started = Instant::now();
    let run = cluster.run(&["install", "--timeout", "60s"]);
    assert!(started.elapsed() < Duration::from_secs(30) && run.code == 1, "{}", run.stderr);
    assert!(
        run.stderr.contains("InvalidImageName: cannot parse")
            && run.stderr.contains("waiting any longer would not help"),
        "{}",
        run.stderr
    );
}

#[test]
fn uninstall_names_gateways_and_nodes_that_keep_the_plugin() {
    let cluster = Cluster::new(true);
    cluster.weir(&["install"]);
    let gateway = |kind: &str, name: &str, image: &str| {
        json!({"apiVersion": "apps/v1", "kind": kind, "metadata": {"namespace": "edge", "name": name},
            "spec": {"template": {"spec": {"containers": [{"name": "istio-proxy", "image": image}]}}}})
    };
    cluster.server.put("deployments", gateway("Deployment", "ingress", "auto"));
    cluster.server.put("deployments", gateway("Deployment", "shop", "shop:1"));
    for (name, message) in [
        ("a", "no conflist has our entry\nremoved the plugin"),
        ("b", "restored: x\nkept the plugin (it does nothing by itself): 3 attachments"),
    ] {
        let status = json!({"initContainerStatuses": [{"state": {"terminated": {"exitCode": 0, "message": message}}}]});
        cluster.server.put("pods", json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "weir-node", "name": name, "labels": {"app.kubernetes.io/name": "weir-uninstall"}}, "spec": {"nodeName": format!("node-{name}")}, "status": status}));
    }
    let said = cluster.weir(&["uninstall", "-y"]);
    assert!(said.contains("cannot start any more: Deployment edge/ingress\n"), "{said}");
    assert!(said.contains("the plugin's binary stays on 1 node (node-b): "), "{said}");
    assert!(cluster.server.get("deployments", "weir-system", "weir-webhook").is_none(), "the rest goes all the same");
}

#[test]
fn manifests_run_no_image_but_ours() {
    for set in ["node.uninstall=false", "node.uninstall=true"] {
        let text = weir(&["manifest", "generate", "--set", &format!("images.hub=r.example,{set}")], "").stdout;
        let images: Vec<&str> =
            text.lines().filter_map(|line| line.trim().trim_start_matches("- ").strip_prefix("image: ")).collect();
        assert!(
            images.len() >= 2 && images.iter().all(|image| image.trim_matches('"').starts_with("r.example/weir-")),
            "{images:?}"
        );
    }
}
