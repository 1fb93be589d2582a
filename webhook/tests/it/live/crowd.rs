//! Many concurrent reviews, as when all pods of a cluster are recreated. `WEIR_CROWD` sets how many (300).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hyper::StatusCode;

use super::client::{Client, get};
use super::{H2, metrics, review, start};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_concurrent_reviews_are_all_answered() {
    let crowd: usize = std::env::var("WEIR_CROWD").map_or(300, |text| text.parse().expect("WEIR_CROWD is a number"));
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca.pem");
    let server = start(&[
        "--max-in-flight",
        "2",
        "--request-timeout",
        "2m",
        "--handshake-timeout",
        "2m",
        "--log-max-per-second",
        "5",
        "--ca-out",
        ca.to_str().unwrap(),
    ])
    .await;
    let client = Client::new(server.https(), &[&std::fs::read_to_string(&ca).unwrap()], H2);
    let done = Arc::new(AtomicBool::new(false));
    let (plain, ended) = (server.http().unwrap(), Arc::clone(&done));
    let probes = tokio::spawn(async move {
        let mut answered = 0;
        while !ended.load(Ordering::Relaxed) {
            assert_eq!(get(plain, "/readyz").await.0, StatusCode::OK);
            answered += 1;
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        answered
    });
    let reviews: Vec<_> = (0..crowd)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.post("/inject?timeout=10m", review("v1").to_string()).await.0 })
        })
        .collect();
    for review in reviews {
        assert_eq!(review.await.unwrap(), StatusCode::OK);
    }
    done.store(true, Ordering::Relaxed);
    assert!(probes.await.unwrap() > 0);
    let text = metrics(&server).await;
    for line in [
        format!("weir_webhook_injected_total {crowd}"),
        format!("weir_webhook_wait_seconds_count {crowd}"),
        "sidecar_injection_failure_total{reason=\"overloaded\"} 0".to_owned(),
        "weir_webhook_in_flight 0".to_owned(),
    ] {
        assert!(text.lines().any(|found| found == line), "{line:?} is missing in\n{text}");
    }
    server.shutdown(std::future::pending()).await;
}
