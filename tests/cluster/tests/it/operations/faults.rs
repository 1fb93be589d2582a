//! Broken states of the running cluster: `weir check` names the fault, and is silent when it is mended.

use std::time::{Duration, Instant};

use serde_json::Value;
use weir_cluster::Cluster;
use weir_cluster::images::APP;

use super::wait_for_agents;
use crate::mesh::{alone_or_skip, install, try_weir};
use crate::scenario::Scenario;

/// Longest time until a fault is found or no longer found: the agents look every 30 s, and a replica takes a while to start.
const PATIENCE: Duration = Duration::from_secs(90);

/// What a state is made in.
struct Site {
    cluster: &'static Cluster,
    namespace: String,
}

impl Site {
    fn kubectl(&self, args: &str) {
        self.cluster.kubectl(&args.split(' ').collect::<Vec<_>>(), "").unwrap();
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
        self.kubectl(&format!("label namespace {} --overwrite {label}", self.namespace));
    }

    /// Changes the first entry of the webhook configuration.
    fn patch_entry(&self, patch: &str) {
        self.kubectl(&format!("patch mutatingwebhookconfiguration weir-sidecar-injector --type=json -p {patch}"));
    }

    fn install(&self) {
        install(self.cluster).unwrap();
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
        self.cluster.apply(&configuration).unwrap();
    }
}

/// The name of a fault, how it is made, and how it is mended.
type State = (&'static str, fn(&Site), fn(&Site));

const STATES: &[State] = &[
    // The path to the webhook.
    ("no-ready-endpoints", |site| site.webhook("scale deployment/weir-webhook --replicas=0"), Site::install_two),
    (
        "service-selects-nothing",
        |site| site.webhook(r#"patch service/weir-webhook -p {"spec":{"selector":{"app.kubernetes.io/name":"x"}}}"#),
        |site| {
            let selector = r#"{"spec":{"selector":{"app.kubernetes.io/name":"weir-webhook"}}}"#;
            site.webhook(&format!("patch service/weir-webhook -p {selector}"));
        },
    ),
    (
        "service-port-mismatch",
        |site| {
            let patch = r#"[{"op":"replace","path":"/spec/ports/0/targetPort","value":8443}]"#;
            site.webhook(&format!("patch service/weir-webhook --type=json -p {patch}"));
        },
        |site| {
            site.webhook("delete service/weir-webhook");
            site.install();
        },
    ),
    ("service-missing", |site| site.webhook("delete service/weir-webhook"), Site::install),
    (
        "webhook-configuration-missing",
        |site| site.kubectl("delete mutatingwebhookconfiguration weir-sidecar-injector"),
        Site::install,
    ),
    (
        "wrong-target",
        |site| {
            let path = "/webhooks/0/clientConfig/service/name";
            site.patch_entry(&format!(r#"[{{"op":"replace","path":"{path}","value":"istiod"}}]"#));
        },
        Site::install_configuration,
    ),
    (
        "entry-missing",
        |site| site.patch_entry(r#"[{"op":"remove","path":"/webhooks/0"}]"#),
        Site::install_configuration,
    ),
    (
        "failure-policy-ignore",
        |site| site.patch_entry(r#"[{"op":"replace","path":"/webhooks/0/failurePolicy","value":"Ignore"}]"#),
        Site::install_configuration,
    ),
    (
        "timeout-unsuitable",
        |site| site.patch_entry(r#"[{"op":"replace","path":"/webhooks/0/timeoutSeconds","value":30}]"#),
        Site::install_configuration,
    ),
    // Certificates: a caBundle that the webhook may not write.
    (
        "ca-bundle-empty",
        |site| {
            site.kubectl("delete clusterrolebinding weir-webhook");
            for entry in 0..4 {
                site.patch_entry(&format!(r#"[{{"op":"remove","path":"/webhooks/{entry}/clientConfig/caBundle"}}]"#));
            }
        },
        Site::install,
    ),
    // Replicas and rights.
    ("single-replica", |site| site.webhook("scale deployment/weir-webhook --replicas=1"), Site::install_two),
    ("disruption-budget-missing", |site| site.webhook("delete poddisruptionbudget/weir-webhook"), Site::install),
    ("service-account-right-missing", |site| site.kubectl("delete clusterrolebinding weir-agent"), Site::install),
    ("config-map-missing", |site| site.webhook("delete configmap/weir-webhook"), Site::install),
    (
        "replica-crashes",
        |site| site.webhook("set image deployment/weir-webhook *=registry.test/weir-webhook:none"),
        |site| site.webhook("rollout undo deployment/weir-webhook"),
    ),
    // Nodes.
    (
        "agent-missing",
        |site| site.agent(&format!("patch daemonset/weir-agent -p {}", node_selector("\"yes\""))),
        |site| {
            site.agent(&format!("patch daemonset/weir-agent -p {}", node_selector("null")));
            wait_for_agents(site.cluster);
        },
    ),
    (
        "replica-crashes",
        |site| site.agent("set image daemonset/weir-agent *=registry.test/weir-agent:none"),
        |site| {
            site.agent("rollout undo daemonset/weir-agent");
            wait_for_agents(site.cluster);
        },
    ),
    (
        "agents-not-installed",
        |site| site.agent("delete daemonset/weir-agent"),
        |site| {
            site.install();
            wait_for_agents(site.cluster);
        },
    ),
    // Namespaces and other injectors.
    ("namespace-labels-conflict", |site| site.label("istio.io/rev=default"), |site| site.label("istio.io/rev-")),
    (
        "revision-unknown",
        |site| site.label("istio-injection- istio.io/rev=gone"),
        |site| site.label("istio.io/rev- istio-injection=enabled"),
    ),
    (
        "namespace-label-unclear",
        |site| site.label("istio-injection=true"),
        |site| site.label("istio-injection=enabled"),
    ),
    (
        "label-in-wrong-place",
        |site| site.label("sidecar.istio.io/inject=true"),
        |site| site.label("sidecar.istio.io/inject-"),
    ),
    (
        "system-namespace-labelled",
        |site| site.kubectl("label namespace kube-system istio-injection=enabled"),
        |site| site.kubectl("label namespace kube-system istio-injection-"),
    ),
    (
        "double-injection",
        |site| site.add_configuration("istio-sidecar-injector", "istio.io/rev: default", "istio-injection: enabled"),
        |site| site.kubectl("delete mutatingwebhookconfiguration istio-sidecar-injector"),
    ),
    (
        "control-plane-missing",
        |site| site.kubectl("-n istio-system scale deployment/istiod --replicas=0"),
        |site| {
            site.kubectl("-n istio-system scale deployment/istiod --replicas=1");
            site.kubectl("-n istio-system rollout status deployment/istiod --timeout=120s");
        },
    ),
    // Pods.
    (
        "pod-without-sidecar",
        |site| {
            site.label("istio-injection-");
            let pod = format!(
                "{{apiVersion: v1, kind: Pod, metadata: {{name: early, namespace: {}}}, spec: {{containers: [{{name: app, image: {APP}, args: [pause]}}]}}}}",
                site.namespace
            );
            site.cluster.apply(&pod).unwrap();
            site.label("istio-injection=enabled");
        },
        |site| site.kubectl(&format!("-n {} delete pod early --grace-period=1", site.namespace)),
    ),
];

impl Site {
    /// Installs again, with two replicas of the webhook.
    fn install_two(&self) {
        self.webhook("scale deployment/weir-webhook --replicas=2");
        self.webhook("rollout status deployment/weir-webhook --timeout=180s");
    }

    /// Replaces the webhook configuration with the one of the manifests.
    fn install_configuration(&self) {
        self.kubectl("delete mutatingwebhookconfiguration weir-sidecar-injector");
        self.install();
    }
}

fn node_selector(value: &str) -> String {
    format!(r#"{{"spec":{{"template":{{"spec":{{"nodeSelector":{{"weir-test/away":{value}}}}}}}}}}}"#)
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
fn wait_for_findings(cluster: &Cluster, what: &str, is_fulfilled: impl Fn(&[String]) -> bool) -> Result<(), String> {
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
    let mesh = Scenario::with_web(cluster, "faults");
    let site = Site { cluster, namespace: mesh.namespace.clone() };
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
