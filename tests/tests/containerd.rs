//! Debian's containerd calls bridge, portmap and `weir-cni` for pods whose annotations come from the injector; an application and a
//! real Envoy then run in the sandbox.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic like tests")]

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use iptables_rules::{CaptureConfig, plan};
use serde_json::{Value, json};
use weir_apiserver::ApiServer;
use weir_kernel::{netns, nft};
use weir_lab::{dial, envoy};
use weir_tests::agent::{Agent, NODE, until};
use weir_tests::cri::{self, Container, ExecOutput, Mount, PodSandboxConfig};
use weir_tests::image::Image;
use weir_tests::runtime::{BUSYBOX, Release, Runtime};
use weir_tests::webhook::Webhook;

const APP_UID: i64 = 1000;
const PROXY_UID: i64 = 1337;
const BOUND: Duration = Duration::from_secs(5);
/// How often rules are flushed under traffic.
const ROUNDS: usize = 3;

/// Last in the chain, as on a node; both families.
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

fn containerd() -> Runtime {
    Runtime::start(&conflist(), &weir_tests::bin("weir-cni")).unwrap()
}

/// A pod as the admission webhook leaves it.
fn admitted(annotations: &Value) -> Value {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": "web", "namespace": "shop", "labels": { "app": "web" }, "annotations": annotations },
        "spec": { "containers": [{ "name": "web", "image": "web:1", "ports": [{ "containerPort": 8080 }] }] },
    });
    Webhook::start().unwrap().admit(&pod).unwrap()
}

/// Its annotations.
fn injected(annotations: &Value) -> Vec<(String, String)> {
    weir_tests::webhook::annotations(&admitted(annotations))
}

/// A pod that runs, and is stopped and removed twice at the end, as a kubelet does.
struct Running<'a> {
    runtime: &'a Runtime,
    config: PodSandboxConfig,
    id: String,
}

impl<'a> Running<'a> {
    fn start(runtime: &'a Runtime, name: &str, annotations: Vec<(String, String)>) -> Self {
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

    /// Lines of difference between the pod's rules and the expected ones.
    fn drift(&self, expected: &CaptureConfig) -> Vec<String> {
        let path = self.runtime.path_from_here(&self.runtime.cri.sandbox_status(&self.id).unwrap().netns);
        netns::within(&path, || nft::verify(&plan(expected).unwrap())).unwrap().unwrap()
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

    /// Starts the application, which is returned, and the proxy; with [`import_envoy`] before.
    fn serve(&self) -> String {
        let app = self.container(
            "web",
            BUSYBOX,
            APP_UID,
            &["/bin/sh", "-c", "echo from the app > /tmp/index.html; exec httpd -f -p 8080 -h /tmp"],
            vec![],
        );
        let config = self.runtime.folder().join("envoy.json").display().to_string();
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

    /// A counter of the proxy, asked from the application's container.
    fn counter(&self, app: &str, name: &str) -> u64 {
        let url = format!("http://127.0.0.1:{}/stats?filter=^{name}$", envoy::ADMIN_PORT);
        let text = eventually("Envoy's counters", || {
            succeeded(&self.runtime.cri.exec(app, &["/bin/wget", "-q", "-O", "-", &url]).map_err(|s| s.to_string())?)
        });
        text.rsplit(' ')
            .next()
            .and_then(|number| number.trim().parse().ok())
            .unwrap_or_else(|| panic!("no counter in {text:?}"))
    }

    fn end(self) {
        for call in [cri::Client::stop_pod_sandbox, cri::Client::remove_pod_sandbox] {
            call(&self.runtime.cri, &self.id).unwrap();
            call(&self.runtime.cri, &self.id).unwrap();
        }
        assert_eq!(self.runtime.cri.sandboxes().unwrap(), Vec::<String>::new());
    }
}

/// Makes Envoy's image and configuration known to the runtime.
fn import_envoy(runtime: &Runtime, binary: &Path) {
    runtime.import(&Image::default().program(binary, "/bin/envoy").unwrap(), "test.local/envoy:1").unwrap();
    std::fs::write(runtime.folder().join("envoy.json"), envoy::bootstrap().to_string()).unwrap();
}

/// GET over a fresh connection from the node; the body, or why there is none.
fn get(runtime: &Runtime, to: SocketAddr) -> Result<String, String> {
    netns::within(&runtime.node_netns(), || {
        let mut stream = dial::connect(None, to, BOUND).map_err(|error| error.to_string())?;
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

/// Asks until it works, within the bound: a container that was started is not one that listens.
fn eventually<T>(what: &str, mut ask: impl FnMut() -> Result<T, String>) -> T {
    let started = Instant::now();
    loop {
        match ask() {
            Ok(value) => return value,
            Err(why) if started.elapsed() > BOUND => panic!("{what}: {why}"),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

fn succeeded(output: &ExecOutput) -> Result<String, String> {
    if output.exit_code == 0 {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(format!("exit {}: {}", output.exit_code, String::from_utf8_lossy(&output.stderr)))
    }
}

#[test]
fn a_meshed_pod_starts_with_its_rules_and_its_traffic_passes_a_real_envoy_in_both_families() {
    let Some(binary) = weir_tests::envoy_or_skip() else { return };
    let runtime = containerd();
    import_envoy(&runtime, &binary);
    let pod = Running::start(&runtime, "web", injected(&json!({})));
    assert_eq!(pod.drift(&CaptureConfig::default()), Vec::<String>::new());

    let app = pod.serve();
    let counter = |name: &str| pod.counter(&app, name);
    assert_eq!((counter(envoy::INBOUND_COUNTER), counter(envoy::OUTBOUND_COUNTER)), (0, 0));

    let addresses = pod.addresses();
    assert_eq!(addresses.len(), 2, "one address of each family: {addresses:?}");
    let mut expected = 0;
    for address in addresses {
        let body = eventually("inbound", || get(&runtime, SocketAddr::new(address, 8080)));
        assert_eq!(body, "from the app\n");
        assert!(counter(envoy::INBOUND_COUNTER) > expected, "{address}: the connection did not pass the proxy");
        for port in envoy::HEALTH_PORTS {
            let before = counter(envoy::INBOUND_COUNTER);
            assert_eq!(get(&runtime, SocketAddr::new(address, port)), Ok(format!("port={port}\n")));
            assert_eq!(counter(envoy::INBOUND_COUNTER), before, "{address}:{port} was captured");
        }

        // Out: to a listener on the node's end of the bridge, which the pod knows as its gateway.
        let gateway: IpAddr = if address.is_ipv4() { "10.77.0.1".parse().unwrap() } else { "fd77::1".parse().unwrap() };
        let listener = netns::within(&runtime.node_netns(), || TcpListener::bind((gateway, 7777))).unwrap().unwrap();
        let peer = std::thread::spawn(move || {
            let (mut stream, peer) = listener.accept().unwrap();
            stream.set_read_timeout(Some(BOUND)).unwrap();
            let _ = stream.read(&mut [0; 1024]).unwrap();
            stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nfrom outside\n").unwrap();
            peer
        });
        let before = counter(envoy::OUTBOUND_COUNTER);
        let url = format!("http://{}/", SocketAddr::new(gateway, 7777));
        let output = runtime.cri.exec(&app, &["/bin/wget", "-q", "-O", "-", &url]).unwrap();
        assert_eq!(succeeded(&output), Ok("from outside\n".to_owned()), "{url}");
        assert_eq!(peer.join().unwrap().ip(), address, "the proxy goes out from the pod's address");
        assert_eq!(counter(envoy::OUTBOUND_COUNTER), before + 1, "{gateway}: the connection did not pass the proxy");
        expected = counter(envoy::INBOUND_COUNTER);
    }
    pod.end();
}

#[test]
fn what_a_pod_asks_for_in_its_annotations_is_what_containerd_gets_programmed() {
    if !weir_tests::privileged() {
        return;
    }
    let runtime = containerd();
    let asked = json!({
        "traffic.sidecar.istio.io/excludeOutboundIPRanges": "10.1.0.0/16,fd01::/32",
        "traffic.sidecar.istio.io/excludeInboundPorts": "9000",
    });
    let expected = CaptureConfig {
        outbound_cidrs_exclude: vec!["10.1.0.0/16".parse().unwrap(), "fd01::/32".parse().unwrap()],
        inbound_ports_exclude: vec![9000, 15020, 15021, 15090],
        ..CaptureConfig::default()
    };
    let pod = Running::start(&runtime, "web", injected(&asked));
    assert_eq!(pod.drift(&expected), Vec::<String>::new());
    assert_ne!(pod.drift(&CaptureConfig::default()), Vec::<String>::new());
    pod.end();
}

#[test]
fn a_pod_outside_the_mesh_passes_untouched_with_and_without_annotations() {
    if !weir_tests::privileged() {
        return;
    }
    let runtime = containerd();
    for (name, annotations) in [("none", vec![]), ("some", vec![("team".to_owned(), "shop".to_owned())])] {
        let pod = Running::start(&runtime, name, annotations);
        let path = runtime.path_from_here(&runtime.cri.sandbox_status(&pod.id).unwrap().netns);
        assert!(!netns::within(&path, nft::remove).unwrap().unwrap(), "{name}: there was a table");
        pod.end();
    }
}

#[test]
fn a_failing_add_shows_our_text_and_leaves_nothing() {
    if !weir_tests::privileged() {
        return;
    }
    let runtime = containerd();
    let mut annotations = injected(&json!({}));
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
    Running::start(&runtime, "web", injected(&json!({}))).end();
}

#[test]
fn the_agent_puts_flushed_rules_back_while_traffic_flows() {
    let Some(binary) = weir_tests::envoy_or_skip() else { return };
    // The whole pipeline: the agent installs the plugin; the webhook makes the pod, the API server has it, the runtime runs it.
    let mut list: Value = serde_json::from_str(&conflist()).unwrap();
    list["plugins"].as_array_mut().unwrap().pop();
    let runtime =
        Runtime::start_release(Release::Installed, &[("10-test.conflist", &format!("{list:#}\n"))], None).unwrap();
    import_envoy(&runtime, &binary);
    let api = ApiServer::start().unwrap();
    api.kubeconfig(runtime.folder()).unwrap();
    let _way = runtime.forward(api.port()).unwrap();
    let mut agent = Agent::start(&runtime, &weir_tests::bin("weir-cni"), 8000, &["--repair-interval=1s"]).unwrap();
    agent.wait_until_ready(&runtime).unwrap();
    until("the runtime follows", || {
        let loaded = runtime.cri.loaded_plugins()?;
        Ok(loaded.last().filter(|plugin| plugin.kind == "weir-cni").map(|_| ()).ok_or_else(|| format!("{loaded:?}")))
    })
    .unwrap();

    let mut object = admitted(&json!({}));
    let pod = Running::start(&runtime, "web", weir_tests::webhook::annotations(&object));
    let addresses = pod.addresses();
    object["metadata"]["uid"] = "web-uid".into();
    object["spec"]["nodeName"] = NODE.into();
    let ips: Vec<Value> = addresses.iter().map(|ip| json!({ "ip": ip })).collect();
    object["status"] = json!({ "phase": "Running", "podIP": addresses[0], "podIPs": ips });
    api.put("pods", object);
    let app = pod.serve();
    let to = SocketAddr::new(addresses[0], 8080);
    eventually("inbound", || get(&runtime, to));

    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let traffic = scope.spawn(|| {
            let mut answers = Vec::new();
            let started = Instant::now();
            // Bounded, for when the other thread fails.
            while !over.load(Ordering::Relaxed) && started.elapsed() < 3 * weir_tests::agent::BOUND {
                answers.push(get(&runtime, to));
            }
            answers
        });
        let captured = || pod.counter(&app, envoy::INBOUND_COUNTER);
        let passes_the_proxy = || {
            let before = captured();
            let more =
                || Ok(if captured() > before { Ok(()) } else { Err("no connection passed the proxy".to_owned()) });
            until("connections are captured", more).unwrap();
        };
        passes_the_proxy();
        for round in 0..ROUNDS {
            let path = runtime.path_from_here(&runtime.cri.sandbox_status(&pod.id).unwrap().netns);
            // The rules alone: with the last chain of a kind, the kernel would also stop translating connections that are open.
            let flush = || Command::new("nft").args(["flush", "table", "inet", "weir"]).status();
            assert!(netns::within(&path, flush).unwrap().unwrap().success(), "round {round}");
            let flushed = Instant::now();
            until("the rules are back", || {
                let drift = pod.drift(&CaptureConfig::default());
                Ok(if drift.is_empty() { Ok(()) } else { Err(format!("{drift:?}\n{}", agent.log())) })
            })
            .unwrap();
            eprintln!("flushed rules were back after {:.1?}", flushed.elapsed());
            passes_the_proxy();
        }
        over.store(true, Ordering::Relaxed);
        let answers = traffic.join().unwrap();
        let failed: Vec<_> = answers.iter().filter(|answer| answer.as_deref() != Ok("from the app\n")).collect();
        eprintln!("{} of {} connections failed: {:?}", failed.len(), answers.len(), failed.first());
        // Somebody else's flush may cost the one connection that is on its way at that moment, and so may its end. No other one.
        assert!(failed.len() <= 2 * ROUNDS, "{} of {} connections failed: {failed:?}", failed.len(), answers.len());
    });
    assert!(agent.terminate().unwrap().success());
    pod.end();
}
