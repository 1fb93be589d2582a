//! The plugin without an agent that installs it, on each runtime: which users' connections it captures, static pods, and a runtime that
//! passes no annotations.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use iptables_rules::{CaptureConfig, plan};
use serde_json::{Value, json};
use weir_apiserver::ApiServer;
use weir_kernel::{netns, nft};
use weir_tests::TIMEOUT;
use weir_tests::agent::{Agent, NODE};
use weir_tests::cri::{Container, PodSandboxConfig};
use weir_tests::cri_runtime::{BUSYBOX, CriRuntime, RuntimeRelease};

const NETWORK: &str = "10-test.conflist";
const GATEWAY: &str = "10.81.0.1";
const PORT: u16 = 7777;
const APP_UID: i64 = 1000;
const PROXY_UID: i64 = 1337;
/// What the annotation `sidecar.istio.io/status` of an injected pod says.
const STATUS: &str = r#"{"containers":["istio-proxy"],"revision":"default"}"#;
/// Time between two looks at the listeners.
const ACCEPT_INTERVAL: Duration = Duration::from_millis(5);

/// Makes a module with one test of each runtime.
macro_rules! on_each_runtime {
    ($($check:ident)*) => {$(
        mod $check {
            use super::RuntimeRelease;

            fn run(release: RuntimeRelease) {
                if release.available_or_skip() {
                    super::checks::$check(release);
                }
            }

            #[test]
            fn containerd_1_7() {
                run(RuntimeRelease::V1_7);
            }

            #[test]
            fn containerd_2_1() {
                run(RuntimeRelease::V2_1);
            }

            #[test]
            fn crio() {
                run(RuntimeRelease::CriO);
            }
        }
    )*};
}

on_each_runtime! {
    ephemeral_containers
    static_pods
    no_annotations
}

/// Returns a network with `entry` last in the chain.
fn network(release: RuntimeRelease, entry: Option<&Value>) -> String {
    let bridge = json!({
        "type": "bridge", "bridge": "cni0", "isGateway": true, "ipam": {
            "type": "host-local", "subnet": "10.81.0.0/24", "routes": [{ "dst": "0.0.0.0/0" }],
        },
    });
    let plugins: Vec<&Value> = [&bridge].into_iter().chain(entry).collect();
    json!({ "cniVersion": release.cni_version(), "name": "test", "plugins": plugins }).to_string()
}

/// A node with the plugin, and without an agent.
struct Node {
    runtime: CriRuntime,
}

impl Node {
    fn start(release: RuntimeRelease) -> Self {
        let entry = json!({ "type": "weir-cni", "capabilities": { "io.kubernetes.cri.pod-annotations": true } });
        Self::with_entry(release, Some(&entry))
    }

    fn with_entry(release: RuntimeRelease, entry: Option<&Value>) -> Self {
        let conf = network(release, entry);
        let plugin = weir_tests::bin("weir-cni");
        Self { runtime: CriRuntime::start_release(release, &[(NETWORK, &conf)], Some(&plugin)).unwrap() }
    }

    fn pod(&self, name: &str, annotations: &[(&str, &str)]) -> PodSandboxConfig {
        self.runtime.pod(name, annotations.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())))
    }

    /// Returns a pod as Weir's webhook annotates it.
    fn meshed(&self, name: &str) -> PodSandboxConfig {
        self.pod(name, &[("sidecar.istio.io/status", STATUS), ("weir.dev/capture", r#"{"v":1}"#)])
    }

    /// Starts a sandbox and returns its id and network namespace.
    fn run(&self, config: &PodSandboxConfig) -> (String, PathBuf) {
        let cri = self.runtime.connect().unwrap();
        let id = cri.run_pod_sandbox(config);
        let id = id.unwrap_or_else(|status| panic!("{}\n{}", status.message(), self.runtime.log()));
        let path = self.runtime.host_path(&cri.sandbox_status(&id).unwrap().netns);
        (id, path)
    }

    /// Starts a container that sleeps.
    fn container(&self, sandbox: &str, config: &PodSandboxConfig, name: &str, uid: i64) -> String {
        let command = ["/bin/sh", "-c", "trap exit TERM; sleep 600 & wait"];
        let container = Container { name, image: BUSYBOX, command: &command, uid, ..Container::default() };
        self.runtime.cri.start_container(sandbox, config, &container).unwrap()
    }

    /// Connects from a container to a server on the node, and returns who has answered: `proxy` or `server`.
    fn answered_by(&self, container: &str, path: &Path) -> String {
        let listen = |path: &Path, address: &str, port: u16| {
            let listener = netns::run_in(path, || TcpListener::bind((address, port))).unwrap().unwrap();
            listener.set_nonblocking(true).unwrap();
            listener
        };
        let listeners = [
            (listen(path, "0.0.0.0", CaptureConfig::default().proxy_port), "proxy"),
            (listen(&self.runtime.node_netns(), GATEWAY, PORT), "server"),
        ];
        let done = AtomicBool::new(false);
        let output = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    for (listener, name) in &listeners {
                        let Ok((mut stream, _)) = listener.accept() else { continue };
                        stream.set_nonblocking(false).unwrap();
                        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
                        let _ = stream.read(&mut [0; 1024]).unwrap();
                        write!(stream, "HTTP/1.0 200 OK\r\n\r\n{name}").unwrap();
                    }
                    std::thread::sleep(ACCEPT_INTERVAL);
                }
            });
            let url = format!("http://{GATEWAY}:{PORT}/");
            let output = self.runtime.cri.exec(container, &["/bin/wget", "-q", "-O", "-", &url]);
            done.store(true, Ordering::Relaxed);
            output
        })
        .unwrap();
        assert_eq!(output.exit_code, 0, "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

/// Returns the differences from the default rules.
fn drift(path: &Path) -> Vec<String> {
    netns::run_in(path, || nft::verify(&plan(&CaptureConfig::default()).unwrap())).unwrap().unwrap()
}

fn is_untouched(path: &Path) -> bool {
    netns::run_in(path, nft::read_back).unwrap().unwrap().tables.is_empty()
}

mod checks {
    use super::*;

    /// A container that is added to a running pod is captured by its user, like any other.
    pub(super) fn ephemeral_containers(release: RuntimeRelease) {
        let node = Node::start(release);
        let web = node.meshed("web");
        let (id, path) = node.run(&web);
        node.container(&id, &web, "web", APP_UID);
        for (name, uid, expected) in [
            ("debugger", APP_UID, "proxy"),
            ("debugger-of-root", 0, "proxy"),
            ("debugger-of-the-proxy", PROXY_UID, "server"),
        ] {
            let container = node.container(&id, &web, name, uid);
            assert_eq!(node.answered_by(&container, &path), expected, "{name}");
            node.runtime.cri.stop_container(&container, 0).unwrap();
        }
        assert_eq!(drift(&path), Vec::<String>::new());
    }

    /// No webhook sees a static pod: annotations that ask for a sidecar are not enough, those of `weir inject` are.
    pub(super) fn static_pods(release: RuntimeRelease) {
        let node = Node::start(release);
        let of_file = [("kubernetes.io/config.source", "file"), ("kubernetes.io/config.hash", "0f1e")];
        let run = |name: &str, more: &[(&str, &str)]| node.run(&node.pod(name, &[&of_file, more].concat())).1;
        let asking = [("sidecar.istio.io/inject", "true"), ("traffic.sidecar.istio.io/includeInboundPorts", "*")];
        assert!(is_untouched(&run("asking", &asking)), "it has no sidecar");
        let status = ("sidecar.istio.io/status", STATUS);
        assert_eq!(drift(&run("injected", &[status, ("weir.dev/capture", r#"{"v":1}"#)])), Vec::<String>::new());
        assert_eq!(drift(&run("of-istio", &[status])), Vec::<String>::new(), "Istio's annotations, at their defaults");
        let invalid = node.pod("invalid", &[status, ("traffic.sidecar.istio.io/excludeInboundPorts", "70000")]);
        let refused = node.runtime.cri.run_pod_sandbox(&invalid).unwrap_err();
        assert!(refused.message().contains("70000"), "{}", refused.message());
    }

    /// A runtime that passes no annotations: only the agent knows the pod.
    pub(super) fn no_annotations(release: RuntimeRelease) {
        // Without the capability, annotations are not passed. Under another name, no agent changes the entry.
        let node = Node::with_entry(release, None);
        let runtime = &node.runtime;
        std::os::unix::fs::symlink(weir_tests::bin("weir-cni"), runtime.bin_dir().join("older")).unwrap();
        let refused = |pod: &PodSandboxConfig| runtime.cri.run_pod_sandbox(pod).unwrap_err().message().to_owned();
        // The runtime takes a moment to load its configuration.
        let refused_with = |entry: &Value, expected: &str| {
            let staged = runtime.conf_dir().join("staged");
            fs::write(&staged, network(release, Some(entry))).unwrap();
            fs::rename(&staged, runtime.conf_dir().join(NETWORK)).unwrap();
            weir_tests::wait_until("the runtime has loaded the entry", || {
                match runtime.cri.run_pod_sandbox(&node.meshed("early")) {
                    Ok(id) => {
                        Err(runtime.cri.remove_pod_sandbox(&id).map_or_else(|status| status.to_string(), |()| id))
                    }
                    Err(status) if status.message().contains(expected) => Ok(()),
                    Err(status) => Err(status.message().to_owned()),
                }
            });
        };
        refused_with(&json!({ "type": "older" }), "io.kubernetes.cri.pod-annotations");
        let entry = json!({
            "type": "older", "agent_socket": "/var/run/weir/agent.sock", "exclude_namespaces": ["kube-system"],
        });
        refused_with(&entry, "agent.sock");
        let mut system = node.meshed("system");
        "kube-system".clone_into(&mut system.metadata.as_mut().unwrap().namespace);
        assert!(is_untouched(&node.run(&system).1));

        fs::write(runtime.conf_dir().join("20-other.conflist"), network(release, None)).unwrap();
        let api = ApiServer::start().unwrap();
        api.kubeconfig(runtime.dir()).unwrap();
        let _forward = runtime.forward(api.port()).unwrap();
        put_pod(
            &api,
            "web",
            "web-uid",
            &json!({ "sidecar.istio.io/status": STATUS, "weir.dev/capture": r#"{"v":1}"# }),
        );
        put_pod(&api, "bare", "bare-uid", &json!({}));
        // The mirror of a static pod has a uid of its own.
        let mirror = json!({ "sidecar.istio.io/status": STATUS, "kubernetes.io/config.hash": "static-uid" });
        put_pod(&api, "static", "mirror-uid", &mirror);
        let flags = ["--cni-conf-name=20-other.conflist", "--repair-enabled=false"];
        let agent = Agent::start(runtime, &weir_tests::bin("weir-cni"), 8000, &flags).unwrap();
        let run = |name: &str| {
            weir_tests::wait_until("the agent answers", || {
                let cri = runtime.connect().map_err(|error| error.to_string())?;
                let started = cri.run_pod_sandbox(&node.meshed(name));
                let id = started.map_err(|status| format!("{}\n{}", status.message(), agent.log()))?;
                Ok(runtime.host_path(&cri.sandbox_status(&id).unwrap().netns))
            })
        };
        assert_eq!((drift(&run("web")), drift(&run("static"))), (Vec::new(), Vec::new()));
        assert!(is_untouched(&run("bare")), "the API server knows it without a sidecar");
        let error = refused(&node.meshed("unknown"));
        assert!(error.contains("pod not found in the API server"), "{error}");
    }
}

fn put_pod(api: &ApiServer, name: &str, uid: &str, annotations: &Value) {
    let containers = json!([{ "name": "web", "image": BUSYBOX }, {
        "name": "istio-proxy", "image": BUSYBOX, "securityContext": { "runAsUser": PROXY_UID, "runAsGroup": PROXY_UID },
    }]);
    api.put(
        "pods",
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "namespace": "shop", "name": name, "uid": uid, "annotations": annotations },
            "spec": { "nodeName": NODE, "containers": containers },
            "status": { "phase": "Pending" },
        }),
    );
}
