//! The node's taint follows the agent's readiness.

use serde_json::{Value, json};
use weir_agent::health::{Health, Weight};
use weir_agent::stop;
use weir_agent::taint::{ISTIO_TAINT, TAINT, Tainter};
use weir_apiserver::{ApiServer, Trouble, When};

use crate::follow::{connect, until};

fn taints(server: &ApiServer) -> Vec<Value> {
    server.get("nodes", "", "n1").unwrap()["spec"]["taints"].as_array().cloned().unwrap_or_default()
}

fn tainter(server: &ApiServer, health: &Health) -> Tainter {
    Tainter {
        connect: connect(server, || None),
        node: "n1".to_owned(),
        keys: vec![TAINT.to_owned(), ISTIO_TAINT.to_owned()],
        when_broken: true,
        health: health.clone(),
    }
}

#[tokio::test]
async fn goes_when_the_agent_is_ready_and_not_before() {
    let server = ApiServer::start().unwrap();
    // With a field that no typed value would give back to the letter.
    let other =
        json!({"key": "dedicated", "value": "db", "effect": "NoSchedule", "timeAdded": "2026-01-01T00:00:00.5Z"});
    let born = json!([{"key": TAINT, "effect": "NoSchedule"}, other, {"key": ISTIO_TAINT, "effect": "NoExecute"}]);
    server.put("nodes", json!({"metadata": {"name": "n1"}, "spec": {"taints": born}}));
    let health = Health::default();
    let condition = health.register("install", Weight::Blocking, "not yet");
    let (_stopper, stop) = stop::pair();
    server.misbehave(When::Method("PATCH"), Trouble::Status(409), 1);
    tokio::spawn(tainter(&server, &health).run(stop));
    tokio::task::yield_now().await;
    assert_eq!(taints(&server).len(), 3);
    condition.good("done");
    until("the taints are gone", || taints(&server) == [other.clone()]).await;
}

#[tokio::test]
async fn comes_back_beside_what_others_have_set() {
    let server = ApiServer::start().unwrap();
    server.put("nodes", json!({"metadata": {"name": "n1"}, "spec": {}}));
    let tainter = tainter(&server, &Health::default());
    tainter.settle(true).await.unwrap();
    assert_eq!(server.asked().len(), 1, "nothing to take away");
    for _ in 0..2 {
        tainter.settle(false).await.unwrap();
        assert_eq!(taints(&server), [json!({"key": TAINT, "value": "true", "effect": "NoSchedule"})]);
    }
    tainter.settle(true).await.unwrap();
    assert!(taints(&server).is_empty());
    server.remove("nodes", "", "n1");
    assert!(tainter.settle(true).await.is_err());
}
