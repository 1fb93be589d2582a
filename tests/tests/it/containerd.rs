//! Pods on the machine's containerd with the plugins bridge, portmap and `weir-cni`, injected by the webhook, with a real Envoy in them.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use iptables_rules::config::Ipv6Policy;
use iptables_rules::{CaptureConfig, plan};
use serde_json::{Value, json};
use weir_apiserver::ApiServer;
use weir_kernel::{netns, nft};
use weir_lab::{dial, envoy};
use weir_tests::agent::{Agent, NODE};
use weir_tests::cri::{self, Container, ExecOutput, Mount, PodSandboxConfig};
use weir_tests::cri_runtime::{BUSYBOX, CriRuntime, RuntimeRelease};
use weir_tests::image::Image;
use weir_tests::webhook::Webhook;
use weir_tests::{TIMEOUT, try_wait_until, wait_until};

const APP_UID: i64 = 1000;
const PROXY_UID: i64 = 1337;
/// Bound of one connection; whoever waits for a container to listen tries again.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(5);
/// How often rules are flushed under traffic.
const FLUSHES: usize = 3;

/// Returns a dual-stack network with `weir-cni` last in the chain.
fn conflist() -> String {
    json!({
        "cniVersion": "1.0.0", "name": "test", "plugins": [
            { "type": "bridge", "bridge": "cni0", "isGateway": true, "ipam": {
                "type": "host-local",
                "ranges": [[{ "subnet": "10.77.0.0/24" }], [{ "subnet": "fd77::/64" }]],
                "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
            } },
            { "type": "portmap", "capabilities": { "portMappings": true } },
            { "type": "weir-cni", "capabilities": { "io.kubernetes.cri.pod-annotations": true } },
        ],
    })
    .to_string()
}

fn containerd() -> CriRuntime {
    CriRuntime::start(&conflist(), &weir_tests::bin("weir-cni")).unwrap()
}

/// Returns a pod as it is stored after admission. The proxy of these tests accepts both families.
fn admitted(annotations: &Value) -> Value {
    let mut annotations = annotations.clone();
    annotations.as_object_mut().unwrap().entry("weir.dev/ipv6").or_insert("capture".into());
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": "web", "namespace": "shop", "labels": { "app": "web" }, "annotations": annotations },
        "spec": { "containers": [{ "name": "web", "image": "web:1", "ports": [{ "containerPort": 8080 }] }] },
    });
    Webhook::start().unwrap().admit(&pod).unwrap()
}

/// Returns the annotations of an admitted pod.
fn injected_annotations(annotations: &Value) -> Vec<(String, String)> {
    weir_tests::webhook::annotations(&admitted(annotations))
}

/// A running sandbox. [`remove`](Self::remove) stops and removes it twice, as a kubelet does.
struct Sandbox<'a> {
    runtime: &'a CriRuntime,
    config: PodSandboxConfig,
    id: String,
}

impl<'a> Sandbox<'a> {
    fn start(runtime: &'a CriRuntime, name: &str, annotations: Vec<(String, String)>) -> Self {
        let config = runtime.pod(name, annotations);
        let id = runtime
            .cri
            .run_pod_sandbox(&config)
            .unwrap_or_else(|status| panic!("{}\n{}", status.message(), runtime.log()));
        Self { runtime, config, id }
    }

    fn addresses(&self) -> Vec<IpAddr> {
        self.runtime.cri.sandbox_status(&self.id).unwrap().addresses
    }

    /// Returns the differences of the pod's rules from the expected ones.
    fn drift(&self, expected: &CaptureConfig) -> Vec<String> {
        let path = self.runtime.host_path(&self.runtime.cri.sandbox_status(&self.id).unwrap().netns);
        netns::run_in(&path, || nft::verify(&plan(expected).unwrap())).unwrap().unwrap()
    }

    fn container(&self, name: &str, image: &str, uid: i64, command: &[&str], mounts: Vec<Mount>) -> String {
        self.runtime
            .cri
            .start_container(
                &self.id,
                &self.config,
                &Container { name, image, command, uid, mounts, ..Container::default() },
            )
            .unwrap()
    }

    /// Starts the application and the proxy, and returns the application. Needs [`import_envoy`].
    fn start_containers(&self) -> String {
        let app = self.container(
            "web",
            BUSYBOX,
            APP_UID,
            &["/bin/sh", "-c", "echo from the app > /tmp/index.html; exec httpd -f -p 8080 -h /tmp"],
            vec![],
        );
        let config = self.runtime.dir().join("envoy.json").display().to_string();
        let mounts = vec![Mount {
            container_path: "/etc/envoy.json".to_owned(),
            host_path: config,
            readonly: true,
            propagation: 0,
        }];
        let command = [
            "/bin/envoy",
            "-c",
            "/etc/envoy.json",
            "--concurrency",
            "1",
            "--disable-hot-restart",
            "--log-level",
            "warning",
        ];
        self.container("istio-proxy", "test.local/envoy:1", PROXY_UID, &command, mounts);
        app
    }

    /// Reads a counter of the proxy from the application's container.
    fn counter(&self, app: &str, name: &str) -> u64 {
        let url = format!("http://127.0.0.1:{}/stats?filter=^{name}$", envoy::ADMIN_PORT);
        let text = wait_until("Envoy reports its counters", || {
            stdout(&self.runtime.cri.exec(app, &["/bin/wget", "-q", "-O", "-", &url]).map_err(|s| s.to_string())?)
        });
        text.rsplit(' ')
            .next()
            .and_then(|number| number.trim().parse().ok())
            .unwrap_or_else(|| panic!("no counter in {text:?}"))
    }

    fn remove(self) {
        for call in [cri::Client::stop_pod_sandbox, cri::Client::remove_pod_sandbox] {
            call(&self.runtime.cri, &self.id).unwrap();
            call(&self.runtime.cri, &self.id).unwrap();
        }
        assert_eq!(self.runtime.cri.sandboxes().unwrap(), Vec::<String>::new());
    }
}

/// Imports an image of Envoy and writes its configuration.
fn import_envoy(runtime: &CriRuntime, binary: &Path) {
    runtime.import(&Image::default().program(binary, "/bin/envoy").unwrap(), "test.local/envoy:1").unwrap();
    std::fs::write(runtime.dir().join("envoy.json"), envoy::bootstrap().to_string()).unwrap();
}

/// Sends a GET over a new connection from the node and returns the body.
fn get(runtime: &CriRuntime, to: SocketAddr) -> Result<String, String> {
    netns::run_in(&runtime.node_netns(), || {
        let mut stream = dial::tcp_connect(None, to, CONNECTION_TIMEOUT).map_err(|error| error.to_string())?;
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")
            .map_err(|error| error.to_string())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map_err(|error| error.to_string())?;
        let (_, body) = answer.split_once("\r\n\r\n").ok_or("no HTTP answer")?;
        Ok(body.to_owned())
    })
    .unwrap()
}

fn stdout(output: &ExecOutput) -> Result<String, String> {
    if output.exit_code == 0 {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(format!("exit {}: {}", output.exit_code, String::from_utf8_lossy(&output.stderr)))
    }
}

#[test]
fn traffic_of_meshed_pod_passes_envoy_in_both_families() {
    let Some(binary) = weir_tests::envoy_or_skip() else { return };
    let runtime = containerd();
    import_envoy(&runtime, &binary);
    let pod = Sandbox::start(&runtime, "web", injected_annotations(&json!({})));
    assert_eq!(pod.drift(&CaptureConfig::default()), Vec::<String>::new());

    let app = pod.start_containers();
    let counter = |name: &str| pod.counter(&app, name);
    assert_eq!((counter(envoy::INBOUND_COUNTER), counter(envoy::OUTBOUND_COUNTER)), (0, 0));

    let addresses = pod.addresses();
    assert_eq!(addresses.len(), 2, "one address of each family: {addresses:?}");
    let mut expected = 0;
    for address in addresses {
        let body = wait_until("the application responds", || get(&runtime, SocketAddr::new(address, 8080)));
        assert_eq!(body, "from the app\n");
        assert!(counter(envoy::INBOUND_COUNTER) > expected, "{address}: the connection did not pass the proxy");
        for port in envoy::HEALTH_PORTS {
            let before = counter(envoy::INBOUND_COUNTER);
            assert_eq!(get(&runtime, SocketAddr::new(address, port)), Ok(format!("port={port}\n")));
            assert_eq!(counter(envoy::INBOUND_COUNTER), before, "{address}:{port} was captured");
        }

        // Outbound, to a listener on the node's end of the bridge, which is the pod's gateway.
        let gateway: IpAddr = if address.is_ipv4() { "10.77.0.1".parse().unwrap() } else { "fd77::1".parse().unwrap() };
        let listener = netns::run_in(&runtime.node_netns(), || TcpListener::bind((gateway, 7777))).unwrap().unwrap();
        let peer = std::thread::spawn(move || {
            let (mut stream, peer) = listener.accept().unwrap();
            stream.set_read_timeout(Some(TIMEOUT)).unwrap();
            let _ = stream.read(&mut [0; 1024]).unwrap();
            stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nfrom outside\n").unwrap();
            peer
        });
        let before = counter(envoy::OUTBOUND_COUNTER);
        let url = format!("http://{}/", SocketAddr::new(gateway, 7777));
        let output = runtime.cri.exec(&app, &["/bin/wget", "-q", "-O", "-", &url]).unwrap();
        assert_eq!(stdout(&output), Ok("from outside\n".to_owned()), "{url}");
        assert_eq!(peer.join().unwrap().ip(), address, "the proxy goes out from the pod's address");
        assert_eq!(counter(envoy::OUTBOUND_COUNTER), before + 1, "{gateway}: the connection did not pass the proxy");
        expected = counter(envoy::INBOUND_COUNTER);
    }
    pod.remove();
}

#[test]
fn annotations_of_a_pod_decide_its_rules() {
    if !weir_tests::privileged() {
        return;
    }
    let runtime = containerd();
    let annotations = json!({
        "traffic.sidecar.istio.io/excludeOutboundIPRanges": "10.1.0.0/16,fd01::/32",
        "traffic.sidecar.istio.io/excludeInboundPorts": "9000",
    });
    let expected = CaptureConfig {
        outbound_cidrs_exclude: vec!["10.1.0.0/16".parse().unwrap(), "fd01::/32".parse().unwrap()],
        inbound_ports_exclude: vec![9000, 15020, 15021, 15090],
        ..CaptureConfig::default()
    };
    let pod = Sandbox::start(&runtime, "web", injected_annotations(&annotations));
    assert_eq!(pod.drift(&expected), Vec::<String>::new());
    assert_ne!(pod.drift(&CaptureConfig::default()), Vec::<String>::new());
    pod.remove();

    // The pod gets addresses of both families.
    let pod = Sandbox::start(&runtime, "auto", injected_annotations(&json!({"weir.dev/ipv6": "auto"})));
    assert_eq!(pod.drift(&CaptureConfig { ipv6: Ipv6Policy::Leave, ..CaptureConfig::default() }), Vec::<String>::new());
    pod.remove();
}

#[test]
fn pod_outside_the_mesh_is_not_touched() {
    if !weir_tests::privileged() {
        return;
    }
    let runtime = containerd();
    for (name, annotations) in [("none", vec![]), ("some", vec![("team".to_owned(), "shop".to_owned())])] {
        let pod = Sandbox::start(&runtime, name, annotations);
        let path = runtime.host_path(&runtime.cri.sandbox_status(&pod.id).unwrap().netns);
        assert!(!netns::run_in(&path, nft::remove).unwrap().unwrap(), "{name}: there was a table");
        pod.remove();
    }
}

#[test]
fn failed_add_reports_the_reason_and_leaves_nothing() {
    if !weir_tests::privileged() {
        return;
    }
    let runtime = containerd();
    let mut annotations = injected_annotations(&json!({}));
    for (key, value) in &mut annotations {
        if key == "weir.dev/capture" {
            r#"{"v":1,"outboundPortsExclude":[70000]}"#.clone_into(value);
        }
    }
    let refused = runtime.cri.run_pod_sandbox(&runtime.pod("web", annotations)).unwrap_err();
    assert!(refused.message().contains(r#"plugin type="weir-cni" failed (add)"#), "{}", refused.message());
    assert!(
        refused.message().contains("weir.dev/capture") && refused.message().contains("70000"),
        "{}",
        refused.message()
    );
    assert_eq!(runtime.cri.sandboxes().unwrap(), Vec::<String>::new());
    // The name and the addresses are free again.
    Sandbox::start(&runtime, "web", injected_annotations(&json!({}))).remove();
}

#[test]
fn agent_restores_flushed_rules_under_traffic() {
    let Some(binary) = weir_tests::envoy_or_skip() else { return };
    // All of it: the agent installs the plugin, the webhook injects the pod, the API server stores it, the runtime runs it.
    let mut list: Value = serde_json::from_str(&conflist()).unwrap();
    list["plugins"].as_array_mut().unwrap().pop();
    let runtime =
        CriRuntime::start_release(RuntimeRelease::Installed, &[("10-test.conflist", &format!("{list:#}\n"))], None)
            .unwrap();
    import_envoy(&runtime, &binary);
    let api = ApiServer::start().unwrap();
    api.kubeconfig(runtime.dir()).unwrap();
    let _forward = runtime.forward(api.port()).unwrap();
    let mut agent = Agent::start(&runtime, &weir_tests::bin("weir-cni"), 8000, &["--repair-interval=1s"]).unwrap();
    agent.wait_until_ready(&runtime).unwrap();
    try_wait_until("the runtime has loaded the plugin", || {
        let loaded = runtime.cri.loaded_plugins()?;
        Ok(loaded.last().filter(|plugin| plugin.kind == "weir-cni").map(|_| ()).ok_or_else(|| format!("{loaded:?}")))
    })
    .unwrap();

    let mut object = admitted(&json!({}));
    let pod = Sandbox::start(&runtime, "web", weir_tests::webhook::annotations(&object));
    let addresses = pod.addresses();
    object["metadata"]["uid"] = "web-uid".into();
    object["spec"]["nodeName"] = NODE.into();
    let ips: Vec<Value> = addresses.iter().map(|ip| json!({ "ip": ip })).collect();
    object["status"] = json!({ "phase": "Sandbox", "podIP": addresses[0], "podIPs": ips });
    api.put("pods", object);
    let app = pod.start_containers();
    let to = SocketAddr::new(addresses[0], 8080);
    wait_until("the application responds", || get(&runtime, to));

    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let traffic = scope.spawn(|| {
            let mut answers = Vec::new();
            let started = Instant::now();
            // Bounded, in case the other thread panics.
            while !done.load(Ordering::Relaxed) && started.elapsed() < 3 * TIMEOUT {
                answers.push(get(&runtime, to));
            }
            answers
        });
        let captured = || pod.counter(&app, envoy::INBOUND_COUNTER);
        let passes_the_proxy = || {
            let before = captured();
            let more =
                || Ok(if captured() > before { Ok(()) } else { Err("no connection passed the proxy".to_owned()) });
            try_wait_until("connections are captured", more).unwrap();
        };
        passes_the_proxy();
        for round in 0..FLUSHES {
            let path = runtime.host_path(&runtime.cri.sandbox_status(&pod.id).unwrap().netns);
            // Chains stay: without the last base chain of a kind, the kernel would stop translating open connections.
            let flush = || Command::new("nft").args(["flush", "table", "inet", "weir"]).status();
            assert!(netns::run_in(&path, flush).unwrap().unwrap().success(), "round {round}");
            let flushed = Instant::now();
            try_wait_until("the rules are restored", || {
                let drift = pod.drift(&CaptureConfig::default());
                Ok(if drift.is_empty() { Ok(()) } else { Err(format!("{drift:?}\n{}", agent.log())) })
            })
            .unwrap();
            eprintln!("flushed rules were restored after {:.1?}", flushed.elapsed());
            passes_the_proxy();
        }
        done.store(true, Ordering::Relaxed);
        let answers = traffic.join().unwrap();
        let failed: Vec<_> = answers.iter().filter(|answer| answer.as_deref() != Ok("from the app\n")).collect();
        eprintln!("{} of {} connections failed: {:?}", failed.len(), answers.len(), failed.first());
        // The flush may break the one connection that is in progress, and so may the restoring. No other one may fail.
        assert!(failed.len() <= 2 * FLUSHES, "{} of {} connections failed: {failed:?}", failed.len(), answers.len());
    });
    assert!(agent.terminate().unwrap().success());
    pod.remove();
}
