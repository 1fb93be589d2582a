//! `weir install`, `uninstall` and `tag` against an API server.

mod messages;

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;
use weir_apiserver::{ApiServer, kube_apiserver_or_skip};

use crate::run::{Run, weir};

const CONFIGURATIONS: &str = "mutatingwebhookconfigurations";

/// A cluster whose controllers can make every workload ready at once.
struct Cluster {
    server: Arc<ApiServer>,
    kubeconfig: String,
    _folder: TempDir,
    controllers: Option<(Arc<AtomicBool>, JoinHandle<()>)>,
}

impl Cluster {
    fn new(controllers: bool) -> Self {
        let server = Arc::new(ApiServer::cluster().expect("a port"));
        let folder = tempfile::tempdir().expect("a folder");
        let kubeconfig = server.kubeconfig(folder.path()).expect("a kubeconfig").to_str().expect("UTF-8").to_owned();
        let controllers = controllers.then(|| {
            let (stop, server) = (Arc::new(AtomicBool::new(false)), Arc::clone(&server));
            let stopped = Arc::clone(&stop);
            let work = move || {
                while !stopped.load(Ordering::Relaxed) {
                    make_ready(&server);
                    thread::sleep(Duration::from_millis(20));
                }
            };
            (stop, thread::spawn(work))
        });
        Self { server, kubeconfig, _folder: folder, controllers }
    }

    /// Runs a command; an installation with images of a registry, and without a question.
    fn run(&self, args: &[&str]) -> Run {
        let settings: &[&str] =
            if matches!(args[0], "install" | "upgrade") { &["-y", "--set", "images.hub=r.example"] } else { &[] };
        weir(&[&args[..1], settings, &args[1..], &["--kubeconfig", &self.kubeconfig]].concat(), "")
    }

    fn weir(&self, args: &[&str]) -> String {
        let run = self.run(args);
        assert_eq!(run.code, 0, "{args:?}: {}{}", run.stdout, run.stderr);
        run.stdout
    }

    fn configuration(&self, name: &str) -> Value {
        self.server.get(CONFIGURATIONS, "", name).unwrap_or_else(|| panic!("no {name}"))
    }

    /// Returns the objects that a new cluster does not have, as `RESOURCE NAMESPACE/NAME`.
    fn objects(&self) -> Vec<String> {
        let mut all = Vec::new();
        for resource in [
            "namespaces",
            "serviceaccounts",
            "roles",
            "rolebindings",
            "clusterroles",
            "clusterrolebindings",
            "configmaps",
            "services",
            "deployments",
            "daemonsets",
            "poddisruptionbudgets",
            "secrets",
            "leases",
            CONFIGURATIONS,
        ] {
            for object in self.server.list(resource) {
                let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default().to_owned();
                let (namespace, name) = (text("namespace"), text("name"));
                let standard = ["default", "kube-system", "kube-public", "kube-node-lease"];
                if !(resource == "namespaces" && standard.contains(&name.as_str())) && name != "default" {
                    all.push(format!("{resource} {namespace}/{name}"));
                }
            }
        }
        all
    }

    /// Returns the requests that changed objects since an index.
    fn writes(&self, since: usize) -> Vec<String> {
        let asked = self.server.requests().split_off(since);
        asked.into_iter().filter(|asked| !asked.starts_with("GET ") && !asked.contains("dryRun")).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.controllers.take() {
            stop.store(true, Ordering::Relaxed);
            let _ = thread.join();
        }
    }
}

fn make_ready(server: &ApiServer) {
    for resource in ["deployments", "daemonsets"] {
        for mut object in server.list(resource) {
            let wanted = json!({
                "observedGeneration": object["metadata"]["generation"],
                "updatedReplicas": object["spec"]["replicas"],
                "availableReplicas": object["spec"]["replicas"],
                "desiredNumberScheduled": 3,
                "updatedNumberScheduled": 3,
                "numberAvailable": 3,
            });
            if object["status"] != wanted {
                object["status"] = wanted;
                server.put(resource, object);
            }
        }
    }
}

fn is_off(configuration: &Value) -> bool {
    let entries = configuration["webhooks"].as_array().unwrap();
    let off = |entry: &Value| entry["namespaceSelector"].to_string().contains("weir.dev/deactivated");
    assert!(entries.iter().all(off) || !entries.iter().any(off));
    entries.iter().any(off)
}

/// Writes caBundle as the webhook does: as its own field manager, and nothing else.
fn with_bundle(cluster: &Cluster, name: &str, bundle: &str) {
    let mut object = cluster.configuration(name);
    for entry in object["webhooks"].as_array_mut().unwrap() {
        entry["clientConfig"]["caBundle"] = STANDARD.encode(bundle).into();
    }
    cluster.server.put(CONFIGURATIONS, object);
}

#[test]
fn install_waits_for_the_webhook_and_is_idempotent() {
    let cluster = Cluster::new(true);
    let said = cluster.weir(&["install"]);
    assert!(said.contains("deployment.apps/weir-webhook created\n"), "{said}");
    assert!(said.contains("deployment.apps/weir-webhook is ready\n"), "{said}");
    let order = |text: &str| said.find(text).unwrap_or_else(|| panic!("{text}: {said}"));
    assert!(order("namespace/weir-system") < order("configmap/weir-webhook"));
    assert!(order("daemonset.apps/weir-agent is ready") < order("weir-sidecar-injector created"));
    assert!(cluster.writes(0).last().unwrap().contains(CONFIGURATIONS));

    with_bundle(&cluster, "weir-sidecar-injector", "CA");
    let again = cluster.weir(&["install"]);
    assert!(!again.contains(" created\n") && !again.contains(" configured\n"), "{again}");
    let kept = &cluster.configuration("weir-sidecar-injector")["webhooks"][0]["clientConfig"]["caBundle"];
    assert_eq!(*kept, STANDARD.encode("CA"), "the webhook's field");

    // An upgrade changes only what differs.
    let upgraded = cluster.weir(&["install", "--set", "images.tag=9.9.9"]);
    let changed: Vec<&str> = upgraded.lines().filter(|line| line.ends_with(" configured")).collect();
    assert_eq!(
        changed,
        ["deployment.apps/weir-webhook configured", "daemonset.apps/weir-agent configured"],
        "{upgraded}"
    );
}

#[test]
fn dry_run_changes_nothing() {
    let cluster = Cluster::new(false);
    let client = weir(&["install", "--dry-run", "--set", "images.hub=r.example"], "");
    assert_eq!(client.code, 0, "{}", client.stderr);
    assert!(client.stdout.contains("deployment.apps/weir-webhook (dry run)\n"));
    let server = cluster.weir(&["install", "--dry-run=server"]);
    assert!(server.contains("+ deployment.apps/weir-webhook -n weir-system\n"), "{server}");
    assert!(server.contains(" to create, 0 to change, 0 to delete, 0 unchanged\nserver dry run"), "{server}");
    assert_eq!(cluster.objects(), [""; 0]);
}

#[test]
fn install_fails_if_workloads_are_not_ready() {
    let cluster = Cluster::new(false);
    let run = cluster.run(&["install", "--timeout", "1s"]);
    assert_eq!(run.code, 1, "{}", run.stderr);
    assert!(run.stderr.contains("deployment.apps/weir-webhook was not ready in 1 s"), "{}", run.stderr);
    assert!(run.stderr.contains("daemonset.apps/weir-agent") || run.stderr.contains("no pods found"), "{}", run.stderr);
    assert!(run.stderr.contains("webhook configurations were not applied"), "{}", run.stderr);
    assert!(cluster.server.list(CONFIGURATIONS).is_empty());
    // Without waiting it succeeds.
    cluster.weir(&["install", "--wait=false"]);
    assert_eq!(cluster.server.list(CONFIGURATIONS).len(), 1);
}

#[test]
fn all_rejected_objects_are_reported_before_any_change() {
    let cluster = Cluster::new(true);
    let run = cluster.run(&["install", "--cert-manager", "--platform", "openshift"]);
    assert_eq!(run.code, 1);
    for wanted in [
        "certificate.cert-manager.io/weir-webhook: ",
        "issuer.cert-manager.io/",
        "securitycontextconstraints.security.openshift.io/weir-node: ",
    ] {
        assert!(run.stderr.contains(wanted), "{wanted}: {}", run.stderr);
    }
    assert!(run.stderr.contains("nothing was applied"), "{}", run.stderr);
    assert_eq!(cluster.objects(), [""; 0]);
}

#[test]
fn conflicting_fields_need_force_conflicts() {
    let cluster = Cluster::new(true);
    cluster.weir(&["install"]);
    // Like `kubectl scale`.
    let mut deployment = cluster.server.get("deployments", "weir-system", "weir-webhook").unwrap();
    deployment["spec"]["replicas"] = 7.into();
    let owned = json!({"manager": "kubectl", "operation": "Update", "apiVersion": "apps/v1", "fieldsType": "FieldsV1",
        "fieldsV1": {"f:spec": {"f:replicas": {}}}});
    for entry in deployment["metadata"]["managedFields"].as_array_mut().unwrap() {
        if let Some(spec) = entry["fieldsV1"]["f:spec"].as_object_mut() {
            spec.remove("f:replicas");
        }
    }
    deployment["metadata"]["managedFields"].as_array_mut().unwrap().push(owned);
    cluster.server.put("deployments", deployment);

    let run = cluster.run(&["install", "--set", "webhook.replicas=3"]);
    assert_eq!(run.code, 1, "{}", run.stdout);
    assert!(
        run.stderr.contains("deployment.apps/weir-webhook: ") && run.stderr.contains(".spec.replicas"),
        "{}",
        run.stderr
    );
    assert!(run.stderr.contains("--force-conflicts"), "{}", run.stderr);
    let replicas =
        || cluster.server.get("deployments", "weir-system", "weir-webhook").unwrap()["spec"]["replicas"].clone();
    assert_eq!(replicas(), 7);
    cluster.weir(&["install", "--set", "webhook.replicas=3", "--force-conflicts"]);
    assert_eq!(replicas(), 3);
}

#[test]
fn tags_can_be_set_moved_listed_and_removed() {
    let cluster = Cluster::new(true);
    for revision in ["1-0", "1-1"] {
        let said = cluster.weir(&["install", "--revision", revision]);
        assert!(said.contains("no node agent is installed"), "{said}");
    }
    with_bundle(&cluster, "weir-sidecar-injector-1-0", "OLD\n");
    with_bundle(&cluster, "weir-sidecar-injector-1-1", "NEW\n");
    let labels = json!({"istio.io/rev": "prod", "kubernetes.io/metadata.name": "shop"});
    cluster.server.put(
        "namespaces",
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": labels}}),
    );

    let missing = cluster.run(&["tag", "set", "prod", "--revision", "2-0"]);
    assert_eq!(missing.code, 1);
    assert!(
        missing.stderr.contains("revision 2-0 is not installed in this cluster; revisions: 1-0, 1-1"),
        "{}",
        missing.stderr
    );
    cluster.weir(&["tag", "set", "prod", "--revision", "1-0"]);
    let tag = || cluster.configuration("weir-revision-tag-prod");
    let service = |tag: &Value| tag["webhooks"][0]["clientConfig"]["service"]["name"].clone();
    let bundle =
        |tag: &Value| STANDARD.decode(tag["webhooks"][0]["clientConfig"]["caBundle"].as_str().unwrap()).unwrap();
    assert_eq!((service(&tag()), bundle(&tag())), (json!("weir-webhook-1-0"), b"OLD\n".to_vec()));
    assert!(cluster.server.get("clusterroles", "", "weir-revision-tag-prod").is_some());

    let refused = cluster.run(&["tag", "set", "prod", "--revision", "1-1"]);
    assert!(refused.code == 1 && refused.stderr.contains("--overwrite"), "{}", refused.stderr);
    assert_eq!(service(&tag()), "weir-webhook-1-0");
    cluster.weir(&["tag", "set", "prod", "--revision", "1-1", "--overwrite"]);
    // Both CAs are trusted until the new revision's webhook has written its own.
    assert_eq!((service(&tag()), bundle(&tag())), (json!("weir-webhook-1-1"), b"OLD\nNEW\n".to_vec()));
    let role = cluster.server.get("clusterrolebindings", "", "weir-revision-tag-prod").unwrap();
    assert_eq!(role["subjects"][0]["name"], "weir-webhook-1-1");

    assert_eq!(cluster.weir(&["tag", "list"]), "TAG   REVISION  NAMESPACES\nprod  1-1       shop\n");
    let used = cluster.run(&["tag", "remove", "prod"]);
    assert!(used.code == 2 && used.stderr.contains("Namespaces use tag prod: shop"), "{}", used.stderr);
    cluster.weir(&["tag", "remove", "prod", "-y"]);
    assert_eq!(cluster.weir(&["tag", "list", "-o", "json"]), "[]\n");
    assert!(cluster.server.get("clusterroles", "", "weir-revision-tag-prod").is_none());
    let gone = cluster.run(&["tag", "remove", "prod"]);
    assert!(gone.code == 1 && gone.stderr.contains("tag prod not found"), "{}", gone.stderr);
}

#[test]
fn default_tag_deactivates_the_default_revision() {
    let cluster = Cluster::new(true);
    cluster.weir(&["install", "--set", "webhook.enableNamespacesByDefault=true"]);
    cluster.weir(&["install", "--revision", "1-1"]);
    assert!(!is_off(&cluster.configuration("weir-sidecar-injector")));
    let said = cluster.weir(&["tag", "set", "default", "--revision", "1-1"]);
    assert!(said.contains("weir-sidecar-injector configured, deactivated"), "{said}");
    let tag = cluster.configuration("weir-revision-tag-default");
    let names: Vec<&str> =
        tag["webhooks"].as_array().unwrap().iter().map(|entry| entry["name"].as_str().unwrap()).collect();
    assert_eq!(names.len(), 5, "namespaces without a label go along: {names:?}");
    assert!(is_off(&cluster.configuration("weir-sidecar-injector")));

    // Installing the default revision again does not move the default.
    let again = cluster.weir(&["install", "--set", "webhook.enableNamespacesByDefault=true"]);
    assert!(again.contains("revision 1-1 is the default"), "{again}");
    assert!(is_off(&cluster.configuration("weir-sidecar-injector")));
    cluster.weir(&["tag", "remove", "default", "-y"]);
    assert!(!is_off(&cluster.configuration("weir-sidecar-injector")));
}

#[test]
fn uninstall_removes_the_plugin_first_and_keeps_foreign_objects() {
    let cluster = Cluster::new(true);
    cluster.weir(&["install", "--platform", "k3s", "--set", "images.hub=r.example"]);
    cluster.weir(&["install", "--revision", "1-1"]);
    for name in ["weir-webhook-ca", "weir-webhook-ca-1-1", "somebody-else"] {
        let object = |kind: &str, version: &str| json!({"apiVersion": version, "kind": kind, "metadata": {"namespace": "weir-system", "name": name}});
        cluster.server.put("secrets", object("Secret", "v1"));
        cluster.server.put("leases", object("Lease", "coordination.k8s.io/v1"));
    }
    let asked = cluster.run(&["uninstall"]);
    assert!(asked.code == 2 && asked.stderr.contains("pass -y"), "{}", asked.stderr);

    // Uninstalling one revision keeps the other one and the agent.
    cluster.weir(&["uninstall", "--revision", "1-1", "-y"]);
    assert!(cluster.objects().iter().all(|object| !object.ends_with("1-1")), "{:?}", cluster.objects());
    assert!(cluster.server.get("daemonsets", "weir-node", "weir-agent").is_some());
    assert!(cluster.server.get("deployments", "weir-system", "weir-webhook").is_some());

    let since = cluster.server.requests().len();
    cluster.weir(&["uninstall", "-y"]);
    let writes = cluster.writes(since);
    let at = |method: &str, part: &str| {
        writes
            .iter()
            .position(|write| write.starts_with(method) && write.contains(part))
            .unwrap_or_else(|| panic!("{part}: {writes:#?}"))
    };
    assert_eq!(at("DELETE", CONFIGURATIONS), 0);
    assert!(at("DELETE", "daemonsets/weir-agent") < at("PATCH", "daemonsets/weir-uninstall"));
    assert!(at("PATCH", "daemonsets/weir-uninstall") < at("DELETE", "daemonsets/weir-uninstall"));
    assert!(at("DELETE", "daemonsets/weir-uninstall") < at("DELETE", "deployments/weir-webhook"));
    let left = [
        "namespaces /weir-node",
        "namespaces /weir-system",
        "secrets weir-system/somebody-else",
        "leases weir-system/somebody-else",
    ];
    assert_eq!(cluster.objects(), left);
    assert_eq!(cluster.weir(&["uninstall", "-y"]), "Weir is not installed\n");

    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "weir-system", "name": "guest"}});
    cluster.server.put("pods", pod);
    let purged = cluster.weir(&["uninstall", "-y", "--purge"]);
    assert!(purged.contains("kept namespace/weir-system: it has other pods: guest"), "{purged}");
    assert!(purged.contains("namespace/weir-node deleted"), "{purged}");
}

#[test]
fn uninstall_can_be_continued_after_a_timeout() {
    let cluster = Cluster::new(false);
    cluster.weir(&["install", "--wait=false"]);
    let over = Arc::new(AtomicBool::new(false));
    let (server, stopped) = (Arc::clone(&cluster.server), Arc::clone(&over));
    let never_clean = thread::spawn(move || {
        while !stopped.load(Ordering::Relaxed) {
            if let Some(mut found) =
                server.get("daemonsets", "weir-node", "weir-uninstall").filter(|found| found["status"].is_null())
            {
                found["status"] = json!({"observedGeneration": found["metadata"]["generation"], "desiredNumberScheduled": 2, "updatedNumberScheduled": 2, "numberAvailable": 1});
                server.put("daemonsets", found);
            }
            thread::sleep(Duration::from_millis(5));
        }
    });
    let run = cluster.run(&["uninstall", "-y", "--timeout", "3s"]);
    over.store(true, Ordering::Relaxed);
    never_clean.join().unwrap();
    assert_eq!(run.code, 1, "{}", run.stdout);
    assert!(run.stderr.contains("daemonset.apps/weir-uninstall was not ready in 3 s: 1 of 2 ready"), "{}", run.stderr);
    assert!(cluster.server.list(CONFIGURATIONS).is_empty(), "pods are not sent any more");
    assert!(cluster.server.get("deployments", "weir-system", "weir-webhook").is_some());
    // The next run continues to wait for the nodes, although the agent is gone.
    let again = cluster.run(&["uninstall", "-y", "--timeout", "1s"]);
    assert!(again.code == 1 && again.stderr.contains("1 of 2 ready"), "{}", again.stderr);
    make_ready(&cluster.server);
    let through = cluster.weir(&["uninstall", "-y"]);
    assert!(through.contains("daemonset.apps/weir-uninstall is ready"), "{through}");
    assert_eq!(cluster.objects(), ["namespaces /weir-node", "namespaces /weir-system"]);
}

#[test]
fn install_ends_an_interrupted_uninstall() {
    let cluster = Cluster::new(false);
    cluster.weir(&["install", "--wait=false"]);
    assert_eq!(cluster.run(&["uninstall", "-y", "--timeout", "1s"]).code, 1);
    let uninstaller = || cluster.server.get("daemonsets", "weir-node", "weir-uninstall");
    assert!(uninstaller().is_some());
    let again = cluster.weir(&["install", "--wait=false"]);
    let order = |text: &str| again.find(text).unwrap_or_else(|| panic!("{text}: {again}"));
    assert!(order("daemonset.apps/weir-uninstall deleted") < order("daemonset.apps/weir-agent created"), "{again}");
    assert!(uninstaller().is_none());
}

#[test]
fn version_lists_components_in_the_cluster() {
    let cluster = Cluster::new(true);
    assert!(cluster.weir(&["version"]).ends_with("Weir is not installed in this cluster\n"));
    cluster.weir(&["install", "--set", "images.hub=r.example,images.tag=1.2.3"]);
    let printed = cluster.weir(&["version"]);
    assert!(printed.contains("webhook default: r.example/weir-webhook:1.2.3 ("), "{printed}");
    assert!(printed.contains("agent: r.example/weir-agent:1.2.3 ("), "{printed}");
}

/// Compares with kubectl: rejected objects, kept fields, and field managers.
#[test]
fn real_api_server_install_upgrade_tag_uninstall() {
    let Some(server) = kube_apiserver_or_skip() else { return };
    let folder = tempfile::tempdir().unwrap();
    let kubeconfig = server.kubeconfig().to_str().unwrap();
    let run = |args: &[&str]| weir(&[args, &["--kubeconfig", kubeconfig]].concat(), "");
    let ok = |args: &[&str]| {
        let run = run(args);
        assert_eq!(run.code, 0, "{args:?}: {}{}", run.stdout, run.stderr);
        run.stdout
    };
    let kubectl = |args: &[&str]| {
        let output = Command::new("kubectl")
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .args(args)
            .env("HOME", folder.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let ok = |args: &[&str]| {
        let settings: &[&str] = if args[0] == "install" { &["-y", "--set", "images.hub=r.example"] } else { &[] };
        ok(&[&args[..1], settings, &args[1..]].concat())
    };
    ok(&["install", "--dry-run=server"]);
    assert!(!kubectl(&["get", "namespaces", "-o", "name"]).contains("weir"), "a dry run");
    ok(&["install", "--wait=false"]);
    let again = ok(&["install", "--wait=false"]);
    assert!(!again.contains(" configured\n") && !again.contains(" created\n"), "{again}");

    kubectl(&["-n", "weir-system", "scale", "deployment/weir-webhook", "--replicas=7"]);
    let refused = run(&["install", "--wait=false", "-y", "--set", "images.hub=r.example"]);
    assert!(
        refused.code == 1 && refused.stderr.contains(".spec.replicas: conflict with \"kubectl\""),
        "{}",
        refused.stderr
    );
    ok(&["install", "--wait=false", "--force-conflicts"]);

    ok(&["install", "--wait=false", "--revision", "1-1"]);
    ok(&["tag", "set", "default", "--revision", "1-1"]);
    let selector = [
        "get",
        "mutatingwebhookconfiguration",
        "weir-sidecar-injector",
        "-o",
        "jsonpath={.webhooks[*].namespaceSelector}",
    ];
    assert_eq!(kubectl(&selector).matches("weir.dev/deactivated").count(), 4);
    ok(&["tag", "remove", "default", "-y"]);
    assert!(!kubectl(&selector).contains("weir.dev/deactivated"));

    let open = run(&["uninstall", "-y", "--wait=false"]);
    assert!(open.code == 1 && open.stderr.contains("the plugin is being removed from the nodes"), "{}", open.stderr);
    let status = r#"{"status": {"observedGeneration": 1, "currentNumberScheduled": 0, "desiredNumberScheduled": 0, "numberMisscheduled": 0, "numberReady": 0}}"#;
    kubectl(&[
        "-n",
        "weir-node",
        "patch",
        "daemonset",
        "weir-uninstall",
        "--subresource=status",
        "--type=merge",
        "-p",
        status,
    ]);
    // Not --purge: without a controller manager, nothing ends the namespaces.
    ok(&["uninstall", "-y"]);
    let left = [
        "get",
        "deployments,daemonsets,configmaps,roles,clusterroles,mutatingwebhookconfigurations",
        "-A",
        "-l",
        "app.kubernetes.io/part-of=weir",
        "-o",
        "name",
    ];
    assert_eq!(kubectl(&left), "");
}
