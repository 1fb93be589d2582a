//! The shipped images in containerd, run as the manifests run them.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use iptables_rules::{CaptureConfig, plan};
use serde_json::{Value, json};
use weir_kernel::{netns, nft};
use weir_tests::cri::{Container, ContainerState, PodSandboxConfig};
use weir_tests::cri_runtime::{CriRuntime, RuntimeRelease};
use weir_tests::kubelet::{self, Kubelet};
use weir_tests::wait_until;
use weir_tests::webhook::Webhook;

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Returns the directory with the archives of the images. `make images` builds them, `make test` sets the variable.
fn images_or_skip() -> Option<PathBuf> {
    if !weir_tests::privileged() {
        return None;
    }
    let found = std::env::var_os("WEIR_IMAGES").map(PathBuf::from).filter(|dir| dir.join("weir-agent.tar").is_file());
    if found.is_none() {
        weir_lab::skip_or_fail("WEIR_IMAGES does not name a directory with the images; `make images` builds them");
    }
    found
}

/// A node with the images, a primary network, and the rendered manifests.
struct Node {
    runtime: CriRuntime,
    objects: Vec<Value>,
    uninstall: Vec<Value>,
}

impl Node {
    fn start(images: &std::path::Path, release: RuntimeRelease) -> Self {
        let primary = json!({ "cniVersion": "1.0.0", "name": "net", "plugins": [
            { "type": "bridge", "bridge": "cni0", "isGateway": true, "ipam": { "type": "host-local", "subnet": "10.77.0.0/24" } },
        ] });
        let runtime =
            CriRuntime::start_release(release, &[("10-net.conflist", &format!("{primary:#}\n"))], None).unwrap();
        for image in ["weir-agent", "weir-webhook", "weir-iptables", "weir"] {
            runtime.import_archive(&images.join(format!("{image}.tar"))).unwrap();
        }
        Self {
            runtime,
            objects: kubelet::render("node/overlays/kubeadm").unwrap(),
            uninstall: kubelet::render("node/overlays/kubeadm/uninstall").unwrap(),
        }
    }

    fn kubelet(&self) -> Kubelet<'_> {
        let dir = self.runtime.dir();
        let host = [
            ("/etc/cni/net.d", self.runtime.conf_dir()),
            ("/opt/cni/bin", self.runtime.bin_dir()),
            ("/etc/containerd", dir.join("etc-containerd")),
            ("/var/run/weir", dir.join("run-weir")),
            ("/var/run/netns", self.runtime.netns_dir()),
            ("/var/lib/cni", dir.join("lib-cni")),
        ];
        let host = host.map(|(theirs, here)| (PathBuf::from(theirs), here)).to_vec();
        Kubelet { runtime: &self.runtime, host, env: vec![] }
    }

    /// Starts a container in a new sandbox; returns the ids of both.
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
fn agent_image_installs_and_uninstalls_as_the_manifests_say() {
    let Some(images) = images_or_skip() else { return };
    let node = Node::start(&images, RuntimeRelease::Installed);
    let conflist = node.runtime.conf_dir().join("10-net.conflist");
    let before = std::fs::read(&conflist).unwrap();
    let kubelet = node.kubelet();
    let (sandbox, containers) = kubelet.pod(&node.objects, "weir-agent").unwrap();
    let [agent] = &containers[..] else { panic!("one container: {containers:?}") };
    let (agent_sandbox, agent_id) = node.start_container(&sandbox, agent);

    wait_until("the agent has installed the plugin", || {
        let state = node.runtime.cri.container_state(&agent_id).unwrap();
        assert!(matches!(state, ContainerState::Running(_)), "{state:?}\n{}", log(&sandbox));
        let plugins = node.runtime.cri.loaded_plugins().unwrap();
        let is_installed = plugins.last().is_some_and(|plugin| plugin.kind == "weir-cni");
        is_installed.then_some(()).ok_or_else(|| log(&sandbox))
    });
    let health = netns::run_in(&node.runtime.node_netns(), || {
        weir_lab::http::get(SocketAddr::from((Ipv4Addr::LOCALHOST, 15033)), "/healthz")
    });
    assert_eq!(health.unwrap().unwrap().status, 200);

    let status = process_status(&node, &agent_id);
    let effective = u64::from_str_radix(field(&status, "CapEff:"), 16).unwrap();
    let expected: u64 = agent.security.add.iter().map(|name| 1 << capability(name)).sum();
    assert_eq!(effective, expected, "only the capabilities that its features need");
    assert_eq!(field(&status, "NoNewPrivs:"), "1");
    assert_eq!(field(&status, "Seccomp:"), "2");
    eprintln!("resident memory of the agent in its container: {} KiB", field(&status, "VmRSS:"));

    // The installed plugin is that of the image, and works.
    let pod = Webhook::start().unwrap().admit(&json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "web", "namespace": "shop" },
        "spec": { "containers": [{ "name": "web", "image": "web:1" }] },
    }));
    let annotations = weir_tests::webhook::annotations(&pod.unwrap());
    let web = node.runtime.cri.run_pod_sandbox(&node.runtime.pod("web", annotations)).unwrap();
    let path = node.runtime.host_path(&node.runtime.cri.sandbox_status(&web).unwrap().netns);
    let drift = netns::run_in(&path, || nft::verify(&plan(&CaptureConfig::default()).unwrap())).unwrap().unwrap();
    assert_eq!(drift, Vec::<String>::new());

    // SIGTERM stops the agent in time and removes nothing.
    node.runtime.cri.stop_container(&agent_id, 15).unwrap();
    assert_eq!(node.runtime.cri.container_state(&agent_id).unwrap(), ContainerState::Exited(0));
    assert_eq!(node.runtime.cri.loaded_plugins().unwrap().last().unwrap().kind, "weir-cni");
    node.remove(&agent_sandbox);
    node.remove(&web);

    let (sandbox, containers) = kubelet.pod(&node.uninstall, "weir-uninstall").unwrap();
    let (uninstall_sandbox, uninstall_id) = node.start_container(&sandbox, &containers[0]);
    let state = wait_until("the uninstaller exits", || exit_state(&node, &uninstall_id));
    assert_eq!(state, ContainerState::Exited(0), "{}", log(&sandbox));
    assert_eq!(std::fs::read(&conflist).unwrap(), before, "restored byte for byte");
    let left = std::fs::read_dir(node.runtime.bin_dir()).unwrap().map(|entry| entry.unwrap().file_name());
    let left: Vec<_> = left.filter(|name| name.to_string_lossy().contains("weir")).collect();
    assert_eq!(left, Vec::<std::ffi::OsString>::new());
    node.remove(&uninstall_sandbox);
}

/// The archives are imported as the documentation says, and run under the names that `weir install --set images.hub=localhost` writes.
#[test]
fn imported_images_are_found_by_name_and_start() {
    let Some(images) = images_or_skip() else { return };
    for release in [RuntimeRelease::Installed, RuntimeRelease::V1_7, RuntimeRelease::V2_1] {
        if release.available_or_skip() {
            let node = Node::start(&images, release);
            for image in ["weir", "weir-iptables", "weir-webhook", "weir-agent"] {
                print_version(&node, image);
            }
        }
    }
}

fn print_version(node: &Node, image: &str) {
    let name = format!("localhost/{image}:{VERSION}");
    let container = Container {
        name: image,
        image: &name,
        args: vec!["--version".to_owned()],
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
    let state = wait_until("the program exits", || exit_state(node, &container));
    assert_eq!(state, ContainerState::Exited(0), "{}", log(&sandbox));
    assert!(log(&sandbox).contains(&format!("{image} {VERSION}")), "{}", log(&sandbox));
    node.remove(&id);
}

/// Returns the state of a container that has exited.
fn exit_state(node: &Node, container: &str) -> Result<ContainerState, String> {
    let state = node.runtime.cri.container_state(container).unwrap();
    if matches!(state, ContainerState::Exited(_)) { Ok(state) } else { Err(format!("{state:?}")) }
}

/// Returns the logs of the containers of a pod.
fn log(sandbox: &PodSandboxConfig) -> String {
    let logs = std::fs::read_dir(&sandbox.log_directory).into_iter().flatten().flatten();
    logs.map(|entry| std::fs::read_to_string(entry.path()).unwrap_or_default()).collect()
}

/// Reads `/proc/PID/status` of a container's process.
fn process_status(node: &Node, container: &str) -> String {
    let ContainerState::Running(pid) = node.runtime.cri.container_state(container).unwrap() else {
        panic!("the container does not run")
    };
    std::fs::read_to_string(node.runtime.host_path(&format!("/proc/{pid}/status"))).unwrap()
}

fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let line = status.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name} in {status}"));
    line.split_whitespace().nth(1).unwrap_or_default()
}

/// Returns the number of a capability (linux/capability.h).
fn capability(name: &str) -> u32 {
    match name {
        "NET_ADMIN" => 12,
        "SYS_PTRACE" => 19,
        "SYS_ADMIN" => 21,
        other => panic!("unknown capability {other}"),
    }
}
