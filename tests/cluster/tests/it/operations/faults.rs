//! Broken states of the running cluster: `weir check` names the fault, and is silent when it is mended.

mod states;

use std::time::{Duration, Instant};

use serde_json::Value;
use weir_cluster::Cluster;
use weir_cluster::images::APP;

use states::STATES;

use crate::mesh::{alone_or_skip, install, try_weir, weir};
use crate::scenario::Scenario;

/// Longest time until a fault is found or no longer found: the agents look every 30 s, and a replica takes a while to start.
const PATIENCE: Duration = Duration::from_secs(90);

/// What a state is made in.
struct Site {
    mesh: Scenario,
}

impl Site {
    fn kubectl(&self, args: &str) {
        self.mesh.cluster.kubectl(&args.split(' ').collect::<Vec<_>>(), "").unwrap();
    }

    /// Runs `kubectl` on objects of the webhook.
    fn webhook(&self, args: &str) {
        self.kubectl(&format!("-n weir-system {args}"));
    }

    /// Runs `kubectl` on objects of the agent.
    fn agent(&self, args: &str) {
        self.kubectl(&format!("-n weir-node {args}"));
    }

    /// Labels a namespace; by default, that of the test.
    fn label(&self, label: &str) {
        self.kubectl(&format!("label namespace {} --overwrite {label}", self.mesh.namespace));
    }

    /// Changes the first entry of the webhook configuration.
    fn patch_entry(&self, patch: &str) {
        self.kubectl(&format!("patch mutatingwebhookconfiguration weir-sidecar-injector --type=json -p {patch}"));
    }

    fn weir(&self, args: &str) {
        weir(self.mesh.cluster, &args.split(' ').collect::<Vec<_>>()).unwrap();
    }

    /// Creates a pod in the namespace.
    fn create_pod(&self, name: &str) {
        self.mesh.apply(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{containers: [{{name: app, image: {APP}, args: [pause]}}]}}}}"
        ));
    }

    /// Creates a pod again until its proxy has an image of this registry: replicas follow a changed configuration a moment later.
    fn create_pod_with_proxy_of(&self, name: &str, registry: &str) {
        let images = "jsonpath={.spec.initContainers[*].image} {.spec.containers[*].image}";
        let started = Instant::now();
        loop {
            self.create_pod(name);
            let images = self.mesh.kubectl(&["get", "pod", name, "-o", images]);
            if images.split_whitespace().any(|image| image.starts_with(registry)) {
                return;
            }
            assert!(started.elapsed() < PATIENCE, "{name} is injected with {images}");
            self.delete_pod(name);
        }
    }

    fn delete_pod(&self, name: &str) {
        self.mesh.kubectl(&["delete", "pod", name, "--grace-period=1"]);
    }

    fn install(&self) {
        install(self.mesh.cluster).unwrap();
    }

    /// Applies a webhook configuration that selects nothing that runs, or the same pods as Weir's.
    fn add_configuration(&self, name: &str, labels: &str, selector: &str) {
        let configuration = format!(
            "apiVersion: admissionregistration.k8s.io/v1
kind: MutatingWebhookConfiguration
metadata: {{name: {name}, labels: {{app: sidecar-injector, {labels}}}}}
webhooks:
- name: namespace.sidecar-injector.istio.io
  clientConfig: {{service: {{name: istiod, namespace: istio-system, path: /inject, port: 443}}}}
  namespaceSelector: {{matchLabels: {{{selector}}}}}
  rules: [{{apiGroups: [\"\"], apiVersions: [v1], operations: [CREATE], resources: [pods]}}]
  failurePolicy: Ignore
  sideEffects: None
  admissionReviewVersions: [v1]"
        );
        self.mesh.cluster.apply(&configuration).unwrap();
    }
}

/// Returns the names of the warnings and errors that `weir check` finds, with `not-read` if it could not read everything, as while a pod
/// ends; and what it printed.
fn found(cluster: &Cluster) -> (Vec<String>, String) {
    let (_, printed) = try_weir(cluster, &["check", "-o", "json"]).unwrap();
    // Standard error follows.
    let json = serde_json::Deserializer::from_str(&printed).into_iter::<Value>().next();
    let json = json.and_then(Result::ok).unwrap_or_else(|| panic!("no JSON: {printed}"));
    let findings = json["findings"].as_array().unwrap().iter();
    let findings = findings.filter(|finding| finding["severity"] != "info" || finding["name"] == "not-read");
    (findings.map(|finding| finding["name"].as_str().unwrap().to_owned()).collect(), printed)
}

/// Waits until the findings fulfil a condition, and returns the last ones if they do not.
pub(super) fn wait_for_findings(
    cluster: &Cluster,
    what: &str,
    is_fulfilled: impl Fn(&[String]) -> bool,
) -> Result<(), String> {
    let started = Instant::now();
    loop {
        let (names, printed) = found(cluster);
        if is_fulfilled(&names) {
            eprintln!("{what}: {:.1} s", started.elapsed().as_secs_f64());
            return Ok(());
        }
        if started.elapsed() > PATIENCE {
            return Err(format!("{what}: {printed}"));
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}

#[test]
fn check_names_broken_states() {
    let Some((cluster, _lock)) = alone_or_skip() else { return };
    let site = Site { mesh: Scenario::with_web(cluster, "faults") };
    wait_for_findings(cluster, "silence before", <[String]>::is_empty).unwrap();
    let mut wrong = Vec::new();
    for (fault, make, mend) in STATES {
        make(&site);
        let named = wait_for_findings(cluster, fault, |names| names.iter().any(|name| name == fault));
        mend(&site);
        let silent = wait_for_findings(cluster, &format!("silence after {fault}"), <[String]>::is_empty);
        wrong.extend([named, silent].into_iter().filter_map(Result::err));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
