//! Weir beside Istio's own injector and istio-cni, and in their place.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::{fmt, fs};

use weir_cluster::Cluster;
use weir_cluster::files::IstioParts;
use weir_cluster::plan::{NODES, Runtime};
use weir_tests::try_wait_until;

use super::{Traffic, assert_new_pods_are_meshed, wait_for_agents};
use crate::mesh::{alone_or_skip, install, try_weir, weir};
use crate::scenario::{Scenario, is_from_the_mesh};

const INJECTOR_AND_CNI: IstioParts = IstioParts { injector: true, cni: true, ambient: false };
/// The revision of Weir beside Istio's injector.
const REVISION: &str = "weir";
/// Annotation of pods that Weir has injected: what their rules are.
const FROZEN: &str = "weir.dev/capture";

/// The injector of a pod.
#[derive(Debug, PartialEq)]
enum Injector {
    Istio,
    Weir,
}

impl Scenario {
    /// Asserts that all pods of Deployments were injected by `expected`, and are captured: their requests are the mesh's.
    #[track_caller]
    fn assert_injected_by(&self, expected: &Injector) {
        let pods = self.kubectl(&["get", "pods", "-l", "pod-template-hash", "-o", "json"]);
        let pods: serde_json::Value = serde_json::from_str(&pods).unwrap();
        for pod in pods["items"].as_array().unwrap() {
            if !pod["metadata"]["deletionTimestamp"].is_null() {
                continue;
            }
            let annotations = &pod["metadata"]["annotations"];
            assert!(!annotations["sidecar.istio.io/status"].is_null(), "no sidecar: {pod}");
            let injector = if annotations[FROZEN].is_null() { Injector::Istio } else { Injector::Weir };
            assert_eq!(&injector, expected, "{}", pod["metadata"]["name"]);
        }
        self.wait_for("deploy/client", &["http://web/headers"], "the request is the mesh's", is_from_the_mesh);
    }
}

/// Returns the plugins of the pods' network on every node.
fn plugins(cluster: &Cluster) -> Vec<Vec<String>> {
    let of = |node| {
        let list = fs::read(cluster.node(node).host_path("/etc/cni/net.d/10-pods.conflist")).unwrap();
        let list: serde_json::Value = serde_json::from_slice(&list).unwrap();
        let plugins = list["plugins"].as_array().unwrap();
        plugins.iter().map(|plugin| plugin["type"].as_str().unwrap().to_owned()).collect()
    };
    NODES.map(of).into()
}

fn wait_for_plugins(cluster: &Cluster, what: &str, expected: &[&str]) {
    try_wait_until(what, || {
        let plugins = plugins(cluster);
        Ok(if plugins.iter().all(|plugins| plugins == expected) { Ok(()) } else { Err(format!("{plugins:?}")) })
    })
    .unwrap();
}

fn install_istio(cluster: &Cluster, parts: IstioParts) {
    cluster.install_istio(parts).unwrap();
    if parts.cni {
        let status = ["-n", "istio-system", "rollout", "status", "daemonset/istio-cni-node", "--timeout=180s"];
        cluster.kubectl(&status, "").unwrap();
    }
}

/// Takes the injector and istio-cni off, as `istioctl install` without them does.
fn remove_istio(cluster: &Cluster) {
    keeping_binaries(cluster, || {
        let injector = ["delete", "mutatingwebhookconfiguration", "istio-sidecar-injector", "--ignore-not-found"];
        cluster.kubectl(&injector, "").unwrap();
        let cni = [
            "-n",
            "istio-system",
            "delete",
            "daemonset",
            "istio-cni-node",
            "--ignore-not-found",
            "--cascade=foreground",
        ];
        cluster.kubectl(&cni, "").unwrap();
    });
    cluster.install_istio(IstioParts::default()).unwrap();
}

/// Removes istio-cni; its binary stays for CRI-O, which stops no pod without the plugins that the pod was started with.
fn keeping_binaries(cluster: &Cluster, remove: impl FnOnce()) {
    let binaries = NODES.map(|node| cluster.node(node).host_path("/opt/cni/bin/istio-cni"));
    let contents = binaries.each_ref().map(|path| fs::read(path).unwrap());
    remove();
    for ((node, path), content) in NODES.into_iter().zip(&binaries).zip(contents) {
        if node.runtime == Runtime::CriO {
            fs::write(path, content).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        }
    }
}

/// Starts `weir migrate run`, and kills it when the first workload of the namespace has moved.
fn kill_migration(cluster: &Cluster, mesh: &Scenario) {
    let mut run = Command::new(weir_tests::bin("weir"))
        .args(["migrate", "run", "-y"])
        .env("KUBECONFIG", cluster.kubeconfig())
        .spawn()
        .unwrap();
    try_wait_until("the first workload is restarted", || {
        let markers = mesh.kubectl(&[
            "get",
            "deployments",
            "-o",
            "jsonpath={.items[*].metadata.annotations.weir\\.dev/migration}",
        ]);
        Ok(if markers.contains("/moving") { Ok(()) } else { Err(markers) })
    })
    .unwrap();
    run.kill().unwrap();
    run.wait().unwrap();
}

#[test]
fn migration_from_istio_and_back() {
    let Some((cluster, _lock)) = alone_or_skip() else { return };
    weir(cluster, &["uninstall", "-y"]).unwrap();
    cluster.load_istio_cni().unwrap();
    install_istio(cluster, INJECTOR_AND_CNI);
    wait_for_plugins(cluster, "istio-cni is in the list", &["bridge", "portmap", "istio-cni"]);
    let mesh = Scenario::with_patient_web(cluster, "migration");
    mesh.assert_injected_by(&Injector::Istio);
    let traffic = Traffic::start(&mesh);

    let settings = ["--set", "images.hub=localhost", "--set", "config.from=istio,node.enabled=true"];
    let printed = weir(cluster, &[&["install", "--yes", "--revision", REVISION][..], &settings].concat()).unwrap();
    assert!(printed.contains("istio-cni is installed"), "{printed}");
    wait_for_agents(cluster);
    mesh.restart();
    mesh.assert_injected_by(&Injector::Istio);
    let plan = weir(cluster, &["migrate", "plan", "-n", &mesh.namespace, "--live"]).unwrap();
    assert!(
        plan.contains("  equal: 3 (istio-cni): Deployment/client, Deployment/web-v1, Deployment/web-v2\n"),
        "{plan}"
    );
    assert!(plan.contains("Pod/traffic") && plan.contains("it has no controller"), "{plan}");

    kill_migration(cluster, &mesh);
    let printed = weir(cluster, &["migrate", "run", "-y"]).unwrap();
    assert!(printed.contains("(resuming: moving)") && printed.contains(": moved\n"), "{printed}");
    mesh.assert_injected_by(&Injector::Weir);
    weir(cluster, &["migrate", "rollback", "-y"]).unwrap();
    mesh.assert_injected_by(&Injector::Istio);
    weir(cluster, &["migrate", "run", "-y", "--batch", "3"]).unwrap();
    mesh.assert_injected_by(&Injector::Weir);

    let (succeeds, printed) = try_weir(cluster, &["migrate", "finish", "-y"]).unwrap();
    assert!(!succeeds && printed.contains("/traffic: Istio's injector has injected it"), "{printed}");
    traffic.assert_unharmed();
    mesh.kubectl(&["delete", "pod", "traffic"]);
    let traffic = Traffic::start(&mesh);
    keeping_binaries(cluster, || drop(weir(cluster, &["migrate", "finish", "-y"]).unwrap()));
    cluster.install_istio(IstioParts::default()).unwrap();
    wait_for_plugins(cluster, "only Weir is in the list", &["bridge", "portmap", "weir-cni"]);
    mesh.restart();
    mesh.assert_injected_by(&Injector::Weir);

    install_istio(cluster, INJECTOR_AND_CNI);
    weir(cluster, &["migrate", "rollback", "-y"]).unwrap();
    mesh.assert_injected_by(&Injector::Istio);
    weir(cluster, &["uninstall", "-y"]).unwrap();
    wait_for_plugins(cluster, "only istio-cni is in the list", &["bridge", "portmap", "istio-cni"]);
    mesh.restart();
    mesh.assert_injected_by(&Injector::Istio);
    traffic.assert_unharmed();

    remove_istio(cluster);
    install(cluster).unwrap();
    wait_for_agents(cluster);
    assert_new_pods_are_meshed(&mesh, "after-all");
}

/// Istio-cni's entry of a node's list, and the names and contents of its files. Istio-cni writes its binary and the token of its
/// kubeconfig anew when the list changes: what is temporary, and the token, are left out.
type IstioCni = (Option<serde_json::Value>, BTreeMap<String, Content>);

/// The content of a file, which messages do not print.
#[derive(PartialEq, Eq)]
struct Content(Vec<u8>);

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// Returns what istio-cni has on every node.
fn istio_cni_files(cluster: &Cluster) -> Vec<IstioCni> {
    let of = |node| {
        let machine = cluster.node(node);
        let list = fs::read(machine.host_path("/etc/cni/net.d/10-pods.conflist")).unwrap();
        let list: serde_json::Value = serde_json::from_slice(&list).unwrap();
        let entry = list["plugins"].as_array().unwrap().iter().find(|plugin| plugin["type"] == "istio-cni").cloned();
        let mut files = BTreeMap::new();
        for dir in ["/etc/cni/net.d", "/opt/cni/bin"] {
            for file in fs::read_dir(machine.host_path(dir)).unwrap().map(Result::unwrap) {
                let name = file.file_name().to_string_lossy().into_owned();
                if name.contains("istio") && !name.contains(".tmp.") && file.path().is_file() {
                    let content = if name.contains("kubeconfig") { Vec::new() } else { fs::read(file.path()).unwrap() };
                    files.insert(name, Content(content));
                }
            }
        }
        (entry, files)
    };
    NODES.map(of).into()
}

#[test]
fn istio_cni_stays_as_it_is_beside_weir() {
    let Some((cluster, _lock)) = alone_or_skip() else { return };
    cluster.load_istio_cni().unwrap();
    // Its entry comes last, as always when it is installed after others.
    install_istio(cluster, IstioParts { injector: false, cni: true, ambient: false });
    try_wait_until("both are in the list", || {
        let plugins = plugins(cluster);
        let both =
            |plugins: &Vec<String>| ["istio-cni", "weir-cni"].iter().all(|name| plugins.iter().any(|is| is == name));
        Ok(if plugins.iter().all(both) { Ok(()) } else { Err(format!("{plugins:?}")) })
    })
    .unwrap();
    let before = istio_cni_files(cluster);
    assert!(before.iter().all(|(entry, files)| entry.is_some() && !files.is_empty()), "istio-cni has no files");
    let mesh = Scenario::with_web(cluster, "beside");
    let traffic = Traffic::start(&mesh);
    mesh.assert_injected_by(&Injector::Weir);
    // Repair: an entry that somebody has removed comes back.
    for node in NODES {
        let path = cluster.node(node).host_path("/etc/cni/net.d/10-pods.conflist");
        let mut list: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        list["plugins"].as_array_mut().unwrap().retain(|plugin| plugin["type"] != "weir-cni");
        fs::write(&path, list.to_string()).unwrap();
    }
    try_wait_until("Weir's entry is back", || {
        let plugins = plugins(cluster);
        let has = |plugins: &Vec<String>| plugins.iter().any(|name| name == "weir-cni");
        Ok(if plugins.iter().all(has) { Ok(()) } else { Err(format!("{plugins:?}")) })
    })
    .unwrap();
    assert_eq!(istio_cni_files(cluster), before, "the repair changed files of istio-cni");
    weir(cluster, &["uninstall", "-y"]).unwrap();
    wait_for_plugins(cluster, "Weir is out of the list", &["bridge", "portmap", "istio-cni"]);
    assert_eq!(istio_cni_files(cluster), before, "the uninstallation changed files of istio-cni");
    install(cluster).unwrap();
    wait_for_agents(cluster);
    assert_eq!(istio_cni_files(cluster), before, "the installation changed files of istio-cni");
    assert_new_pods_are_meshed(&mesh, "beside-again");
    traffic.assert_unharmed();
    remove_istio(cluster);
    wait_for_plugins(cluster, "only Weir is in the list", &["bridge", "portmap", "weir-cni"]);
}
