//! The webhook is away, drained, replaced by a revision, gets another CA.

use std::thread;
use std::time::{Duration, Instant};

use weir_cluster::images::APP;
use weir_cluster::plan::NODES;
use weir_tests::try_wait_until;

use super::{Traffic, assert_new_pods_are_meshed};
use crate::mesh::{alone_or_skip, weir};
use crate::scenario::{Scenario, client};

const ROLLOUT: [&str; 5] = ["-n", "weir-system", "rollout", "status", "deployment/weir-webhook"];

impl Scenario {
    /// Returns the names of the pods of Deployments, and whether each has a sidecar.
    fn sidecars(&self) -> Vec<(String, bool)> {
        let pods = self.kubectl(&["get", "pods", "-l", "pod-template-hash", "-o", "json"]);
        let pods: serde_json::Value = serde_json::from_str(&pods).unwrap();
        let pods = pods["items"].as_array().unwrap().iter().map(|pod| &pod["metadata"]);
        pods.map(|pod| {
            let has_sidecar = !pod["annotations"]["sidecar.istio.io/status"].is_null();
            (pod["name"].as_str().unwrap().to_owned(), has_sidecar)
        })
        .collect()
    }

    #[track_caller]
    fn assert_all_have_sidecars(&self) {
        let pods = self.sidecars();
        assert!(!pods.is_empty() && pods.iter().all(|(_, has_sidecar)| *has_sidecar), "{pods:?}");
    }
}

#[test]
fn pods_wait_while_all_replicas_of_the_webhook_are_killed() {
    let Some((cluster, _lock)) = alone_or_skip() else { return };
    let mesh = Scenario::with_web(cluster, "no-webhook");
    let traffic = Traffic::start(&mesh);
    let scale = |replicas: &str| {
        let scale = ["-n", "weir-system", "scale", "deployment/weir-webhook", replicas];
        cluster.kubectl(&scale, "").unwrap();
    };
    scale("--replicas=0");
    let kill = [
        "-n",
        "weir-system",
        "delete",
        "pods",
        "-l",
        "app.kubernetes.io/name=weir-webhook",
        "--grace-period=0",
        "--force",
    ];
    cluster.kubectl(&kill, "").unwrap();
    // The API server keeps its connections, on which a replica that ends still answers.
    try_wait_until("the webhook cannot be called", || {
        let trial = ["run", "trial", "--image", APP, "--dry-run=server"];
        let answer = cluster.kubectl(&[&["--namespace", &mesh.namespace], &trial[..]].concat(), "");
        Ok(match answer {
            Err(error) if format!("{error:#}").contains("failed calling webhook") => Ok(()),
            other => Err(format!("{other:?}")),
        })
    })
    .unwrap();
    let before = mesh.sidecars().len();
    mesh.apply(&client("late", ""));
    mesh.kubectl(&["scale", "deployment/web-v1", "--replicas=3"]);
    try_wait_until("the refusal is an event", || {
        let events = mesh.kubectl(&[
            "get",
            "events",
            "--field-selector=reason=FailedCreate",
            "-o",
            "jsonpath={.items[*].message}",
        ]);
        let refused = events.contains("failed calling webhook");
        Ok(if refused { Ok(()) } else { Err(events) })
    })
    .unwrap();
    assert_eq!(mesh.sidecars().len(), before, "a pod was created without the webhook");
    scale("--replicas=2");
    let started = Instant::now();
    cluster.kubectl(&[&ROLLOUT[..], &["--timeout=120s"]].concat(), "").unwrap();
    mesh.wait_for_rollouts();
    eprintln!("pods are created {:.0?} after the webhook is asked to come back", started.elapsed());
    mesh.assert_all_have_sidecars();
    traffic.assert_unharmed();
}

#[test]
fn nodes_are_drained_one_after_the_other() {
    let Some((cluster, _lock)) = alone_or_skip() else { return };
    let mesh = Scenario::with_patient_web(cluster, "drain");
    let traffic = Traffic::start(&mesh);
    let own = mesh.kubectl(&["get", "pod", "traffic", "-o", "jsonpath={.spec.nodeName}"]);
    for node in NODES.map(weir_cluster::plan::Node::name).into_iter().filter(|node| *node != own.trim()) {
        let drain = ["drain", &node, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=180s"];
        // CoreDNS has one replica: without it, names are not resolved for a while.
        cluster.kubectl(&[&drain[..], &["--pod-selector=k8s-app!=kube-dns"]].concat(), "").unwrap();
        cluster.kubectl(&["uncordon", &node], "").unwrap();
        mesh.wait_for_rollouts();
        mesh.assert_all_have_sidecars();
    }
    cluster.kubectl(&[&ROLLOUT[..], &["--timeout=180s"]].concat(), "").unwrap();
    assert_new_pods_are_meshed(&mesh, "after-drain");
    traffic.assert_unharmed();
}

#[test]
fn revision_canary_with_a_tag() {
    let Some((cluster, _lock)) = alone_or_skip() else { return };
    let mesh = Scenario::with_patient_web(cluster, "canary");
    let traffic = Traffic::start(&mesh);
    let revision_of_pods = || {
        let path = "jsonpath={range .items[*]}{.metadata.annotations.istio\\.io/rev}{'\\n'}{end}";
        mesh.kubectl(&["get", "pods", "-l", "app=client", "-o", path])
    };
    assert_eq!(revision_of_pods().trim(), "default");
    crate::mesh::install_with(cluster, &["--revision", "canary"]).unwrap();
    weir(cluster, &["tag", "set", "next", "--revision", "canary"]).unwrap();
    let label = ["label", "namespace", &mesh.namespace, "istio-injection-", "istio.io/rev=next"];
    cluster.kubectl(&label, "").unwrap();
    mesh.restart();
    mesh.assert_all_have_sidecars();
    assert_new_pods_are_meshed(&mesh, "by-canary");
    let revisions = revision_of_pods();
    assert!(revisions.contains("canary"), "{revisions}");
    // Back: the tag leads to the default revision.
    weir(cluster, &["tag", "set", "next", "--revision", "default", "--overwrite"]).unwrap();
    mesh.restart();
    mesh.assert_all_have_sidecars();
    let revisions = revision_of_pods();
    assert!(revisions.contains("default"), "{revisions}");
    cluster.kubectl(&["label", "namespace", &mesh.namespace, "istio.io/rev-", "istio-injection=enabled"], "").unwrap();
    weir(cluster, &["tag", "remove", "next", "-y"]).unwrap();
    weir(cluster, &["uninstall", "-y", "--revision", "canary"]).unwrap();
    assert_new_pods_are_meshed(&mesh, "without-canary");
    traffic.assert_unharmed();
}

#[test]
fn ca_is_rotated_while_pods_are_created() {
    let Some((cluster, _lock)) = alone_or_skip() else { return };
    let mesh = Scenario::with_web(cluster, "rotation");
    let traffic = Traffic::start(&mesh);
    let secret = || {
        let path = "jsonpath={.data.current\\.crt}";
        cluster.kubectl(&["-n", "weir-system", "get", "secret", "weir-webhook-ca", "-o", path], "").unwrap()
    };
    let before = secret();
    let rotate = ["-n", "weir-system", "annotate", "secret", "weir-webhook-ca", "--overwrite"];
    let request = format!("weir.dev/rotate-ca={}", std::process::id());
    cluster.kubectl(&[&rotate[..], &[&request]].concat(), "").unwrap();
    let started = Instant::now();
    let mut created = 0;
    // The bundle is published for 30 s before the new CA signs.
    while secret() == before || created < 10 {
        assert!(started.elapsed() < Duration::from_mins(3), "the CA is not replaced");
        created += 1;
        let pod = format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: pod-{created}}}, spec: {{containers: [{{name: app, image: {}, args: [pause]}}]}}}}",
            weir_cluster::images::APP
        );
        // Sent through the API server's dry run: the webhook is called, and nothing has to start.
        let pod = mesh.kubectl_with(&["create", "--dry-run=server", "-o", "yaml", "-f", "-"], &pod);
        assert!(pod.contains("sidecar.istio.io/status"), "pod {created} was not injected");
        thread::sleep(Duration::from_millis(200));
    }
    eprintln!("the CA was replaced after {:.0?}, {created} pods were injected meanwhile", started.elapsed());
    assert_new_pods_are_meshed(&mesh, "after-rotation");
    traffic.assert_unharmed();
}
