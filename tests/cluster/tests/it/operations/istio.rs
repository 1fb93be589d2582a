//! Weir beside Istio's own injector and istio-cni, and in their place.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Command};
use std::{fmt, fs};

use weir_cluster::Cluster;
use weir_cluster::files::IstioParts;
use weir_cluster::plan::{NODES, Node, Runtime};
use weir_tests::try_wait_until;

use super::{Traffic, assert_new_pods_are_meshed, run_in_network, wait_for_agents};
use crate::mesh::{alone_or_skip, install, try_weir, weir};
use crate::scenario::{Scenario, client, is_from_the_mesh};
use crate::telemetry::{PAGE, PAGES};

const BOOKINFO: &str = include_str!("../../../../../manifests/examples/bookinfo.yaml");
const INJECTOR_AND_CNI: IstioParts = IstioParts { injector: true, cni: true, ambient: false };
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
        self.assert_pods_of(expected);
        self.wait_for("deploy/client", &["http://web/headers"], "the request is the mesh's", is_from_the_mesh);
    }

    #[track_caller]
    fn assert_pods_of(&self, expected: &Injector) {
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

/// Uninstalls Weir, and installs Istio's injector and istio-cni.
fn replace_weir_by_istio(cluster: &Cluster) {
    weir(cluster, &["uninstall", "-y"]).unwrap();
    cluster.load_istio_cni().unwrap();
    install_istio(cluster, INJECTOR_AND_CNI);
    wait_for_plugins(cluster, "istio-cni is in the list", &["bridge", "portmap", "istio-cni"]);
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

/// Six workloads that call each other: a page names all that have answered.
#[test]
fn bookinfo_migrates_from_istio_and_back() {
    let Some((cluster, _lock)) = alone_or_skip() else { return };
    replace_weir_by_istio(cluster);
    let mesh = Scenario::new(cluster, "migrated-books");
    let patient = BOOKINFO
        .replace("terminationGracePeriodSeconds: 1", "terminationGracePeriodSeconds: 15")
        .replace("        args: [serve", "        lifecycle: {preStop: {sleep: {seconds: 5}}}\n        args: [serve");
    mesh.apply(&patient);
    mesh.wait_for_rollouts();
    mesh.assert_pods_of(&Injector::Istio);
    let traffic = Traffic::start_to(&mesh, PAGE, |page| PAGES.contains(&page));

    let moved = ["migrate", "run", "-y", "-n", &mesh.namespace, "--set", "images.hub=localhost"];
    let printed = weir(cluster, &moved).unwrap();
    assert!(printed.contains(": moved\n"), "{printed}");
    mesh.assert_pods_of(&Injector::Weir);
    weir(cluster, &["migrate", "rollback", "-y", "-n", &mesh.namespace]).unwrap();
    mesh.assert_pods_of(&Injector::Istio);
    traffic.assert_unharmed();

    weir(cluster, &["uninstall", "-y"]).unwrap();
    remove_istio(cluster);
    install(cluster).unwrap();
    wait_for_agents(cluster);
}

#[test]
fn migration_from_istio_and_back() {
    let Some((cluster, _lock)) = alone_or_skip() else { return };
    replace_weir_by_istio(cluster);
    let mesh = Scenario::with_patient_web(cluster, "migration");
    mesh.assert_injected_by(&Injector::Istio);
    let traffic = Traffic::start(&mesh);

    // No namespace of these moves yet.
    let printed = weir(cluster, &["migrate", "run", "-y", "-n", "default", "--set", "images.hub=localhost"]).unwrap();
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

/// Returns the sockets of istio-cni on every node, with their inodes.
fn istio_cni_sockets(cluster: &Cluster) -> Vec<String> {
    let find = ["find", "/run/istio-cni", "/run/ztunnel", "-type", "s", "-printf", "%i %p\\n"];
    NODES.map(|node| cluster.node(node).run(&find, "").unwrap_or_default()).into()
}

/// Removes the entry of a plugin from the list of every node, and waits until it is back.
fn remove_entry_and_wait(cluster: &Cluster, plugin: &str) {
    for node in NODES {
        let path = cluster.node(node).host_path("/etc/cni/net.d/10-pods.conflist");
        let mut list: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        list["plugins"].as_array_mut().unwrap().retain(|entry| entry["type"] != plugin);
        fs::write(&path, list.to_string()).unwrap();
    }
    wait_for_both(cluster);
}

fn wait_for_both(cluster: &Cluster) {
    try_wait_until("both are in the list", || {
        let plugins = plugins(cluster);
        let both =
            |plugins: &Vec<String>| ["istio-cni", "weir-cni"].iter().all(|name| plugins.iter().any(|is| is == name));
        Ok(if plugins.iter().all(both) { Ok(()) } else { Err(format!("{plugins:?}")) })
    })
    .unwrap();
}

/// Asserts that Weir's repair, uninstallation and installation leave istio-cni as it is, and that pods of Weir work beside it.
fn assert_istio_cni_stays(cluster: &'static Cluster, name: &str, parts: IstioParts) {
    cluster.load_istio_cni().unwrap();
    // Its entry comes last, as always when it is installed after others.
    install_istio(cluster, parts);
    wait_for_both(cluster);
    let state = || (istio_cni_files(cluster), istio_cni_sockets(cluster));
    let before = state();
    assert!(before.0.iter().all(|(entry, files)| entry.is_some() && !files.is_empty()), "istio-cni has no files");
    assert!(!parts.ambient || before.1.iter().all(|sockets| sockets.contains("ztunnel.sock")), "{:?}", before.1);
    let mesh = Scenario::with_web(cluster, name);
    let traffic = Traffic::start(&mesh);
    mesh.assert_injected_by(&Injector::Weir);
    let ztunnels: Vec<Child> =
        if parts.ambient { NODES.map(|node| start_ztunnel(cluster, node)).into() } else { Vec::new() };
    if parts.ambient {
        assert_ambient_pods_are_left_alone(cluster, &format!("{name}-pods"));
    }
    remove_entry_and_wait(cluster, "weir-cni");
    assert_eq!(state(), before, "the repair changed files of istio-cni");
    weir(cluster, &["uninstall", "-y"]).unwrap();
    wait_for_plugins(cluster, "Weir is out of the list", &["bridge", "portmap", "istio-cni"]);
    assert_eq!(state(), before, "the uninstallation changed files of istio-cni");
    install(cluster).unwrap();
    wait_for_agents(cluster);
    assert_eq!(state(), before, "the installation changed files of istio-cni");
    remove_entry_and_wait(cluster, "istio-cni");
    assert_new_pods_are_meshed(&mesh, "again");
    traffic.assert_unharmed();
    remove_istio(cluster);
    for mut ztunnel in ztunnels {
        drop(ztunnel.wait());
    }
    wait_for_plugins(cluster, "only Weir is in the list", &["bridge", "portmap", "weir-cni"]);
}

/// Stands in for ztunnel at the socket of istio-cni, without which no pod in ambient mode starts: it accepts every pod, and captures nothing.
/// It ends with istio-cni.
fn start_ztunnel(cluster: &Cluster, node: Node) -> Child {
    // Messages of Istio's zds.proto: ZdsHello with version 1, and WorkloadResponse with an empty Ack.
    const ZTUNNEL: &str = r#"
import socket
ztunnel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
ztunnel.connect("/run/ztunnel/ztunnel.sock")
ztunnel.send(b"\x08\x01")
while ztunnel.recvmsg(4096, 1024)[0]:
    ztunnel.send(b"\x0a\x00")
"#;
    cluster.node(node).command("python3").unwrap().args(["-c", ZTUNNEL]).spawn().unwrap()
}

#[test]
fn istio_cni_stays_as_it_is_beside_weir() {
    let Some((cluster, _lock)) = alone_or_skip() else { return };
    assert_istio_cni_stays(cluster, "beside", IstioParts { injector: false, cni: true, ambient: false });
}

/// Pods of a namespace in ambient mode: istio-cni sets them up, and Weir neither injects nor captures them.
fn assert_ambient_pods_are_left_alone(cluster: &'static Cluster, name: &str) {
    let ambient = Scenario::new(cluster, name);
    let label = ["label", "namespace", &ambient.namespace, "istio-injection-", "istio.io/dataplane-mode=ambient"];
    cluster.kubectl(&label, "").unwrap();
    ambient.apply(&client("client", ""));
    ambient.wait_for_rollouts();
    let pods = ambient.kubectl(&["get", "pods", "-o", "json"]);
    let pods: serde_json::Value = serde_json::from_str(&pods).unwrap();
    let pod = &pods["items"][0];
    assert_eq!(pod["spec"]["containers"].as_array().unwrap().len(), 1, "{pod}");
    assert!(pod["spec"]["initContainers"].is_null(), "{pod}");
    assert_eq!(pod["metadata"]["annotations"]["ambient.istio.io/redirection"], "enabled", "{pod}");
    let tables = run_in_network(&ambient, "app=client", "nft list tables");
    assert!(tables.contains("istio-ambient") && !tables.contains("weir"), "{tables}");
}

#[test]
fn istio_cni_in_ambient_mode_stays_as_it_is_beside_weir() {
    let Some((cluster, _lock)) = alone_or_skip() else { return };
    assert_istio_cni_stays(cluster, "ambient", IstioParts { injector: false, cni: true, ambient: true });
}
