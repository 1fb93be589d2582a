//! A hostile tenant: forged records, huge reviews, requests that never end, idle connections and hostile sandboxes, all at once, until
//! standard input ends. Then prints how many reviews and ADDs were answered.
//!
//! Its one argument is a JSON object: `https`, `ca`, `idle` (addresses whose connections are held), `plugin`, `netns`.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test's own program")]

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::body::{Body, Bytes};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::sleep;
use weir_lab::webhook::admission_review;
use weir_tests::review_client::{ReviewTarget, send_review};

/// Connections that are held open without a request, at each address.
const IDLE: usize = 1100;

fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "shop", "name": name, "annotations": {}},
        "spec": {"containers": [{"name": "web", "image": "nginx", "ports": [{"containerPort": 80}]}]},
    })
}

/// Annotations that were products once: interfaces and networks, and what a record names.
fn hostile_capture() -> Value {
    let interfaces: Vec<_> = (0..64).map(|number| format!("e{number}")).collect();
    let nets: Vec<_> = (0..1400).map(|number| format!("11.{}.{}.0/24", number / 256, number % 256)).collect();
    json!({"v": 1, "rerouteInterfaces": interfaces, "outboundCidrs": nets})
}

fn hostile_reviews() -> Vec<Bytes> {
    let many = |count: usize, item: &dyn Fn(usize) -> Value| -> Value { (0..count).map(item).collect() };
    let mut forged = pod("forged");
    let names = many(25_000, &|number| format!("c{number}").into());
    let status = json!({"initContainers": names, "containers": names, "volumes": names, "imagePullSecrets": names});
    forged["metadata"]["annotations"] = json!({"sidecar.istio.io/status": status.to_string()});
    let mut huge = pod("huge");
    huge["spec"]["containers"][0]["env"] =
        many(60_000, &|number| json!({"name": format!("VARIABLE_{number}"), "value": "x"}));
    // As many as are accepted.
    let mut large = pod("large");
    large["spec"]["containers"][0]["env"] =
        many(9000, &|number| json!({"name": format!("VARIABLE_{number}"), "value": "x"}));
    let mut long = pod("long");
    long["spec"]["containers"][0]["image"] = "\"\n".repeat(1 << 20).into();
    let mut ports = pod("ports");
    ports["spec"]["containers"][0]["ports"] =
        many(38_000, &|port| json!({"containerPort": port + 1, "hostPort": port + 1}));
    let mut product = pod("product");
    let annotations = &mut product["metadata"]["annotations"];
    let capture = hostile_capture();
    let list = |field: &str| {
        capture[field].as_array().unwrap().iter().map(|item| item.as_str().unwrap()).collect::<Vec<_>>().join(",")
    };
    annotations["istio.io/reroute-virtual-interfaces"] = list("rerouteInterfaces").into();
    annotations["traffic.sidecar.istio.io/includeOutboundIPRanges"] = list("outboundCidrs").into();
    let mut records = pod("records");
    records["spec"]["containers"] = many(900, &|number| json!({"name": format!("c{number}"), "image": "i"}));
    let overrides = many(900, &|number| json!({"name": format!("c{number}"), "image": "forged"}));
    records["metadata"]["annotations"] = json!({
        "sidecar.istio.io/status": json!({"containers": many(900, &|number| format!("c{number}").into())}).to_string(),
        "proxy.istio.io/overrides": json!({ "containers": overrides }).to_string(),
    });
    let pods = [forged, huge, large, long, ports, product, records];
    pods.iter().map(|pod| Bytes::from(admission_review(pod).to_string())).collect()
}

async fn send_hostile_reviews(target: ReviewTarget, review: Bytes, answered: Arc<AtomicU64>) {
    loop {
        sleep(Duration::from_millis(100)).await;
        let Some(mut send) = target.connect().await else { continue };
        while send_review(&mut send, Body::from(review.clone())).await.is_some() {
            answered.fetch_add(1, Ordering::Relaxed);
            sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Keeps 128 requests of a connection unfinished, for ever.
async fn send_unfinished_bodies(target: ReviewTarget) {
    loop {
        sleep(Duration::from_millis(100)).await;
        let Some(send) = target.connect().await else { continue };
        let requests: Vec<_> = (0..128)
            .map(|_| {
                let mut send = send.clone();
                let first = futures_util::stream::once(async { Ok::<_, std::io::Error>(Bytes::from_static(b"{")) });
                let body = futures_util::StreamExt::chain(first, futures_util::stream::pending());
                tokio::spawn(async move { send_review(&mut send, Body::from_stream(body)).await })
            })
            .collect();
        for request in requests {
            let _ = request.await;
        }
    }
}

/// Connects from another address than the kubelet, as every pod does that is not on the host network.
async fn connect_as_pod(addr: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = tokio::net::TcpSocket::new_v4()?;
    socket.bind(([127, 0, 0, 2], 0).into())?;
    socket.connect(addr).await
}

async fn hold_idle_connections(addr: SocketAddr) {
    let mut held = Vec::new();
    loop {
        held.retain(|stream: &TcpStream| !matches!(stream.try_read(&mut [0]), Ok(0)) && stream.take_error().is_ok());
        while held.len() < IDLE {
            match connect_as_pod(addr).await {
                Ok(stream) => held.push(stream),
                Err(_) => break,
            }
        }
        sleep(Duration::from_millis(200)).await;
    }
}

/// Starts sandboxes with hostile annotations, as a kubelet does for the tenant's pods.
fn add_hostile_pods(plugin: &Path, netns: &Path, answered: &AtomicU64) {
    let annotations = json!({"sidecar.istio.io/status": "{}", "weir.dev/capture": hostile_capture().to_string()});
    let conf = json!({
        "cniVersion": "1.0.0", "name": "n", "type": "weir-cni", "prevResult": {"cniVersion": "1.0.0"},
        "capabilities": {"io.kubernetes.cri.pod-annotations": true},
        "runtimeConfig": {"io.kubernetes.cri.pod-annotations": annotations},
    });
    loop {
        let mut child = Command::new(plugin)
            .env_clear()
            .envs([("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", "hostile"), ("CNI_IFNAME", "eth0")])
            .env("CNI_NETNS", netns)
            .env("CNI_ARGS", "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=hostile;K8S_POD_UID=hostile")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let _ = child.stdin.take().unwrap().write_all(conf.to_string().as_bytes());
        child.wait().unwrap();
        answered.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let args: Value = serde_json::from_str(&std::env::args().nth(1).unwrap()).unwrap();
    let text = |key: &str| args[key].as_str().unwrap().to_owned();
    let target = ReviewTarget::new(text("https").parse().unwrap(), text("ca").as_ref()).unwrap();
    let (reviews, adds) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    for review in hostile_reviews() {
        tokio::spawn(send_hostile_reviews(target.clone(), review, Arc::clone(&reviews)));
    }
    for _ in 0..4 {
        tokio::spawn(send_unfinished_bodies(target.clone()));
    }
    for addr in args["idle"].as_array().unwrap() {
        tokio::spawn(hold_idle_connections(addr.as_str().unwrap().parse().unwrap()));
    }
    if let (Some(plugin), Some(netns)) = (args["plugin"].as_str(), args["netns"].as_str()) {
        let (plugin, netns, adds) = (plugin.to_owned(), netns.to_owned(), Arc::clone(&adds));
        std::thread::spawn(move || add_hostile_pods(plugin.as_ref(), netns.as_ref(), &adds));
    }
    tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await.unwrap().unwrap();
    println!("{}", json!({"reviews": reviews.load(Ordering::Relaxed), "adds": adds.load(Ordering::Relaxed)}));
}
