//! Machines of the cluster with their addresses and processes.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Address of this machine on the link to the cluster.
pub const HOST_IP: Ipv4Addr = Ipv4Addr::new(172, 31, 77, 1);
/// Addresses of the control plane.
pub const CONTROL_IP: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(172, 31, 77, 2), Ipv6Addr::new(0xfd31, 0x77, 0, 0, 0, 0, 0, 2));
/// Addresses of Services.
pub const SERVICE_CIDRS: &str = "10.96.0.0/16,fd10:96::/112";
/// First address of Services: the API server.
pub const API_SERVICE_IP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
/// Addresses of pods, of which every node has a part.
pub const POD_CIDRS: &str = "10.244.0.0/16,fd10:244::/48";
/// Port of the server that stands for what is outside of the cluster: `outside.test` and `blocked.test`.
pub const OUTSIDE_PORT: u16 = 8088;
/// Name of the machine with the control plane.
pub const CONTROL: &str = "control";

/// The container runtime of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runtime {
    /// containerd 2.1 or later, of Debian unstable.
    Containerd2,
    /// containerd 1.7, of Debian 13.
    Containerd1,
    /// CRI-O, built from source.
    CriO,
}

impl Runtime {
    /// Returns its directory below `target/tools`.
    pub fn tool(self) -> &'static str {
        match self {
            Self::Containerd2 => "containerd-2.1",
            Self::Containerd1 => "containerd-1.7",
            Self::CriO => "cri-o",
        }
    }

    /// Returns the socket of its CRI.
    pub fn socket(self) -> &'static str {
        match self {
            Self::CriO => "/run/crio/crio.sock",
            _ => "/run/containerd/containerd.sock",
        }
    }

    /// Returns the name of its daemon.
    pub fn daemon(self) -> &'static str {
        if self == Self::CriO { "crio" } else { "containerd" }
    }
}

/// A node of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Node {
    /// Its number, from 1.
    pub number: u8,
    /// Its container runtime.
    pub runtime: Runtime,
}

/// The nodes.
pub const NODES: [Node; 3] = [
    Node { number: 1, runtime: Runtime::Containerd2 },
    Node { number: 2, runtime: Runtime::Containerd1 },
    Node { number: 3, runtime: Runtime::CriO },
];

impl Node {
    /// Returns its name.
    pub fn name(self) -> String {
        format!("node{}", self.number)
    }

    /// Returns its addresses.
    pub fn ips(self) -> (Ipv4Addr, Ipv6Addr) {
        let last = 10 + self.number;
        (Ipv4Addr::new(172, 31, 77, last), Ipv6Addr::new(0xfd31, 0x77, 0, 0, 0, 0, 0, last.into()))
    }

    /// Returns the addresses of its pods.
    pub fn pod_cidrs(self) -> (String, String) {
        (format!("10.244.{}.0/24", self.number), format!("fd10:244:0:{}::/64", self.number))
    }
}

/// A process that process 1 of a machine keeps running.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Name of its log and for [pausing](crate::machine::Machine::pause) it.
    pub name: String,
    /// Program and arguments.
    pub command: Vec<String>,
}

/// Directories of programs.
#[derive(Debug, Clone)]
pub struct Tools {
    dir: PathBuf,
}

impl Tools {
    /// Takes `target/tools` of this checkout.
    pub fn of_checkout() -> Self {
        // Without `..`, because it is looked up on the machines too.
        let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
        let root = tests.ancestors().nth(2).unwrap_or(tests);
        Self { dir: root.join("target/tools") }
    }

    /// Returns the path of a file of a tool.
    pub fn path(&self, path: &str) -> PathBuf {
        self.dir.join(path)
    }

    /// Returns the value of `PATH` on a node. `runc` is always this machine's: that of newer releases needs a newer libc.
    pub fn search_path(&self, node: Node) -> String {
        let own = [self.path(node.runtime.tool()).join("usr/bin"), self.path("kubernetes")];
        format!("{}:{}:/usr/sbin:/usr/bin:/sbin:/bin", own[0].display(), own[1].display())
    }

    /// Returns the directory of CNI plugins: newer ones beside the newest runtime.
    pub fn cni_plugins(&self, node: Node) -> PathBuf {
        let unpacked = self.path(node.runtime.tool()).join("usr/lib/cni");
        let all = [unpacked, "/usr/lib/cni".into(), "/opt/cni/bin".into()];
        all.iter().find(|dir| dir.join("bridge").is_file()).unwrap_or(&all[1]).clone()
    }

    /// Returns what is needed and missing.
    pub fn missing(&self) -> Vec<PathBuf> {
        let kubernetes = ["kubernetes/kubelet", "etcd/usr/bin/etcd", "coredns/coredns", "envoy"];
        let istio = ["istio/pilot-discovery", "istio/pilot-agent", "istio/istioctl", "istio/envoy_bootstrap.json"];
        let runtimes = NODES.map(|node| format!("{}/usr/bin/{}", node.runtime.tool(), node.runtime.daemon()));
        let names = kubernetes.into_iter().chain(istio).map(str::to_owned).chain(runtimes);
        let plugins = NODES.map(|node| self.cni_plugins(node).join("bridge"));
        names.map(|name| self.path(&name)).chain(plugins).filter(|path| !path.is_file()).collect()
    }
}

fn process(name: &str, program: &Path, args: &[String]) -> Process {
    let command = std::iter::once(program.display().to_string()).chain(args.iter().cloned()).collect();
    Process { name: name.to_owned(), command }
}

fn strings(args: &[&str]) -> Vec<String> {
    args.iter().map(|&arg| arg.to_owned()).collect()
}

/// Where the machines have certificates and configuration.
const CONFIG: &str = "/etc/kubernetes";

/// Returns the processes of the control plane, and a server that stands for what is outside of the cluster.
pub fn control_processes(tools: &Tools, app: &Path) -> Vec<Process> {
    let etcd = strings(&[
        "--data-dir=/var/lib/etcd",
        "--listen-client-urls=http://127.0.0.1:2379",
        "--advertise-client-urls=http://127.0.0.1:2379",
        "--listen-peer-urls=http://127.0.0.1:2380",
        "--unsafe-no-fsync",
    ]);
    let outside = ["serve".to_owned(), format!("--port={OUTSIDE_PORT}"), "--version=outside".to_owned()];
    let kubernetes = |name: &str, args: &[String]| process(name, &tools.path("kubernetes").join(name), args);
    vec![
        process("outside", app, &outside),
        process("etcd", &tools.path("etcd/usr/bin/etcd"), &etcd),
        kubernetes("kube-apiserver", &apiserver_args()),
        kubernetes("kube-controller-manager", &controller_manager_args()),
        kubernetes("kube-scheduler", &client_args("scheduler")),
    ]
}

/// Webhooks are called at the addresses of their pods, because there is no kube-proxy on this machine.
fn apiserver_args() -> Vec<String> {
    let mut args = strings(&[
        "--etcd-servers=http://127.0.0.1:2379",
        "--secure-port=6443",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        "--enable-aggregator-routing=true",
        "--kubelet-preferred-address-types=InternalIP",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        "--requestheader-allowed-names=front-proxy",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-username-headers=X-Remote-User",
    ]);
    args.extend([
        format!("--advertise-address={}", CONTROL_IP.0),
        format!("--service-cluster-ip-range={SERVICE_CIDRS}"),
    ]);
    let files = [
        ("client-ca-file", "ca.crt"),
        ("tls-cert-file", "apiserver.crt"),
        ("tls-private-key-file", "apiserver.key"),
        ("kubelet-client-certificate", "admin.crt"),
        ("kubelet-client-key", "admin.key"),
        ("service-account-key-file", "service-accounts.pub"),
        ("service-account-signing-key-file", "service-accounts.key"),
        ("requestheader-client-ca-file", "ca.crt"),
        ("proxy-client-cert-file", "front-proxy.crt"),
        ("proxy-client-key-file", "front-proxy.key"),
    ];
    args.extend(file_args(&files));
    args
}

fn controller_manager_args() -> Vec<String> {
    let mut args = client_args("controller-manager");
    args.extend([
        "--use-service-account-credentials=true".to_owned(),
        format!("--service-cluster-ip-range={SERVICE_CIDRS}"),
        // A node that is switched off is noticed within this time; the kubelets report every 4 s.
        "--node-monitor-grace-period=20s".to_owned(),
    ]);
    let files = [
        ("root-ca-file", "ca.crt"),
        ("service-account-private-key-file", "service-accounts.key"),
        ("cluster-signing-cert-file", "ca.crt"),
        ("cluster-signing-key-file", "ca.key"),
    ];
    args.extend(file_args(&files));
    args
}

/// Arguments of a client of the API server that is the only one of its kind.
fn client_args(name: &str) -> Vec<String> {
    let config = format!("{name}.kubeconfig");
    let flags = ["kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig"];
    let mut args = strings(&["--leader-elect=false", "--bind-address=127.0.0.1"]);
    args.extend(file_args(&flags.map(|flag| (flag, config.as_str()))));
    args
}

fn file_args(files: &[(&str, &str)]) -> impl Iterator<Item = String> {
    files.iter().map(|(flag, file)| format!("--{flag}={CONFIG}/{file}"))
}

/// Returns the processes of a node.
pub fn node_processes(tools: &Tools, node: Node) -> Vec<Process> {
    let daemon = node.runtime.daemon();
    let runtime_args = match node.runtime {
        Runtime::CriO => strings(&["--config=/etc/crio/crio.conf", "--config-dir="]),
        _ => strings(&["--config=/etc/containerd/config.toml"]),
    };
    let (v4, v6) = node.ips();
    let mut kubelet =
        strings(&["--config=/etc/kubernetes/kubelet.yaml", "--kubeconfig=/etc/kubernetes/kubelet.kubeconfig"]);
    kubelet.extend([format!("--hostname-override={}", node.name()), format!("--node-ip={v4},{v6}")]);
    let proxy = strings(&["--config=/etc/kubernetes/kube-proxy.yaml"]);
    vec![
        process(daemon, &tools.path(node.runtime.tool()).join("usr/bin").join(daemon), &runtime_args),
        process("kubelet", &tools.path("kubernetes/kubelet"), &kubelet),
        process("kube-proxy", &tools.path("kubernetes/kube-proxy"), &proxy),
    ]
}
