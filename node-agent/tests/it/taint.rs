//! The startup taint of the node follows the agent's readiness.

use serde_json::{Value, json};
use weir_agent::health::{Health, ReadinessImpact};
use weir_agent::taint::{ISTIO_TAINT, TAINT, TaintReconciler};
use weir_apiserver::{ApiServer, FaultTarget, ServerFault};
use weir_runtime::CancellationToken;

use crate::follow::{connect, until};

fn taints(server: &ApiServer) -> Vec<Value> {
    server.get("nodes", "", "n1").unwrap()["spec"]["taints"].as_array().cloned().unwrap_or_default()
}

fn reconciler(server: &ApiServer, health: &Health) -> TaintReconciler {
    TaintReconciler {
        client_factory: connect(server, || None),
        node: "n1".to_owned(),
        keys: vec![TAINT.to_owned(), ISTIO_TAINT.to_owned()],
        when_broken: true,
        health: health.clone(),
    }
}

#[tokio::test]
async fn taints_are_removed_when_the_agent_is_ready() {
    let server = ApiServer::start().unwrap();
    // With a time that a typed value would reformat.
    let other =
        json!({"key": "dedicated", "value": "db", "effect": "NoSchedule", "timeAdded": "2026-01-01T00:00:00.5Z"});
    let born = json!([{"key": TAINT, "effect": "NoSchedule"}, other, {"key": ISTIO_TAINT, "effect": "NoExecute"}]);
    server.put("nodes", json!({"metadata": {"name": "n1"}, "spec": {"taints": born}}));
    let health = Health::default();
    let condition = health.register("install", ReadinessImpact::Blocking, "Starting", "not yet");
    let shutdown = CancellationToken::new();
    server.inject_fault(FaultTarget::Method("PATCH"), ServerFault::Status(409), 1);
    tokio::spawn(reconciler(&server, &health).run(shutdown));
    tokio::task::yield_now().await;
    assert_eq!(taints(&server).len(), 3);
    condition.set_ok("Installed", "done");
    until("the taints are gone", || taints(&server) == [other.clone()]).await;
}

#[tokio::test]
async fn taint_is_added_again_once() {
    let server = ApiServer::start().unwrap();
    server.put("nodes", json!({"metadata": {"name": "n1"}, "spec": {}}));
    let reconciler = reconciler(&server, &Health::default());
    reconciler.reconcile(true).await.unwrap();
    assert_eq!(server.requests().len(), 1, "nothing to remove");
    for _ in 0..2 {
        reconciler.reconcile(false).await.unwrap();
        assert_eq!(taints(&server), [json!({"key": TAINT, "value": "true", "effect": "NoSchedule"})]);
    }
    reconciler.reconcile(true).await.unwrap();
    assert!(taints(&server).is_empty());
    server.remove("nodes", "", "n1");
    assert!(reconciler.reconcile(true).await.is_err());
}
