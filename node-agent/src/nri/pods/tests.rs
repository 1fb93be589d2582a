use std::collections::BTreeMap;

use serde_json::json;

use super::super::messages::{LinuxNamespace, LinuxPodSandbox};
use super::*;
use crate::pods::{PodCache, facts};
use crate::socket::QueryMetrics;

const LIMIT: Duration = Duration::from_secs(20);

fn capture() -> PodCapture {
    PodCapture {
        exclude_namespaces: vec!["kube-system".to_owned()],
        options: BackendOptions::default(),
        queries: PodQueryServer {
            pods: PodCache::default(),
            fetch: None,
            budget: Duration::from_millis(20),
            io_timeout: LIMIT,
            metrics: QueryMetrics::default(),
        },
        attachments: Attachments::default(),
        netns_paths: NetnsPaths {
            host_proc: "/proc".into(),
            host_root: "/".into(),
            netns_dirs: Vec::new(),
            runtime_dirs: Vec::new(),
        },
        visits: Visits::default(),
        metrics: NriMetrics::default(),
    }
}

fn pod(namespace: &str, annotations: &[(&str, &str)], netns: Option<&str>) -> PodSandbox {
    let namespaces =
        netns.map(|path| LinuxNamespace { kind: "network".to_owned(), path: path.to_owned() }).into_iter().collect();
    PodSandbox {
        id: "s1".to_owned(),
        name: "web".to_owned(),
        uid: "u1".to_owned(),
        namespace: namespace.to_owned(),
        annotations: annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        linux: Some(LinuxPodSandbox { namespaces }),
        ..PodSandbox::default()
    }
}

const STATUS: (&str, &str) = ("sidecar.istio.io/status", r#"{"containers":["istio-proxy"]}"#);
const CAPTURE: (&str, &str) = ("weir.dev/capture", r#"{"v":1}"#);
/// A path that no decision about a pod without rules reads.
const NOWHERE: Option<&str> = Some("/nonexistent/netns");

#[tokio::test]
async fn pods_without_rules_are_skipped_without_their_namespace() {
    let capture = capture();
    for pod in [
        pod("shop", &[], NOWHERE),
        pod("kube-system", &[STATUS, CAPTURE], NOWHERE),
        pod("shop", &[STATUS, CAPTURE], None),
        // The host's, which CRI-O has a path for.
        pod("shop", &[STATUS, CAPTURE], Some("/proc/self/ns/net")),
        // Only the spec would tell, but the pod is in the host's network.
        pod("shop", &[STATUS], None),
    ] {
        let outcome = capture.ensure(pod, Occasion::Run, LIMIT).await;
        assert_eq!(outcome.unwrap(), PodOutcome::Skipped);
    }
    assert_eq!(capture.attachments.get("u1"), None);
}

#[tokio::test]
async fn a_meshed_pod_that_cannot_be_captured_is_rejected() {
    let capture = capture();
    let long = format!("/{}", "x".repeat(MAX_TEXT));
    for (pod, part) in [
        (pod("shop", &[STATUS, CAPTURE], NOWHERE), "cannot use network namespace /nonexistent/netns: No such file"),
        (pod("shop", &[STATUS, CAPTURE], Some("run/netns/a")), "not the absolute path"),
        (pod("shop", &[STATUS, CAPTURE], Some(&long)), "not the absolute path"),
        (pod("shop", &[CAPTURE], NOWHERE), "the record of that was changed"),
        (pod("shop", &[STATUS, ("weir.dev/capture", "{")], NOWHERE), "invalid settings: "),
        (pod("shop", &[STATUS], NOWHERE), "cannot tell what to capture: pod is not in the agent's cache yet"),
    ] {
        let error = capture.ensure(pod, Occasion::Run, LIMIT).await.unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[tokio::test]
async fn the_spec_decides_where_annotations_do_not_say_enough() {
    let capture = capture();
    let annotations = BTreeMap::from([STATUS, ("inject.istio.io/templates", "sidecar")]);
    capture.queries.pods.put(facts(json!({
        "metadata": {"namespace": "shop", "name": "web", "uid": "u1", "annotations": annotations},
        "spec": {"containers": [{"name": "istio-proxy", "args": ["proxy", "router"]}]},
    })));
    let outcome = capture.ensure(pod("shop", &[STATUS], NOWHERE), Occasion::Run, LIMIT).await;
    assert_eq!(outcome.unwrap(), PodOutcome::Skipped);
}

#[tokio::test]
async fn a_stopped_sandbox_is_skipped_at_synchronization() {
    let capture = capture();
    let stopped = pod("shop", &[STATUS, CAPTURE], NOWHERE);
    assert_eq!(capture.ensure(stopped, Occasion::Synchronize, LIMIT).await.unwrap(), PodOutcome::Skipped);
}

#[tokio::test]
async fn an_error_comes_before_the_runtime_gives_up() {
    let mut capture = capture();
    capture.queries.budget = LIMIT;
    let error = capture.ensure(pod("shop", &[STATUS], NOWHERE), Occasion::Run, Duration::from_millis(30)).await;
    assert!(matches!(error, Err(PodError::TimedOut(_))), "{error:?}");
}
