//! One hostile client against the webhook's binary: forged records, huge reviews, requests that never end, idle connections, all at
//! once. Meanwhile honest reviews succeed, probes are answered, and memory stays below the limit of the manifests.
//!
//! `WEIR_HOSTILE_SECONDS` makes it longer (15 s). Clients share the processors with the webhook, so times are only bounded generously.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use http_body_util::BodyExt as _;
use hyper::Request;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use weir_lab::webhook::admission_review;

/// Memory limit of the manifests.
const MEMORY_LIMIT_KIB: u64 = 256 << 10;
/// What the API server waits for a review, by the manifests.
const REVIEW_TIMEOUT: Duration = Duration::from_secs(5);
/// Timeout of the kubelet's probes, by the manifests.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

struct Webhook {
    child: Child,
    https: SocketAddr,
    http: SocketAddr,
    connector: TlsConnector,
    _dir: tempfile::TempDir,
}

impl Webhook {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let free = || std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
        let (https, http, ca) = (free(), free(), dir.path().join("ca.pem"));
        let child = Command::new(weir_tests::bin("weir-webhook"))
            .args(["--https-addr", &https.to_string(), "--http-addr", &http.to_string(), "--log-level", "error"])
            .arg("--ca-out")
            .arg(&ca)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let begun = Instant::now();
        while probe(http).await.is_none() {
            assert!(begun.elapsed() < weir_tests::TIMEOUT, "the webhook does not start");
            sleep(Duration::from_millis(20)).await;
        }
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&fs::read(ca).unwrap()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let mut config = config.unwrap().with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Self { child, https, http, connector: TlsConnector::from(Arc::new(config)), _dir: dir }
    }

    fn target(&self) -> Target {
        Target { https: self.https, connector: self.connector.clone() }
    }
}

/// Returns the highest resident memory of a process so far, in KiB.
fn peak_memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

impl Drop for Webhook {
    fn drop(&mut self) {
        let _ = self.child.kill().and_then(|()| self.child.wait());
    }
}

#[derive(Clone)]
struct Target {
    https: SocketAddr,
    connector: TlsConnector,
}

impl Target {
    async fn connect(&self) -> Option<SendRequest<Body>> {
        let tcp = TcpStream::connect(self.https).await.ok()?;
        let stream = self.connector.connect(ServerName::try_from("localhost").unwrap(), tcp).await.ok()?;
        let (send, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.ok()?;
        tokio::spawn(connection);
        Some(send)
    }
}

/// Sends a review; returns status and body.
async fn ask(send: &mut SendRequest<Body>, body: Body) -> Option<(u16, Bytes)> {
    let request = Request::post("https://localhost/inject?timeout=5s").header("content-type", "application/json");
    send.ready().await.ok()?;
    let response = send.send_request(request.body(body).unwrap()).await.ok()?;
    let status = response.status().as_u16();
    Some((status, response.into_body().collect().await.ok()?.to_bytes()))
}

async fn probe(addr: SocketAddr) -> Option<Duration> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let begun = Instant::now();
    let exchange = async {
        let mut stream = TcpStream::connect(addr).await.ok()?;
        stream.write_all(b"GET /livez HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await.ok()?;
        text.starts_with("HTTP/1.1 200").then(|| begun.elapsed())
    };
    timeout(PROBE_TIMEOUT, exchange).await.ok()?
}

fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "shop", "name": name, "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "web", "image": "nginx", "ports": [{"containerPort": 80}]}]},
    })
}

/// Reviews of a hostile author: names forged into the record of an injection, and a pod of many fields.
fn hostile_reviews() -> Vec<Bytes> {
    let names: Vec<String> = (0..25_000).map(|number| format!("c{number}")).collect();
    let mut forged = pod("forged");
    let status = json!({"initContainers": names, "containers": names, "volumes": names, "imagePullSecrets": names});
    forged["metadata"]["annotations"] = json!({"sidecar.istio.io/status": status.to_string()});
    let mut huge = pod("huge");
    let env: Vec<_> = (0..60_000).map(|number| json!({"name": format!("VARIABLE_{number}"), "value": "x"})).collect();
    huge["spec"]["containers"][0]["env"] = env.into();
    let mut ports = pod("ports");
    let list: Vec<_> = (0..38_000).map(|port| json!({"containerPort": port + 1, "hostPort": port + 1})).collect();
    ports["spec"]["containers"][0]["ports"] = list.into();
    [forged, huge, ports].iter().map(|pod| Bytes::from(admission_review(pod).to_string())).collect()
}

async fn send_hostile_reviews(target: Target, review: Bytes, counter: Arc<AtomicU64>) {
    loop {
        let Some(mut send) = target.connect().await else { continue };
        while ask(&mut send, Body::from(review.clone())).await.is_some() {
            counter.fetch_add(1, Ordering::Relaxed);
            sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Keeps 128 requests of a connection unfinished, for ever.
async fn send_unfinished_bodies(target: Target) {
    loop {
        sleep(Duration::from_millis(100)).await;
        let Some(send) = target.connect().await else { continue };
        let requests: Vec<_> = (0..128)
            .map(|_| {
                let mut send = send.clone();
                let first = futures_util::stream::once(async { Ok::<_, std::io::Error>(Bytes::from_static(b"{")) });
                let body = futures_util::StreamExt::chain(first, futures_util::stream::pending());
                tokio::spawn(async move { ask(&mut send, Body::from_stream(body)).await })
            })
            .collect();
        for request in requests {
            let _ = request.await;
        }
    }
}

/// Keeps so many connections open without a request.
async fn hold_idle_connections(addr: SocketAddr, number: usize) {
    let mut held = Vec::new();
    loop {
        held.retain(|stream: &TcpStream| !matches!(stream.try_read(&mut [0]), Ok(0)) && stream.take_error().is_ok());
        while held.len() < number {
            match TcpStream::connect(addr).await {
                Ok(stream) => held.push(stream),
                Err(_) => break,
            }
        }
        sleep(Duration::from_millis(200)).await;
    }
}

#[derive(Debug, Default)]
struct Tally {
    latencies: Vec<Duration>,
    retried: u64,
    failed: Vec<String>,
}

impl Tally {
    fn permille(&self, of_thousand: usize) -> Duration {
        let mut sorted = self.latencies.clone();
        sorted.sort_unstable();
        sorted.get((sorted.len() * of_thousand / 1000).min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
    }
}

/// Sends reviews as an API server does: over one connection, with retries after 429 and after a connection that was closed, within the
/// timeout of the webhook configuration.
async fn send_honest_reviews(target: Target, done: Arc<AtomicBool>) -> Tally {
    let (mut tally, mut connection) = (Tally::default(), None);
    let review = Bytes::from(admission_review(&pod("web")).to_string());
    while !done.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let mut why = "no response".to_owned();
        let answered = timeout(REVIEW_TIMEOUT, async {
            loop {
                if connection.is_none() {
                    connection = target.connect().await;
                }
                let Some(send) = &mut connection else { continue };
                match ask(send, Body::from(review.clone())).await {
                    Some((200, body)) => return body,
                    Some((429, _)) => {
                        "429".clone_into(&mut why);
                        sleep(Duration::from_secs(1)).await;
                    }
                    Some((code, body)) => {
                        why = format!("{code}: {}", String::from_utf8_lossy(&body));
                        sleep(Duration::from_millis(100)).await;
                    }
                    None => connection = None,
                }
                tally.retried += 1;
            }
        })
        .await;
        match answered.map(|body| serde_json::from_slice::<Value>(&body)) {
            Ok(Ok(reply)) if reply["response"]["patch"].is_string() => tally.latencies.push(begun.elapsed()),
            Ok(reply) => tally.failed.push(format!("{reply:?}")),
            Err(_) => tally.failed.push(why),
        }
        sleep(Duration::from_millis(20)).await;
    }
    tally
}

async fn send_probes(addr: SocketAddr, done: Arc<AtomicBool>) -> Tally {
    let mut tally = Tally::default();
    while !done.load(Ordering::Relaxed) {
        match probe(addr).await {
            Some(time) => tally.latencies.push(time),
            None => tally.failed.push("no response".to_owned()),
        }
        sleep(Duration::from_millis(100)).await;
    }
    tally
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn honest_reviews_succeed_during_an_attack() {
    let seconds = std::env::var("WEIR_HOSTILE_SECONDS").map_or(15, |text| text.parse().expect("a number of seconds"));
    let mut webhook = Webhook::start().await;
    let (done, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut attack = tokio::task::JoinSet::new();
    for review in hostile_reviews() {
        attack.spawn(send_hostile_reviews(webhook.target(), review, Arc::clone(&sent)));
    }
    for _ in 0..4 {
        attack.spawn(send_unfinished_bodies(webhook.target()));
    }
    attack.spawn(hold_idle_connections(webhook.http, 1100));
    attack.spawn(hold_idle_connections(webhook.https, 600));
    sleep(Duration::from_secs(1)).await;

    let honest: Vec<_> =
        (0..2).map(|_| tokio::spawn(send_honest_reviews(webhook.target(), Arc::clone(&done)))).collect();
    let probes = tokio::spawn(send_probes(webhook.http, Arc::clone(&done)));
    sleep(Duration::from_secs(seconds)).await;
    done.store(true, Ordering::Relaxed);
    let mut reviews = Tally::default();
    for client in honest {
        let Tally { latencies, retried, failed } = client.await.unwrap();
        reviews.latencies.extend(latencies);
        reviews.retried += retried;
        reviews.failed.extend(failed);
    }
    let probes = probes.await.unwrap();
    attack.shutdown().await;

    let memory = peak_memory(webhook.child.id());
    println!(
        "{seconds} s: {} honest reviews, {} failed, {} retried, p50 {:?}, p99 {:?}, max {:?}; {} hostile ones answered; \
         {} probes, {} failed, max {:?}; peak memory {} MiB",
        reviews.latencies.len(),
        reviews.failed.len(),
        reviews.retried,
        reviews.permille(500),
        reviews.permille(990),
        reviews.permille(1000),
        sent.load(Ordering::Relaxed),
        probes.latencies.len(),
        probes.failed.len(),
        probes.permille(1000),
        memory >> 10,
    );
    assert!(reviews.failed.is_empty() && !reviews.latencies.is_empty(), "{:?}", reviews.failed.first());
    assert!(probes.failed.is_empty() && !probes.latencies.is_empty(), "{} probes failed", probes.failed.len());
    assert!(memory < MEMORY_LIMIT_KIB, "{memory} KiB");
    assert!(webhook.child.try_wait().unwrap().is_none(), "the webhook has exited");
}

/// A pod of about 1.5 MB, the largest request to etcd: of many small fields, or of one long one.
fn largest_pod(name: &str, many_fields: bool) -> Value {
    let mut pod = pod(name);
    pod["spec"]["nodeName"] = "node-1".into();
    pod["metadata"]["annotations"] = json!({"sidecar.istio.io/status": "{}"});
    let env: Vec<_> = if many_fields {
        (0..100_000).map(|number| json!({"name": format!("V{number}")})).collect()
    } else {
        vec![json!({"name": "LARGE", "value": "x".repeat(1_500_000)})]
    };
    pod["spec"]["containers"] = json!([{"name": "istio-proxy", "env": env}]);
    pod
}

#[test]
fn agent_lists_a_node_of_the_largest_pods() {
    let (api, dir) = (weir_apiserver::ApiServer::start().unwrap(), tempfile::tempdir().unwrap());
    for number in 0..12 {
        api.put("pods", largest_pod(&format!("p{number:03}"), number % 10 == 0));
    }
    let path = |name: &str| {
        let path = dir.path().join(name);
        fs::create_dir_all(&path).unwrap();
        path.display().to_string()
    };
    let port = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    let (conf, bin, log) = (path("conf"), path("bin"), fs::File::create(dir.path().join("log")).unwrap());
    let mut agent = Command::new(weir_tests::bin("weir-agent"))
        .env("KUBECONFIG", api.kubeconfig(dir.path()).unwrap())
        .env("NODE_NAME", "node-1")
        .args(["run", "--host-root=/", "--monitoring-port=0", "--repair-enabled=false", "--host-proc-dir=/proc"])
        .arg(format!("--health-port={port}"))
        .args([format!("--mounted-cni-net-dir={conf}"), format!("--cni-net-dir={conf}")])
        .args([format!("--mounted-cni-bin-dir={bin}"), format!("--cni-bin-dir={bin}")])
        .arg(format!("--plugin-source={}", weir_tests::bin("weir-cni").display()))
        .arg(format!("--cni-agent-run-dir={}", path("run")))
        .arg(format!("--netns-dirs={}", path("netns")))
        .stderr(log.try_clone().unwrap())
        .stdout(log)
        .spawn()
        .unwrap();
    let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let text = || fs::read_to_string(dir.path().join("log")).unwrap_or_default();
    // A debug build reads 165 MB in a minute on a busy machine.
    let begun = Instant::now();
    let is_synced = || weir_lab::http::get(addr, "/readyz").is_ok_and(|response| response.body.contains("[+]pods:"));
    let mut synced = false;
    while !synced && begun.elapsed() < 4 * weir_tests::TIMEOUT && agent.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(200));
        synced = is_synced();
    }
    let peak = if synced { peak_memory(agent.id()) } else { 0 };
    let _ = agent.kill().and_then(|()| agent.wait());
    assert!(synced, "the agent does not know its pods: {}", text());
    println!("peak memory of the agent with 110 pods of 1.5 MB: {} MiB", peak >> 10);
    assert!(peak < 128 << 10, "{peak} KiB");
}
