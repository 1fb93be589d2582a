use std::sync::Arc;

use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::{Value, json};
use weir_apiserver::ApiServer;

use super::*;

const LIMITS: ObjectLimits = ObjectLimits { object_bytes: 20_000, namespace_bytes: 50_000 };

fn map(namespace: &str, name: &str, bytes: usize) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"namespace": namespace, "name": name, "uid": name},
        "data": {"k": "x".repeat(bytes)}})
}

/// Keeps the lengths of the maps' data.
fn follow(server: &ApiServer) -> (Cache<(String, usize)>, CancellationToken) {
    let (cache, shutdown, url) = (Cache::default(), CancellationToken::new(), server.url());
    let reflector = Reflector {
        client_factory: Arc::new(move || {
            let config = kube::Config::new(url.parse().map_err(|error| format!("{error:?}"))?);
            Client::try_from(config).map_err(|error| error.to_string())
        }),
        kind: "maps",
        api: Box::new(Api::<ConfigMap>::all),
        field_selector: String::new(),
        label_selector: String::new(),
        limits: LIMITS,
        transform: Box::new(|map: ConfigMap| {
            let data = map.data.unwrap_or_default();
            (map.metadata.name.unwrap_or_default(), data.values().map(String::len).sum())
        }),
        cache: cache.clone(),
    };
    tokio::spawn(reflector.run(shutdown.clone()));
    (cache, shutdown)
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let polled = async {
        while !holds() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(timeout(Duration::from_secs(30), polled).await.is_ok(), "not in time: {what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_and_malformed_objects_are_skipped_by_name() {
    let server = ApiServer::start().unwrap();
    server.put("configmaps", map("a", "small", 10));
    server.put("configmaps", map("a", "large", 30_000));
    let mut malformed = map("b", "malformed", 1);
    malformed["data"] = json!([7]);
    server.put("configmaps", malformed);
    for number in 0..3 {
        server.put("configmaps", map("c", &format!("many-{number}"), 19_000));
    }
    let (cache, _shutdown) = follow(&server);
    until("synced", || cache.is_synced()).await;
    let skipped: Vec<_> = cache.skipped().iter().map(ToString::to_string).collect();
    assert_eq!(skipped.len(), 3, "{skipped:?}");
    assert!(skipped[0].starts_with("a/large: has 30") && skipped[0].ends_with("the limit is 20000"), "{skipped:?}");
    assert!(skipped[1].starts_with("b/malformed: cannot be parsed"), "{skipped:?}");
    assert!(skipped[2].starts_with("c/many-2: objects of namespace c"), "{skipped:?}");
    assert_eq!(cache.all().len(), 3);

    // The last good version stays, by event and by list.
    server.put("configmaps", map("a", "small", 40_000));
    until("skipped", || cache.skipped().len() == 4).await;
    assert_eq!(cache.get("small").unwrap().1, 10);
    server.compact();
    server.drop_watches();
    server.put("configmaps", map("a", "other", 5));
    until("listed again", || cache.get("other").is_some()).await;
    assert_eq!(cache.get("small").unwrap().1, 10);
    server.put("configmaps", map("a", "small", 20));
    until("good again", || cache.get("small").is_some_and(|map| map.1 == 20)).await;
    server.remove("configmaps", "a", "large");
    until("gone", || cache.skipped().len() == 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_shrink_with_their_bytes_and_grow_again() {
    let server = ApiServer::start().unwrap();
    for number in 0..400 {
        server.put(
            "configmaps",
            map(&format!("n{number}"), &format!("m{number:03}"), if number < 200 { 100_000 } else { 1 }),
        );
    }
    let (cache, _shutdown) = follow(&server);
    until("synced", || cache.is_synced()).await;
    assert_eq!((cache.all().len(), cache.skipped().len()), (200, 200));
    let limits: Vec<_> = server
        .requests()
        .iter()
        .filter_map(|request| Some(request.split_once("limit=")?.1.split('&').next()?.to_owned()))
        .collect();
    assert_eq!(limits[..2], ["100", "50"], "10 MB, then less");
    assert!(limits.last().is_some_and(|limit| limit.parse::<u32>().is_ok_and(|limit| limit > 50)), "{limits:?}");
}
