//! What happens to a pod after its start: containers come and change, its network namespace and the rules in it stay.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;

use iptables_rules::CaptureConfig;
use iptables_rules::config::Ipv6Policy;
use serde_json::{Value, json};
use weir_kernel::netns;
use weir_tests::agent::NODE;
use weir_tests::cri::{Container, ContainerState};
use weir_tests::cri_runtime::{BUSYBOX, RuntimeRelease};
use weir_tests::try_wait_until;

use crate::nri::{Node, annotations, drift, passes_validation};

const SLEEP: &[&str] = &["/bin/sh", "-c", "trap exit TERM; sleep 600 & wait"];
const CAPTURE: &str = r#"{"v":1}"#;
/// The kubelet's annotations of a static pod: where it comes from, and its uid on the node.
const CONFIG_SOURCE: &str = "kubernetes.io/config.source";
const CONFIG_HASH: &str = "kubernetes.io/config.hash";
/// The API server's copy of it has this one too, and another uid.
const CONFIG_MIRROR: &str = "kubernetes.io/config.mirror";

fn container(name: &str, uid: i64) -> Container<'_> {
    Container { name, image: BUSYBOX, command: SLEEP, uid, ..Container::default() }
}

fn assert_captured(path: &Path, when: &str) {
    assert_eq!(drift(path, &CaptureConfig::default()), Vec::<String>::new(), "{when}");
    assert!(passes_validation(path), "{when}");
}

/// Repair is off: nothing restores what one of the steps would change.
fn rules_outlive_changes_of_containers(release: RuntimeRelease) {
    if !release.available_or_skip() {
        return;
    }
    let node = Node::start(release);
    let cri = &node.runtime.cri;
    let _agent = node.agent(&["--mode=nri", "--repair-enabled=false", "--monitoring-port=8001"]);
    let pod = node.runtime.pod("web", annotations(CAPTURE));
    let (id, path) = node.run(&pod);
    let app = cri.start_container(&id, &pod, &container("app", 0)).unwrap();
    assert_captured(&path, "started");

    // To a runtime, an ephemeral container is one more container.
    let debugger = cri.start_container(&id, &pod, &container("debugger", 1000)).unwrap();
    let seen = cri.exec(&debugger, &["/bin/busybox", "readlink", "/proc/self/ns/net"]).unwrap();
    let inode = fs::metadata(&path).unwrap().ino();
    assert_eq!(String::from_utf8_lossy(&seen.stdout), format!("net:[{inode}]\n"));
    assert_captured(&path, "with an ephemeral container");
    cri.stop_container(&debugger, 1).unwrap();
    assert_captured(&path, "without the ephemeral container");

    cri.resize_container(&app, 512).unwrap();
    assert_captured(&path, "resized in place");

    // Needs CRIU on the machine; where it is, the container goes on.
    let checkpoint = cri.checkpoint_container(&app, &node.runtime.dir().join("checkpoint.tar"));
    eprintln!("{release:?}: checkpoint: {:?}", checkpoint.map_err(|status| status.message().to_owned()));
    assert!(matches!(cri.container_state(&app).unwrap(), ContainerState::Running(_)));
    assert_captured(&path, "after a checkpoint");

    // A container that ends and is started again.
    cri.stop_container(&app, 1).unwrap();
    cri.start_container(&id, &pod, &container("app-again", 0)).unwrap();
    assert_captured(&path, "with a container that is started again");
    assert!(node.get("/metrics").contains("weir_agent_nri_disconnects_total 0\n"), "no step ended the connection");
    node.remove(&id);
}

#[test]
fn rules_outlive_changes_of_containers_of_containerd_1_7() {
    rules_outlive_changes_of_containers(RuntimeRelease::V1_7);
}

#[test]
fn rules_outlive_changes_of_containers_of_containerd_2_1() {
    rules_outlive_changes_of_containers(RuntimeRelease::V2_1);
}

#[test]
fn rules_outlive_changes_of_containers_of_crio() {
    rules_outlive_changes_of_containers(RuntimeRelease::CriO);
}

/// Static pods come from files of the node: no webhook sees them, but an injected manifest is a pod of the mesh. The API server knows them
/// under another uid.
fn static_pods_are_captured_and_repaired(release: RuntimeRelease) {
    if !release.available_or_skip() {
        return;
    }
    let node = Node::start(release);
    let agent = node.agent(&["--mode=nri", "--repair-interval=1s", "--monitoring-port=8001"]);
    let with_source = |mut annotations: Vec<(String, String)>, uid: &str| {
        annotations.extend(
            [(CONFIG_SOURCE, "file"), (CONFIG_HASH, uid)].map(|(key, value)| (key.to_owned(), value.to_owned())),
        );
        annotations
    };
    // The second one was injected by Istio: its capture is in its containers, which only the API server shows. Its proxy does not listen
    // on IPv6.
    let by_weir = with_source(annotations(CAPTURE), "weir-uid");
    let by_istio = with_source(annotations(CAPTURE)[..1].to_vec(), "istio-uid");
    let configs =
        [Ipv6Policy::Capture, Ipv6Policy::Leave].map(|ipv6| CaptureConfig { ipv6, ..CaptureConfig::default() });
    for ((name, annotations), config) in [("weir", by_weir), ("istio", by_istio)].into_iter().zip(configs) {
        let mut mirror: serde_json::Map<String, Value> =
            annotations.iter().map(|(key, value)| (key.clone(), value.clone().into())).collect();
        mirror.insert(CONFIG_MIRROR.to_owned(), format!("{name}-uid").into());
        let put = |addresses: &[IpAddr]| {
            let ips: Vec<Value> = addresses.iter().map(|ip| json!({ "ip": ip })).collect();
            let containers = ["app", "istio-proxy"].map(|name| json!({ "name": name, "image": BUSYBOX }));
            let metadata =
                json!({ "namespace": "shop", "name": name, "uid": format!("{name}-mirror"), "annotations": mirror });
            node.api.put(
                "pods",
                json!({
                    "apiVersion": "v1", "kind": "Pod", "metadata": metadata,
                    "spec": { "nodeName": NODE, "containers": containers },
                    "status": { "phase": "Running", "podIP": addresses.first(), "podIPs": ips },
                }),
            );
        };
        put(&[]);
        let pod = node.runtime.pod(name, annotations);
        let (id, path) = node.run(&pod);
        node.runtime.cri.start_container(&id, &pod, &container("app", 0)).unwrap();
        assert_eq!(drift(&path, &config), Vec::<String>::new(), "{name}");
        put(&node.runtime.cri.sandbox_status(&id).unwrap().addresses);
        let flush = || Command::new("nft").args(["delete", "table", "inet", "weir"]).status();
        assert!(netns::run_in(&path, flush).unwrap().unwrap().success());
        try_wait_until("the rules are restored", || {
            let drift = drift(&path, &config);
            Ok(if drift.is_empty() { Ok(()) } else { Err(format!("{drift:?}\n{}", agent.log())) })
        })
        .unwrap();
        node.remove(&id);
    }
}

#[test]
fn static_pods_of_containerd_2_1_are_captured_and_repaired() {
    static_pods_are_captured_and_repaired(RuntimeRelease::V2_1);
}

#[test]
fn static_pods_of_crio_are_captured_and_repaired() {
    static_pods_are_captured_and_repaired(RuntimeRelease::CriO);
}

/// After a power cut the runtime and libcni's cache remember sandboxes whose network namespaces are gone.
fn pods_have_rules_after_a_reboot(release: RuntimeRelease) {
    if !release.available_or_skip() {
        return;
    }
    for mode in ["--mode=nri", "--mode=cni"] {
        let node = Node::start(release);
        let runtime = &node.runtime;
        let flags = [mode, "--repair-enabled=false", "--monitoring-port=8001"];
        let agent = node.agent(&flags);
        let pod = runtime.pod("web", annotations(CAPTURE));
        // With the plugin, the runtime takes a moment to load the entry. After the reboot it is there from the start.
        let start = |patience: bool| {
            try_wait_until("the pod starts with its rules", || {
                let cri = runtime.connect()?;
                let id = cri.run_pod_sandbox(&pod)?;
                let drift = drift(&runtime.host_path(&cri.sandbox_status(&id)?.netns), &CaptureConfig::default());
                if drift.is_empty() {
                    return Ok(Ok(id));
                }
                anyhow::ensure!(patience, "{drift:?}");
                cri.stop_pod_sandbox(&id)?;
                cri.remove_pod_sandbox(&id)?;
                Ok(Err(format!("{drift:?}")))
            })
            .unwrap_or_else(|error| panic!("{mode}: {error:#}\n{}", runtime.log()))
        };
        let before = start(true);
        runtime.power_off().unwrap();
        drop(agent);
        runtime.power_on().unwrap();
        runtime.wait_for_network().unwrap();
        // The first one was in the network namespace that is gone.
        let _forward = runtime.forward(node.api.port()).unwrap();
        let cri = runtime.connect().unwrap();
        // CRI-O forgets its pods at a reboot, containerd does not.
        let remembered = cri.sandboxes().unwrap();
        assert!(
            remembered.iter().all(|id| *id == before) && (release == RuntimeRelease::CriO || !remembered.is_empty())
        );
        let agent = node.agent(&flags);
        // As a kubelet does: what is dead is stopped first, which calls the plugin with a namespace that is gone.
        for id in &remembered {
            cri.stop_pod_sandbox(id).unwrap_or_else(|status| panic!("{mode}: {}", status.message()));
            cri.remove_pod_sandbox(id).unwrap();
        }
        let after = start(false);
        assert_eq!(cri.sandboxes().unwrap(), std::slice::from_ref(&after), "{mode}: {}", agent.log());
    }
}

#[test]
fn pods_of_containerd_1_7_have_rules_after_a_reboot() {
    pods_have_rules_after_a_reboot(RuntimeRelease::V1_7);
}

#[test]
fn pods_of_containerd_2_1_have_rules_after_a_reboot() {
    pods_have_rules_after_a_reboot(RuntimeRelease::V2_1);
}

#[test]
fn pods_of_crio_have_rules_after_a_reboot() {
    pods_have_rules_after_a_reboot(RuntimeRelease::CriO);
}

/// The agent reports the connections of a pod as connection tracking has them, for `weir explain --observe`.
#[test]
fn connections_of_a_pod_are_observed() {
    const CONNECT: &str = "busybox nc -w 1 10.80.0.1 7070 </dev/null; sleep 0.1";
    if !RuntimeRelease::V2_1.available_or_skip() {
        return;
    }
    let node = Node::start(RuntimeRelease::V2_1);
    let _agent = node.agent(&["--mode=nri", "--repair-interval=1s", "--monitoring-port=8001"]);
    let pod = node.runtime.pod("web", annotations(CAPTURE));
    let (id, path) = node.run(&pod);
    let addresses = node.runtime.cri.sandbox_status(&id).unwrap().addresses;
    let ips: Vec<Value> = addresses.iter().map(|ip| json!({ "ip": ip })).collect();
    let annotations: serde_json::Map<String, Value> =
        annotations(CAPTURE).into_iter().map(|(key, value)| (key, value.into())).collect();
    node.api.put(
        "pods",
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "namespace": "shop", "name": "web", "uid": "web-uid", "annotations": annotations },
            "spec": { "nodeName": NODE, "containers": [{ "name": "istio-proxy", "image": BUSYBOX }] },
            "status": { "phase": "Running", "podIP": addresses[0], "podIPs": ips },
        }),
    );
    try_wait_until("the agent knows the pod", || {
        let pods = node.get("/pods");
        Ok(if pods.contains("\"state\":\"ok\"") { Ok(()) } else { Err(pods) })
    })
    .unwrap();
    let observed = std::thread::scope(|scope| {
        let observing = scope.spawn(|| node.get("/connections/shop/web/3"));
        // Connections are refused: nobody listens, neither there nor on the port of the proxy. They begin all the same.
        let connect = |user: &str| {
            let script = ["--reuid", user, "--regid", user, "--clear-groups", "busybox", "sh", "-c", CONNECT];
            netns::run_in(&path, || Command::new("setpriv").args(script).status()).unwrap().unwrap()
        };
        // Whenever the observation begins, some come after that.
        while !observing.is_finished() {
            connect("1000");
            connect("1337");
        }
        observing.join().unwrap()
    });
    let observed: Value = serde_json::from_str(&observed).unwrap_or_else(|error| panic!("{error}: {observed}"));
    let of = |reply: &str| {
        let seen = observed["connections"].as_array().unwrap().iter();
        seen.filter(|one| one["destination"] == "10.80.0.1:7070" && one["replySource"] == reply).count()
    };
    assert!(of("127.0.0.1:15001") >= 1, "of the application: {observed}");
    assert!(of("10.80.0.1:7070") >= 1, "of the proxy: {observed}");
    assert!(node.get("/connections/shop/none/3").contains("not on this node"));
    assert!(node.get("/connections/shop/web/61").contains("seconds must be 1 to 60"));
}
