//! The images that are shipped, as buildah made them from static binaries, in containerd, as the manifests would run them.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic like tests")]

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use iptables_rules::{CaptureConfig, plan};
use serde_json::{Value, json};
use weir_kernel::{netns, nft};
use weir_tests::cri::{Container, ContainerState, PodSandboxConfig};
use weir_tests::kubelet::{self, Kubelet};
use weir_tests::runtime::{Release, Runtime};
use weir_tests::webhook::Webhook;

const VERSION: &str = env!("CARGO_PKG_VERSION");
const BOUND: Duration = Duration::from_mins(1);

/// The folder of the images' archives. `make images` makes it, `make test` names it.
fn images_or_skip() -> Option<PathBuf> {
    if !weir_tests::privileged() {
        return None;
    }
    let found =
        std::env::var_os("WEIR_IMAGES").map(PathBuf::from).filter(|folder| folder.join("weir-agent.tar").is_file());
    if found.is_none() {
        assert!(
            std::env::var_os("CI").is_none(),
            "WEIR_IMAGES does not name the folder of the images; `make images` builds them"
        );
        eprintln!("skipped: WEIR_IMAGES does not name the folder of the images (`make images` builds them)");
    }
    found
}

/// A node on which the images are, with a primary network, and with folders where the manifests expect them.
struct Node {
    runtime: Runtime,
    objects: Vec<Value>,
    uninstall: Vec<Value>,
}

impl Node {
    fn start(images: &std::path::Path) -> Self {
        let primary = json!({ "cniVersion": "1.0.0", "name": "net", "plugins": [
            { "type": "bridge", "bridge": "cni0", "isGateway": true, "ipam": { "type": "host-local", "subnet": "10.77.0.0/24" } },
        ] });
        let runtime =
            Runtime::start_release(Release::Installed, &[("10-net.conflist", &format!("{primary:#}\n"))], None)
                .unwrap();
        for image in ["weir-agent", "weir-webhook", "weir"] {
            let reference = format!("docker.io/library/{image}:{VERSION}");
            runtime.import_archive(&images.join(format!("{image}.tar")), &reference).unwrap();
        }
        Self {
            runtime,
            objects: kubelet::render("node/overlays/kubeadm").unwrap(),
            uninstall: kubelet::render("node/overlays/kubeadm/uninstall").unwrap(),
        }
    }

    fn kubelet(&self) -> Kubelet<'_> {
        let folder = self.runtime.folder();
        let host = [
            ("/etc/cni/net.d", self.runtime.conf_dir()),
            ("/opt/cni/bin", self.runtime.bin_dir()),
            ("/etc/containerd", folder.join("etc-containerd")),
            ("/var/run/weir", folder.join("run-weir")),
            ("/var/run/netns", self.runtime.netns_dir()),
            ("/var/lib/cni", folder.join("lib-cni")),
        ];
        let host = host.map(|(theirs, here)| (PathBuf::from(theirs), here)).to_vec();
        Kubelet { runtime: &self.runtime, host, env: vec![] }
    }

    /// Starts one container of a pod, in a sandbox made for it.
    fn start_container(&self, sandbox: &PodSandboxConfig, container: &Container<'_>) -> (String, String) {
        let id = self.runtime.cri.run_pod_sandbox(sandbox).unwrap();
        let started = self.runtime.cri.start_container(&id, sandbox, container);
        let container = started.unwrap_or_else(|status| panic!("{}\n{}", status.message(), log(sandbox)));
        (id, container)
    }

    fn remove(&self, id: &str) {
        self.runtime.cri.stop_pod_sandbox(id).unwrap();
        self.runtime.cri.remove_pod_sandbox(id).unwrap();
    }
}

#[test]
fn the_agents_image_installs_from_its_daemon_set_and_the_uninstalling_one_leaves_the_node_as_it_was() {
    let Some(images) = images_or_skip() else { return };
    let node = Node::start(&images);
    let conflist = node.runtime.conf_dir().join("10-net.conflist");
    let before = std::fs::read(&conflist).unwrap();
    let kubelet = node.kubelet();
    let (sandbox, containers) = kubelet.pod(&node.objects, "weir-agent").unwrap();
    let [agent] = &containers[..] else { panic!("one container: {containers:?}") };
    let (agent_sandbox, agent_id) = node.start_container(&sandbox, agent);

    // Ready means installed; a kubelet asks on the node's address.
    until("the agent installs", &sandbox, || {
        let state = node.runtime.cri.container_state(&agent_id).unwrap();
        assert!(matches!(state, ContainerState::Running(_)), "{state:?}\n{}", log(&sandbox));
        let plugins = node.runtime.cri.loaded_plugins().unwrap();
        (plugins.last().is_some_and(|plugin| plugin.kind == "weir-cni")).then_some(())
    });
    let health = netns::within(&node.runtime.node_netns(), || {
        weir_lab::http::get(SocketAddr::from((Ipv4Addr::LOCALHOST, 15033)), "/healthz")
    });
    assert_eq!(health.unwrap().unwrap().status, 200);

    let status = process_status(&node, &agent_id);
    let effective = u64::from_str_radix(field(&status, "CapEff:"), 16).unwrap();
    let expected: u64 = agent.security.add.iter().map(|name| 1 << capability(name)).sum();
    assert_eq!(effective, expected, "the capabilities of the features and no other");
    assert_eq!(field(&status, "NoNewPrivs:"), "1");
    assert_eq!(field(&status, "Seccomp:"), "2");
    eprintln!("resident memory of the agent in its container: {} KiB", field(&status, "VmRSS:"));

    // Its plugin is that of the image, static, and does its work.
    let pod = Webhook::start().unwrap().admit(&json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "web", "namespace": "shop" },
        "spec": { "containers": [{ "name": "web", "image": "web:1" }] },
    }));
    let annotations = weir_tests::webhook::annotations(&pod.unwrap());
    let web = node.runtime.cri.run_pod_sandbox(&node.runtime.pod("web", annotations)).unwrap();
    let path = node.runtime.path_from_here(&node.runtime.cri.sandbox_status(&web).unwrap().netns);
    let drift = netns::within(&path, || nft::verify(&plan(&CaptureConfig::default()).unwrap())).unwrap().unwrap();
    assert_eq!(drift, Vec::<String>::new());

    // SIGTERM ends it in time and removes nothing.
    node.runtime.cri.stop_container(&agent_id, 15).unwrap();
    assert_eq!(node.runtime.cri.container_state(&agent_id).unwrap(), ContainerState::Exited(0));
    assert_eq!(node.runtime.cri.loaded_plugins().unwrap().last().unwrap().kind, "weir-cni");
    node.remove(&agent_sandbox);
    node.remove(&web);

    let (sandbox, containers) = kubelet.pod(&node.uninstall, "weir-uninstall").unwrap();
    let (uninstall_sandbox, uninstall_id) = node.start_container(&sandbox, &containers[0]);
    let mut state = ContainerState::Neither;
    until("the uninstaller ends", &sandbox, || {
        state = node.runtime.cri.container_state(&uninstall_id).unwrap();
        matches!(state, ContainerState::Exited(_)).then_some(())
    });
    assert_eq!(state, ContainerState::Exited(0), "{}", log(&sandbox));
    assert_eq!(std::fs::read(&conflist).unwrap(), before, "byte for byte as it was");
    let left = std::fs::read_dir(node.runtime.bin_dir()).unwrap().map(|entry| entry.unwrap().file_name());
    let left: Vec<_> = left.filter(|name| name.to_string_lossy().contains("weir")).collect();
    assert_eq!(left, Vec::<std::ffi::OsString>::new());
    node.remove(&uninstall_sandbox);
}

#[test]
fn the_images_of_the_tool_and_of_the_webhook_start_without_anything_else_in_them() {
    let Some(images) = images_or_skip() else { return };
    let node = Node::start(&images);
    for (image, args) in [("weir", "--version"), ("weir-webhook", "--version")] {
        let name = format!("{image}:{VERSION}");
        let container = Container {
            name: image,
            image: &name,
            args: vec![args.to_owned()],
            uid: 1337,
            security: weir_tests::cri::Security {
                drop: vec!["ALL".to_owned()],
                read_only_root: true,
                no_new_privileges: true,
                seccomp_default: true,
                ..Default::default()
            },
            ..Container::default()
        };
        let sandbox = node.runtime.pod(image, []);
        let (id, container) = node.start_container(&sandbox, &container);
        let mut state = ContainerState::Neither;
        until("it ends", &sandbox, || {
            state = node.runtime.cri.container_state(&container).unwrap();
            matches!(state, ContainerState::Exited(_)).then_some(())
        });
        assert_eq!(state, ContainerState::Exited(0), "{}", log(&sandbox));
        assert!(log(&sandbox).contains(&format!("{image} {VERSION}")), "{}", log(&sandbox));
        node.remove(&id);
    }
}

fn until(what: &str, sandbox: &PodSandboxConfig, mut ask: impl FnMut() -> Option<()>) {
    let started = Instant::now();
    while ask().is_none() {
        assert!(started.elapsed() < BOUND, "{what}: not within {BOUND:?}\n{}", log(sandbox));
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What the containers of a pod have logged.
fn log(sandbox: &PodSandboxConfig) -> String {
    let folder = std::fs::read_dir(&sandbox.log_directory).into_iter().flatten().flatten();
    folder.map(|entry| std::fs::read_to_string(entry.path()).unwrap_or_default()).collect()
}

/// `/proc/PID/status` of a container's process.
fn process_status(node: &Node, container: &str) -> String {
    let ContainerState::Running(pid) = node.runtime.cri.container_state(container).unwrap() else { panic!("it ended") };
    std::fs::read_to_string(node.runtime.path_from_here(&format!("/proc/{pid}/status"))).unwrap()
}

fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let line = status.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name} in {status}"));
    line.split_whitespace().nth(1).unwrap_or_default()
}

/// Numbers of linux/capability.h.
fn capability(name: &str) -> u32 {
    match name {
        "NET_ADMIN" => 12,
        "SYS_PTRACE" => 19,
        "SYS_ADMIN" => 21,
        other => panic!("{other}?"),
    }
}
