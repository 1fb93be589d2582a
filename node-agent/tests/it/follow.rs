//! The pod cache follows the API server through its faults.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use weir_agent::pods::{ClientFactory, PodCache, PodReflector};
use weir_apiserver::{ApiServer, FaultTarget, ServerFault};
use weir_runtime::CancellationToken;

/// Limit for anything that should happen soon.
const TIMEOUT: Duration = Duration::from_mins(1);

pub(crate) fn pod(node: &str, name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "shop", "name": name, "annotations": {"sidecar.istio.io/status": "{}"}},
        "spec": {"nodeName": node, "containers": [{"name": "istio-proxy"}]},
    })
}

/// Returns a factory of clients of a server; each reads the token again, like that of a projected volume.
pub(crate) fn connect(server: &ApiServer, token: impl Fn() -> Option<String> + Send + Sync + 'static) -> ClientFactory {
    let url = server.url();
    Arc::new(move || {
        let mut config = kube::Config::new(url.parse().map_err(|error| format!("{error:?}"))?);
        config.auth_info.token = token().map(Into::into);
        kube::Client::try_from(config).map_err(|error| error.to_string())
    })
}

pub(crate) fn follow(connect: ClientFactory) -> (PodCache, CancellationToken) {
    let pods = PodCache::default();
    let shutdown = CancellationToken::new();
    let follower = PodReflector {
        client_factory: connect,
        node: "n1".to_owned(),
        exclude_namespaces: vec!["kube-system".to_owned()],
        pods: pods.clone(),
    };
    tokio::spawn(follower.run(shutdown.clone()));
    (pods, shutdown)
}

/// Polls until `holds` is true.
#[track_caller]
pub(crate) fn until(what: &str, holds: impl Fn() -> bool) -> impl Future<Output = ()> {
    let place = std::panic::Location::caller();
    async move {
        let begun = Instant::now();
        while !holds() {
            assert!(begun.elapsed() < TIMEOUT, "{place}: not in time: {what}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn names(pods: &PodCache) -> Vec<String> {
    pods.all().iter().map(|pod| pod.name.clone()).collect()
}

#[tokio::test]
async fn pods_of_this_node_are_followed() {
    let server = ApiServer::start().unwrap();
    server.put("pods", pod("n1", "a"));
    server.put("pods", pod("n2", "elsewhere"));
    let (pods, _shutdown) = follow(connect(&server, || None));
    until("first list", || names(&pods) == ["a"]).await;
    assert!(pods.is_synced() && pods.age().is_some());

    server.put("pods", pod("n1", "b"));
    until("added", || names(&pods) == ["a", "b"]).await;
    let mut changed = pod("n1", "b");
    changed["status"] = json!({"podIP": "10.0.0.2"});
    let changed = server.put("pods", changed);
    until("changed", || pods.find("", "shop", "b").is_some_and(|pod| pod.ips.len() == 1)).await;
    assert_eq!(
        pods.find("", "shop", "b").map(|pod| json!(pod.resource_version)),
        Some(changed["metadata"]["resourceVersion"].clone())
    );
    server.remove("pods", "shop", "a");
    until("gone", || names(&pods) == ["b"]).await;
    assert!(server.requests().iter().all(|asked| asked.contains("spec.nodeName%3Dn1")), "{:?}", server.requests());
}

#[tokio::test]
async fn cache_recovers_from_every_fault() {
    let server = ApiServer::start().unwrap();
    server.put("pods", pod("n1", "a"));
    server.inject_fault(FaultTarget::List, ServerFault::Status(500), 2);
    server.inject_fault(FaultTarget::List, ServerFault::Status(429), 1);
    let (pods, _shutdown) = follow(connect(&server, || None));
    until("list after errors", || names(&pods) == ["a"]).await;

    // Changes during a broken watch are not lost.
    server.inject_fault(FaultTarget::Watch, ServerFault::Slow(Duration::from_millis(100)), 1);
    server.drop_watches();
    server.put("pods", pod("n1", "b"));
    until("after a dropped watch", || names(&pods) == ["a", "b"]).await;

    // Errors of the watch, not of the list.
    server.inject_fault(FaultTarget::Watch, ServerFault::Status(500), 5);
    server.drop_watches();
    server.put("pods", pod("n1", "c"));
    until("after errors of the watch", || names(&pods) == ["a", "b", "c"]).await;

    // An expired watch, as status and as event; the new list has what changed meanwhile.
    for fault in [ServerFault::Status(410), ServerFault::ErrorEvent(410)] {
        server.inject_fault(FaultTarget::Watch, fault, 1);
        server.drop_watches();
        server.remove("pods", "shop", "a");
        until("after 410", || names(&pods) == ["b", "c"]).await;
        server.put("pods", pod("n1", "a"));
        until("after 410", || names(&pods) == ["a", "b", "c"]).await;
    }
    server.inject_fault(FaultTarget::Watch, ServerFault::Status(503), 1);
    server.drop_watches();
    server.compact();
    server.remove("pods", "shop", "b");
    until("after a compaction", || names(&pods) == ["a", "c"]).await;
    assert!(pods.last_error().is_none());
}

#[tokio::test]
async fn cache_survives_an_absent_api_server() {
    let server = ApiServer::unreachable().unwrap();
    server.put("pods", pod("n1", "a"));
    let (pods, _shutdown) = follow(connect(&server, || None));
    until("the error is recorded", || pods.last_error().is_some_and(|error| error.contains("refused"))).await;
    assert!(!pods.is_synced() && pods.age().is_none());
    server.start_listening().unwrap();
    until("first list", || names(&pods) == ["a"]).await;

    server.stop_listening();
    until("an error again", || pods.last_error().is_some()).await;
    assert_eq!(names(&pods), ["a"], "what is known stays known");
    server.remove("pods", "shop", "a");
    server.put("pods", pod("n1", "b"));
    server.start_listening().unwrap();
    until("after the return", || names(&pods) == ["b"]).await;
}

#[tokio::test]
async fn an_expired_token_is_replaced() {
    let server = ApiServer::start().unwrap();
    server.put("pods", pod("n1", "a"));
    server.require_token(Some("first"));
    let token = Arc::new(std::sync::Mutex::new("first".to_owned()));
    let read = Arc::clone(&token);
    let (pods, _shutdown) = follow(connect(&server, move || Some(read.lock().unwrap().clone())));
    until("first list", || names(&pods) == ["a"]).await;

    server.require_token(Some("second"));
    server.drop_watches();
    until("the old token is refused", || pods.last_error().is_some_and(|error| error.contains("Unauthorized"))).await;
    "second".clone_into(&mut token.lock().unwrap());
    server.put("pods", pod("n1", "b"));
    until("the new one is taken", || names(&pods) == ["a", "b"]).await;
}

#[tokio::test]
async fn a_full_node_is_listed_in_pages() {
    let server = ApiServer::start().unwrap();
    for number in 0..120 {
        server.put("pods", pod("n1", &format!("p{number:03}")));
    }
    let (pods, _shutdown) = follow(connect(&server, || None));
    until("all pods", || pods.all().len() == 120).await;
    assert!(server.requests()[0].contains("limit=100"), "{:?}", server.requests());
    assert_eq!(server.requests().iter().filter(|asked| asked.contains("continue=")).count(), 1);
}
