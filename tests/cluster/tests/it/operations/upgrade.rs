//! Upgrade from the previous release, rollback, and upgrade again.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use weir_cluster::Cluster;
use weir_cluster::images::APP;
use weir_cluster::plan::Tools;
use weir_lab::process;

use super::faults::wait_for_findings;
use super::{Traffic, assert_new_pods_are_meshed, wait_for_agents};
use crate::mesh::{alone_or_skip, settings, weir};
use crate::scenario::{Scenario, is_from_the_mesh, parse};

/// Where `scripts/build-previous` puts the previous release.
const PREVIOUS: &str = "previous";
/// Registry and folder of its images.
const PREVIOUS_HUB: &str = "localhost/previous";

/// Runs `weir` of the previous release.
fn previous_weir(cluster: &Cluster, args: &[&str]) {
    let mut command = Command::new(Tools::of_checkout().path(PREVIOUS).join("weir"));
    command.args(args).env("KUBECONFIG", cluster.kubeconfig());
    let output = process::run(&mut command, b"", Duration::from_mins(6)).unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "weir {}: {stdout}{stderr}", args.join(" "));
}

/// Installs the previous release, as its documentation says: also to upgrade, and to go back to it.
fn install_previous(cluster: &Cluster) {
    let settings = settings(PREVIOUS_HUB);
    previous_weir(cluster, &[&["install"][..], &settings.iter().map(String::as_str).collect::<Vec<_>>()].concat());
}

fn upgrade(cluster: &Cluster) {
    let settings = settings("localhost");
    weir(cluster, &[&["upgrade", "--yes"][..], &settings.iter().map(String::as_str).collect::<Vec<_>>()].concat())
        .unwrap();
}

/// Asserts that all pods of webhook and agent run images of a hub, and that what else runs has not been restarted.
fn assert_installed(mesh: &Scenario, hub: &str) {
    wait_for_agents(mesh.cluster);
    let path = "jsonpath={range .items[*]}{.metadata.deletionTimestamp}{.spec.containers[*].image}{'\\n'}{end}";
    for namespace in ["weir-system", "weir-node"] {
        let images = mesh.cluster.kubectl(&["-n", namespace, "get", "pods", "-o", path], "").unwrap();
        let mut current = images.lines().filter(|line| line.starts_with("localhost"));
        assert!(current.all(|image| image.rsplit_once('/').is_some_and(|(of, _)| of == hub)), "{namespace}: {images}");
    }
    let restarts = "jsonpath={range .items[*]}{.status.containerStatuses[*].restartCount} {.status.initContainerStatuses[*].restartCount}{'\\n'}{end}";
    let restarts = mesh.kubectl(&["get", "pods", "-o", restarts]);
    assert!(restarts.split_whitespace().all(|count| count == "0"), "{restarts}");
}

/// Creates pods one after the other, until it is told to stop: each sends one request. Returns how many there were.
fn create_pods(mesh: &Scenario, stopped: &AtomicBool) -> usize {
    for number in 1.. {
        if stopped.load(Ordering::Relaxed) {
            return number - 1;
        }
        let name = format!("short-{number}");
        mesh.apply(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{restartPolicy: Never, containers: [{{name: app, image: {APP}, args: [load, http://web/headers]}}]}}}}"
        ));
        mesh.kubectl(&["wait", &format!("pod/{name}"), "--for=jsonpath={.status.phase}=Succeeded", "--timeout=120s"]);
        let log = mesh.kubectl(&["logs", &name, "-c", "app"]);
        assert!(parse(&log).keys().any(|response| is_from_the_mesh(response)), "{name} is not captured: {log}");
        mesh.kubectl(&["delete", "pod", &name, "--wait=false"]);
    }
    0
}

/// Stops the creation of pods, also after a failure.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn upgrade_from_the_previous_release_and_rollback() {
    let Some((cluster, _lock)) = alone_or_skip() else { return };
    let previous = Tools::of_checkout().path(PREVIOUS);
    assert!(previous.join("weir").is_file(), "the previous release is missing; scripts/build-previous builds it");
    cluster.load(&["weir-webhook", "weir-agent"].map(|name| previous.join(format!("{name}.tar")))).unwrap();
    weir(cluster, &["uninstall", "-y", "--timeout", "120s"]).unwrap();
    install_previous(cluster);
    let mesh = Scenario::with_patient_web(cluster, "upgrade");
    assert_installed(&mesh, PREVIOUS_HUB);
    let traffic = Traffic::start(&mesh);
    let stopped = AtomicBool::new(false);
    let created = thread::scope(|scope| {
        let pods = scope.spawn(|| create_pods(&mesh, &stopped));
        let stop = Stop(&stopped);
        upgrade(cluster);
        assert_installed(&mesh, "localhost");
        assert_new_pods_are_meshed(&mesh, "upgraded");
        wait_for_findings(cluster, "silence after the upgrade", <[String]>::is_empty).unwrap();
        install_previous(cluster);
        assert_installed(&mesh, PREVIOUS_HUB);
        assert_new_pods_are_meshed(&mesh, "rolled-back");
        upgrade(cluster);
        assert_installed(&mesh, "localhost");
        assert_new_pods_are_meshed(&mesh, "upgraded-again");
        drop(stop);
        pods.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    eprintln!("{created} pods were created meanwhile");
    wait_for_findings(cluster, "silence after all", <[String]>::is_empty).unwrap();
    traffic.assert_unharmed();
}
