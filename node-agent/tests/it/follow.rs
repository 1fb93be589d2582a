//! The cache follows the API server, whatever that does.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use weir_agent::pods::{Connect, Follower, Pods};
use weir_agent::stop::{self, Stopper};
use weir_apiserver::{ApiServer, Trouble, When};

/// Longer than anything here should take.
const BOUND: Duration = Duration::from_mins(1);

pub(crate) fn pod(node: &str, name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "shop", "name": name, "annotations": {"sidecar.istio.io/status": "{}"}},
        "spec": {"nodeName": node, "containers": [{"name": "istio-proxy"}]},
    })
}

/// A client of a server; the token is read anew for each, as a projected one would be.
pub(crate) fn connect(server: &ApiServer, token: impl Fn() -> Option<String> + Send + Sync + 'static) -> Connect {
    let url = server.url();
    Arc::new(move || {
        let mut config = kube::Config::new(url.parse().map_err(|error| format!("{error:?}"))?);
        config.auth_info.token = token().map(Into::into);
        kube::Client::try_from(config).map_err(|error| error.to_string())
    })
}

pub(crate) fn follow(connect: Connect) -> (Pods, Stopper) {
    let pods = Pods::default();
    let (stopper, stop) = stop::pair();
    let follower = Follower {
        connect,
        node: "n1".to_owned(),
        exclude_namespaces: vec!["kube-system".to_owned()],
        pods: pods.clone(),
    };
    tokio::spawn(follower.run(stop));
    (pods, stopper)
}

/// Polls until it holds.
#[track_caller]
pub(crate) fn until(what: &str, holds: impl Fn() -> bool) -> impl Future<Output = ()> {
    let place = std::panic::Location::caller();
    async move {
        let begun = Instant::now();
        while !holds() {
            assert!(begun.elapsed() < BOUND, "{place}: not in time: {what}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn names(pods: &Pods) -> Vec<String> {
    pods.all().iter().map(|pod| pod.name.clone()).collect()
}

#[tokio::test]
async fn sees_the_pods_of_its_node_come_change_and_go() {
    let server = ApiServer::start().unwrap();
    server.put("pods", pod("n1", "a"));
    server.put("pods", pod("n2", "elsewhere"));
    let (pods, _stopper) = follow(connect(&server, || None));
    until("first list", || names(&pods) == ["a"]).await;
    assert!(pods.is_synced() && pods.age().is_some());

    server.put("pods", pod("n1", "b"));
    until("added", || names(&pods) == ["a", "b"]).await;
    let mut changed = pod("n1", "b");
    changed["status"] = json!({"podIP": "10.0.0.2"});
    let changed = server.put("pods", changed);
    until("changed", || pods.find("", "shop", "b").is_some_and(|pod| pod.ips.len() == 1)).await;
    assert_eq!(
        pods.find("", "shop", "b").map(|pod| json!(pod.version)),
        Some(changed["metadata"]["resourceVersion"].clone())
    );
    server.remove("pods", "shop", "a");
    until("gone", || names(&pods) == ["b"]).await;
    assert!(server.asked().iter().all(|asked| asked.contains("spec.nodeName%3Dn1")), "{:?}", server.asked());
}

#[tokio::test]
async fn outlives_every_kind_of_trouble() {
    let server = ApiServer::start().unwrap();
    server.put("pods", pod("n1", "a"));
    server.misbehave(When::List, Trouble::Status(500), 2);
    server.misbehave(When::List, Trouble::Status(429), 1);
    let (pods, _stopper) = follow(connect(&server, || None));
    until("list after errors", || names(&pods) == ["a"]).await;

    // The stream breaks; what happened meanwhile is not lost.
    server.misbehave(When::Watch, Trouble::Slow(Duration::from_millis(100)), 1);
    server.drop_watches();
    server.put("pods", pod("n1", "b"));
    until("after a dropped watch", || names(&pods) == ["a", "b"]).await;

    // Errors of the watch alone.
    server.misbehave(When::Watch, Trouble::Status(500), 5);
    server.drop_watches();
    server.put("pods", pod("n1", "c"));
    until("after errors of the watch", || names(&pods) == ["a", "b", "c"]).await;

    // Too old, said in both ways; what went meanwhile is noticed by the new list.
    for trouble in [Trouble::Status(410), Trouble::ErrorEvent(410)] {
        server.misbehave(When::Watch, trouble, 1);
        server.drop_watches();
        server.remove("pods", "shop", "a");
        until("after 410", || names(&pods) == ["b", "c"]).await;
        server.put("pods", pod("n1", "a"));
        until("after 410", || names(&pods) == ["a", "b", "c"]).await;
    }
    server.misbehave(When::Watch, Trouble::Status(503), 1);
    server.drop_watches();
    server.compact();
    server.remove("pods", "shop", "b");
    until("after a compaction", || names(&pods) == ["a", "c"]).await;
    assert!(pods.trouble().is_none());
}

#[tokio::test]
async fn waits_for_a_server_that_is_not_there_yet_and_goes_on_when_it_comes_back() {
    let server = ApiServer::absent().unwrap();
    server.put("pods", pod("n1", "a"));
    let (pods, _stopper) = follow(connect(&server, || None));
    until("trouble is named", || pods.trouble().is_some_and(|trouble| trouble.contains("refused"))).await;
    assert!(!pods.is_synced() && pods.age().is_none());
    server.appear().unwrap();
    until("first list", || names(&pods) == ["a"]).await;

    server.disappear();
    until("trouble again", || pods.trouble().is_some()).await;
    assert_eq!(names(&pods), ["a"], "what is known stays known");
    server.remove("pods", "shop", "a");
    server.put("pods", pod("n1", "b"));
    server.appear().unwrap();
    until("after the return", || names(&pods) == ["b"]).await;
}

#[tokio::test]
async fn takes_a_new_token_when_the_old_one_has_expired() {
    let server = ApiServer::start().unwrap();
    server.put("pods", pod("n1", "a"));
    server.require_token(Some("first"));
    let token = Arc::new(std::sync::Mutex::new("first".to_owned()));
    let read = Arc::clone(&token);
    let (pods, _stopper) = follow(connect(&server, move || Some(read.lock().unwrap().clone())));
    until("first list", || names(&pods) == ["a"]).await;

    server.require_token(Some("second"));
    server.drop_watches();
    until("the old token is refused", || pods.trouble().is_some_and(|trouble| trouble.contains("Unauthorized"))).await;
    "second".clone_into(&mut token.lock().unwrap());
    server.put("pods", pod("n1", "b"));
    until("the new one is taken", || names(&pods) == ["a", "b"]).await;
}

#[tokio::test]
async fn lists_a_full_node_in_pages() {
    let server = ApiServer::start().unwrap();
    for number in 0..120 {
        server.put("pods", pod("n1", &format!("p{number:03}")));
    }
    let (pods, _stopper) = follow(connect(&server, || None));
    until("all pods", || pods.all().len() == 120).await;
    assert!(server.asked()[0].contains("limit=50"), "{:?}", server.asked());
    assert_eq!(server.asked().iter().filter(|asked| asked.contains("continue=")).count(), 2);
}
