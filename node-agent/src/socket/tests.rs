use std::path::Path;

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::pods::facts;
use weir_runtime::CancellationToken;

/// Limit for anything that should happen at once.
const TIMEOUT: Duration = Duration::from_secs(30);

fn pod(name: &str, uid: &str, status: bool) -> PodFacts {
    let annotations = if status { json!({"sidecar.istio.io/status": "{}"}) } else { json!({}) };
    facts(json!({
        "metadata": {"namespace": "shop", "name": name, "uid": uid, "annotations": annotations},
        "spec": {"containers": [{"name": "istio-proxy", "securityContext": {"runAsUser": 1500}}]},
    }))
}

fn server(fetch: Option<FetchPod>) -> PodQueryServer {
    PodQueryServer {
        pods: PodCache::default(),
        fetch,
        budget: Duration::from_millis(300),
        io_timeout: TIMEOUT,
        metrics: QueryMetrics::default(),
    }
}

fn query(uid: &str, name: &str) -> PodQuery {
    PodQuery { v: PROTOCOL_VERSION, uid: uid.to_owned(), namespace: "shop".to_owned(), name: name.to_owned() }
}

fn reason(answer: PodAnswer) -> String {
    match answer {
        PodAnswer::Unknown { reason } => reason,
        other => panic!("known: {other:?}"),
    }
}

#[tokio::test]
async fn pods_in_the_cache_are_answered() {
    let server = server(None);
    server.pods.replace(vec![pod("in", "u1", true), pod("out", "u2", false)]);
    let capture = server.answer(&query("u1", "in")).await;
    assert_eq!(capture, PodAnswer::Capture { capture: r#"{"v":1,"?ipv6Auto":true,"proxyUids":[1500]}"#.to_owned() });
    let skip = server.answer(&query("", "out")).await;
    assert!(matches!(&skip, PodAnswer::Skip { reason } if reason.contains("not in the mesh")), "{skip:?}");
    let other = server.answer(&PodQuery { v: 2, ..query("u1", "in") }).await;
    assert!(reason(other).contains("version"));
}

#[tokio::test]
async fn a_query_waits_for_a_new_pod() {
    let server = PodQueryServer { budget: TIMEOUT, ..server(None) };
    server.pods.replace(vec![pod("web-0", "old", true)]);
    let pods = server.pods.clone();
    let asking = tokio::spawn(async move { server.answer(&query("new", "web-0")).await });
    tokio::task::yield_now().await;
    pods.put(pod("web-0", "new", true));
    assert!(matches!(asking.await.unwrap(), PodAnswer::Capture { .. }));
}

#[tokio::test]
async fn the_api_server_is_asked_for_unknown_pods() {
    let fetch = |result: Result<Option<PodFacts>, String>| -> Option<FetchPod> {
        Some(Arc::new(move |_, _| {
            let result = result.clone();
            Box::pin(async move { result })
        }))
    };
    let found = server(fetch(Ok(Some(pod("web", "u1", true))))).answer(&query("u1", "web")).await;
    assert!(matches!(found, PodAnswer::Capture { .. }));
    for (result, part) in [
        (Ok(Some(pod("web", "u2", true))), "another uid: u2"),
        (Ok(None), "pod not found"),
        (Err("401 Unauthorized".to_owned()), "401 Unauthorized"),
    ] {
        let reason = reason(server(fetch(result)).answer(&query("u1", "web")).await);
        assert!(reason.contains(part), "{reason}");
    }
    let hangs: FetchPod = Arc::new(|_, _| Box::pin(std::future::pending()));
    assert!(reason(server(Some(hangs)).answer(&query("u1", "web")).await).contains("timed out"));
    let alone = server(None);
    alone.pods.record_error("connection refused".to_owned());
    let reason = reason(alone.answer(&query("u1", "web")).await);
    assert!(reason.contains("not in the agent's cache yet; connection refused"), "{reason}");
}

struct Running {
    _dir: tempfile::TempDir,
    path: PathBuf,
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<()>,
    metrics: QueryMetrics,
}

async fn start(server: PodQueryServer) -> Running {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run/agent.sock");
    let shutdown = CancellationToken::new();
    server.pods.replace(vec![pod("in", "u1", true)]);
    let metrics = server.metrics.clone();
    let task = tokio::spawn(server.serve(path.clone(), shutdown.clone()));
    until(|| path.exists()).await;
    Running { _dir: dir, path, shutdown, task, metrics }
}

async fn until(holds: impl Fn() -> bool) {
    timeout(TIMEOUT, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
}

async fn send(path: &Path, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(path).await.unwrap();
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
    let mut answer = String::new();
    let _ = timeout(TIMEOUT, stream.read_to_string(&mut answer)).await.unwrap();
    answer
}

#[tokio::test]
async fn malformed_and_silent_clients_do_no_harm() {
    use std::os::unix::fs::PermissionsExt as _;
    let running = start(server(None)).await;
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&running.path), mode(running.path.parent().unwrap())), (0o600, 0o750));

    let good = serde_json::to_vec(&query("u1", "in")).unwrap();
    let mut line = good.clone();
    line.push(b'\n');
    for nonsense in [&b"\n"[..], b"{}\n", b"[1,2\n", b"\xff\xfe\n", br#"{"v":1,"namespace":7,"name":"x"}"#] {
        assert!(send(&running.path, nonsense).await.contains("cannot parse query"), "{nonsense:?}");
    }
    assert_eq!(send(&running.path, &[b'x'; 3 * QUERY_MAX_BYTES]).await, "");
    drop(UnixStream::connect(&running.path).await.unwrap());
    // More silent clients than there are connections.
    let mut silent = Vec::new();
    for _ in 0..2 * MAX_CONNECTIONS {
        silent.push(UnixStream::connect(&running.path).await.unwrap());
    }
    until(|| running.metrics.queries.get_or_create(&QueryLabels { outcome: "busy" }).get() > 0).await;
    drop(silent);
    timeout(TIMEOUT, async {
        while !send(&running.path, &line).await.contains("capture") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    assert!(send(&running.path, &line).await.ends_with("}\n"));

    running.shutdown.cancel();
    timeout(TIMEOUT, running.task).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_silent_client_is_disconnected() {
    let running = start(PodQueryServer { io_timeout: Duration::from_millis(20), ..server(None) }).await;
    let mut client = UnixStream::connect(&running.path).await.unwrap();
    assert_eq!(timeout(TIMEOUT, client.read(&mut [0; 16])).await.unwrap().unwrap(), 0);
    running.shutdown.cancel();
}

#[tokio::test]
async fn a_removed_socket_is_bound_again() {
    let first = start(server(None)).await;
    let inode = |path: &Path| std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(path).unwrap());
    let before = inode(&first.path);
    // Another agent replaces the socket; the first accepts that.
    let second = BoundSocket::stream(&first.path).unwrap();
    assert_ne!(inode(&first.path), before);
    assert!(second.is_reachable(&first.path));
    let old = BoundSocket::stream(&first.path.with_file_name("old.sock")).unwrap();
    assert!(old.is_reachable(&first.path), "a socket of a running agent");
    drop(second);
    assert!(!old.is_reachable(&first.path), "a socket of a dead agent");
    std::fs::remove_file(&first.path).unwrap();
    until(|| first.path.exists()).await;
    let line = serde_json::to_string(&query("u1", "in")).unwrap() + "\n";
    assert!(send(&first.path, line.as_bytes()).await.contains("capture"));
    first.shutdown.cancel();
}
