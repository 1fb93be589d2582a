//! The server on real sockets: TLS, certificate rotation, limits and shutdown.

mod certificates;
mod client;
mod crowd;
mod injection;
mod memory;
mod process;
mod watched;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use clap::Parser as _;
use hyper::StatusCode;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use weir_webhook::args::Cli;
use weir_webhook::certs::{self, GeneratedCerts};
use weir_webhook::config::Config;
use weir_webhook::run::Server;

use client::{Client, get};

/// Bound of every wait: far longer than anything here takes.
const TIMEOUT: Duration = Duration::from_secs(30);
const H1: &[&str] = &["http/1.1"];
const H2: &[&str] = &["h2", "http/1.1"];

fn review(version: &str) -> Value {
    json!({
        "apiVersion": format!("admission.k8s.io/{version}"), "kind": "AdmissionReview",
        "request": {
            "uid": "uid-1", "operation": "CREATE", "namespace": "shop", "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "object": {
                "apiVersion": "v1", "kind": "Pod", "metadata": {"generateName": "web-", "labels": {"app": "web"}},
                "spec": {"containers": [{"name": "web", "image": "nginx", "ports": [{"containerPort": 80}]}]},
            },
        },
    })
}

async fn start(flags: &[&str]) -> Server {
    let fixed =
        ["weir-webhook", "--https-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0", "--reload-interval", "100ms"];
    let cli = Cli::try_parse_from(fixed.iter().chain(flags)).unwrap();
    Server::start(Config::resolve(cli.serve).unwrap()).await.unwrap()
}

async fn metrics(server: &Server) -> String {
    get(server.http().unwrap(), "/metrics").await.1
}

/// Waits until the metrics have this line.
async fn wait_for_metric(server: &Server, line: &str) {
    let shown = async {
        while !metrics(server).await.lines().any(|found| found == line) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let in_time = timeout(TIMEOUT, shown).await.is_ok();
    assert!(in_time, "{line:?} never shows up in\n{}", metrics(server).await);
}

fn generate() -> GeneratedCerts {
    certs::generate(&["localhost".to_owned()], 1, SystemTime::now()).unwrap()
}

fn write_pair(dir: &Path, certs: &GeneratedCerts) {
    certs.write(dir, true).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificate_rotation_under_load_fails_no_handshake() {
    let dir = tempfile::tempdir().unwrap();
    let generated: Vec<_> = (0..4).map(|_| generate()).collect();
    write_pair(dir.path(), &generated[0]);
    let server = start(&["--cert-dir", dir.path().to_str().unwrap()]).await;
    let cas: Vec<_> = generated.iter().map(|certs| certs.ca.as_str()).collect();
    let client = Client::new(server.https(), &cas, H1);

    let done = Arc::new(AtomicBool::new(false));
    let load: Vec<_> = (0..4)
        .map(|_| {
            let (client, done) = (client.clone(), Arc::clone(&done));
            tokio::spawn(async move {
                let mut handshakes = 0;
                while !done.load(Ordering::Relaxed) {
                    let (status, _) = client.post("/inject", review("v1").to_string()).await;
                    assert_eq!(status, StatusCode::OK);
                    handshakes += 1;
                }
                handshakes
            })
        })
        .collect();
    let trusting = |ca: &str| Client::new(server.https(), &[ca], H1);
    for certs in &generated[1..] {
        write_pair(dir.path(), certs);
        let only_new = trusting(&certs.ca);
        let rotated = async {
            while only_new.connect().await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(TIMEOUT, rotated).await.expect("the new certificate is served");
    }
    done.store(true, Ordering::Relaxed);
    for worker in load {
        assert!(worker.await.expect("no handshake failed") > 0);
    }
    assert!(trusting(&generated[0].ca).connect().await.is_err(), "the first certificate is gone");
    server.shutdown(std::future::pending()).await;
}

#[tokio::test]
async fn mismatched_key_pair_keeps_the_old_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (generate(), generate());
    write_pair(dir.path(), &old);
    let server = start(&["--cert-dir", dir.path().to_str().unwrap()]).await;
    certs::write_file(&dir.path().join(certs::CERT_FILE), &new.cert, 0o644, true).unwrap();
    wait_for_metric(&server, "weir_webhook_reloads_total{source=\"certificate\",result=\"refused\"} 1").await;
    Client::new(server.https(), &[&old.ca], H1).connect().await.expect("the old one is served");
    let (status, detail) = get(server.http().unwrap(), "/readyz").await;
    assert_eq!(status, StatusCode::OK);
    assert!(detail.contains("does not match") && detail.contains(certs::KEY_FILE), "{detail}");

    certs::write_file(&dir.path().join(certs::KEY_FILE), &new.key, 0o600, true).unwrap();
    wait_for_metric(&server, "weir_webhook_reloads_total{source=\"certificate\",result=\"replaced\"} 1").await;
    Client::new(server.https(), &[&new.ca], H1).connect().await.expect("the whole new pair is served");
    assert!(get(server.http().unwrap(), "/readyz").await.1.contains("[+]certificate: ok"));
    server.shutdown(std::future::pending()).await;
}

/// Returns whether the peer closes or resets the connection.
async fn closed(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> bool {
    let mut rest = Vec::new();
    timeout(TIMEOUT, stream.read_to_end(&mut rest)).await.is_ok()
}

#[tokio::test]
async fn slow_clients_are_disconnected() {
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca.pem");
    // Long enough for a handshake on a busy machine.
    let flags = ["--handshake-timeout", "2s", "--idle-timeout", "2s", "--request-timeout", "1s"];
    let server = start(&[&flags[..], &["--ca-out", ca.to_str().unwrap()]].concat()).await;
    let ca = std::fs::read_to_string(&ca).unwrap();
    let connect = async |alpn| Client::new(server.https(), &[&ca], alpn).connect().await.unwrap();

    let no_handshake = async {
        let mut silent = TcpStream::connect(server.https()).await.unwrap();
        assert!(closed(&mut silent).await, "no handshake");
    };
    let no_request = async |alpn| {
        let mut idle = connect(alpn).await;
        assert!(closed(&mut idle).await, "no request over {alpn:?}");
    };
    let endless_headers = async {
        let (mut read, mut write) = tokio::io::split(connect(H1).await);
        let dribble = tokio::spawn(async move {
            for byte in b"POST /inject HTTP/1.1\r\n".iter().chain(b"x-pad: 1\r\n".iter().cycle()) {
                if write.write_all(&[*byte]).await.is_err() || write.flush().await.is_err() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        assert!(closed(&mut read).await, "headers that never end");
        dribble.abort();
    };
    let lost_body = async {
        let mut body = connect(H1).await;
        let head = "POST /inject HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{";
        body.write_all(head.as_bytes()).await.unwrap();
        let mut answer = vec![0; 12];
        timeout(TIMEOUT, body.read_exact(&mut answer)).await.unwrap().unwrap();
        assert_eq!(answer, b"HTTP/1.1 408");
        assert!(closed(&mut body).await, "a body that does not arrive");
    };
    tokio::join!(no_handshake, no_request(H1), no_request(H2), endless_headers, lost_body);
    server.shutdown(std::future::pending()).await;
}

#[tokio::test]
async fn body_of_ten_megabytes_gets_413() {
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca.pem");
    let server = start(&["--ca-out", ca.to_str().unwrap()]).await;
    let ca = std::fs::read_to_string(&ca).unwrap();
    for alpn in [H1, H2] {
        let client = Client::new(server.https(), &[&ca], alpn);
        let (status, answer) = client.post("/inject", vec![b' '; 10 << 20]).await;
        assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(answer["response"]["allowed"], false);
        assert_eq!(client.post("/inject", review("v1").to_string()).await.0, StatusCode::OK);
    }
    server.shutdown(std::future::pending()).await;
}

#[tokio::test]
async fn garbage_on_the_tls_port_fails_only_its_handshake() {
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca.pem");
    let server = start(&["--ca-out", ca.to_str().unwrap()]).await;
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 4096], &[0xff; 4096], b"\x16\x03\x01\x00\x05hello"] {
        let mut stream = TcpStream::connect(server.https()).await.unwrap();
        let _ = stream.write_all(garbage).await;
        assert!(closed(&mut stream).await);
    }
    wait_for_metric(&server, "weir_webhook_tls_handshake_failures_total 4").await;
    let client = Client::new(server.https(), &[&std::fs::read_to_string(&ca).unwrap()], H1);
    assert_eq!(client.post("/inject", review("v1").to_string()).await.0, StatusCode::OK);
    server.shutdown(std::future::pending()).await;
}

#[tokio::test]
async fn full_port_closes_idle_connections_only() {
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca.pem");
    let server = start(&["--max-connections", "4", "--ca-out", ca.to_str().unwrap()]).await;
    let client = Client::new(server.https(), &[&std::fs::read_to_string(&ca).unwrap()], H1);
    // All of this client's places.
    let (mut first, mut second) = (client.connect().await.unwrap(), client.connect().await.unwrap());
    let answer = timeout(TIMEOUT, client.post("/inject", review("v1").to_string())).await;
    assert_eq!(answer.expect("it takes the place of the first").0, StatusCode::OK);
    assert!(closed(&mut first).await);
    let more = [client.connect().await.unwrap(), client.connect().await.unwrap()];
    assert!(closed(&mut second).await, "the next idlest");
    drop(more);
    server.shutdown(std::future::pending()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_and_unfinished_bodies_hold_up_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca.pem");
    let server = start(&["--ca-out", ca.to_str().unwrap()]).await;
    let ca = std::fs::read_to_string(&ca).unwrap();
    let http = server.http().unwrap();
    let mut idle = Vec::new();
    for _ in 0..1100 {
        idle.push(TcpStream::connect(http).await.unwrap());
    }
    let mut unfinished = Vec::new();
    for _ in 0..512 {
        let mut body = Client::new(server.https(), &[&ca], H1).connect().await.unwrap();
        let head = "POST /inject HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{";
        body.write_all(head.as_bytes()).await.unwrap();
        unfinished.push(body);
    }
    let client = Client::new(server.https(), &[&ca], H2);
    for _ in 0..20 {
        let begun = std::time::Instant::now();
        assert_eq!(client.post("/inject", review("v1").to_string()).await.0, StatusCode::OK);
        assert_eq!(get(http, "/livez").await.0, StatusCode::OK);
        assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    }
    server.shutdown(std::future::pending()).await;
}
