//! The broken states.

use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use weir_cluster::plan::NODES;

use super::Site;
use crate::mesh::install_with;
use crate::operations::{run_in_network, wait_for_agents};

/// The name of a fault, how it is made, and how it is mended.
pub(super) type State = (&'static str, fn(&Site), fn(&Site));

pub(super) const STATES: &[State] = &[
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
    (
        "ca-expired",
        |site| {
            site.kubectl("delete clusterrolebinding weir-webhook");
            let bundle = expired_authority();
            for entry in 0..4 {
                let path = format!("/webhooks/{entry}/clientConfig/caBundle");
                site.patch_entry(&format!(r#"[{{"op":"replace","path":"{path}","value":"{bundle}"}}]"#));
            }
        },
        Site::install,
    ),
    (
        "admission-policy-incomplete",
        |site| site.kubectl("delete validatingadmissionpolicy weir-frozen-annotations"),
        Site::install,
    ),
    (
        "admission-policy-incomplete",
        |site| site.kubectl("delete validatingadmissionpolicybinding weir-injector-annotations"),
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
            wait_for_agents(site.mesh.cluster);
        },
    ),
    (
        "replica-crashes",
        |site| site.agent("set image daemonset/weir-agent *=registry.test/weir-agent:none"),
        |site| {
            site.agent("rollout undo daemonset/weir-agent");
            wait_for_agents(site.mesh.cluster);
        },
    ),
    (
        "agents-not-installed",
        |site| site.agent("delete daemonset/weir-agent"),
        |site| {
            site.install();
            wait_for_agents(site.mesh.cluster);
        },
    ),
    // The agents cannot restore an entry that somebody has removed.
    ("agent-not-ready", |site| site.set_entry_locked(true), |site| site.set_entry_locked(false)),
    // The agents only report.
    (
        "pods-without-rules",
        |site| {
            site.agent("set env daemonset/weir-agent REPAIR_REPAIR_PODS=false");
            wait_for_agents(site.mesh.cluster);
            run_in_network(&site.mesh, "app=client", "nft delete table inet weir");
        },
        |site| {
            site.agent("set env daemonset/weir-agent REPAIR_REPAIR_PODS-");
            wait_for_agents(site.mesh.cluster);
        },
    ),
    // Namespaces and other injectors.
    (
        "tag-dangling",
        |site| {
            site.weir("tag set faults --revision default");
            site.kubectl("label mutatingwebhookconfiguration weir-revision-tag-faults --overwrite weir.dev/rev=gone");
        },
        |site| site.weir("tag remove faults -y"),
    ),
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
            site.create_pod("early");
            site.label("istio-injection=enabled");
        },
        |site| site.delete_pod("early"),
    ),
    // A member of system:masters, for whom the policy has no effect.
    (
        "capture-annotations-changed",
        |site| {
            let annotation = r#"weir.dev/capture={"v":1,"excludeOutboundPorts":[9999]}"#;
            site.kubectl(&format!("-n {} annotate pods -l app=client --overwrite {annotation}", site.mesh.namespace));
        },
        |site| drop(site.mesh.kubectl(&["rollout", "restart", "deployment/client"])),
    ),
    (
        "sidecar-image-not-pulled",
        |site| {
            install_with(site.mesh.cluster, &["--set", "config.values.global.hub=registry.test/istio"]).unwrap();
            site.create_pod_with_proxy_of("wrong-hub", "registry.test/");
        },
        |site| {
            site.delete_pod("wrong-hub");
            site.install();
        },
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

    /// Removes Weir's entry from the list of a node and keeps the list from being written, or lets it be written again.
    fn set_entry_locked(&self, is_locked: bool) {
        let path = self.mesh.cluster.node(NODES[0]).host_path("/etc/cni/net.d/10-pods.conflist");
        let set = |flag| assert!(Command::new("chattr").arg(flag).arg(&path).status().unwrap().success());
        if !is_locked {
            return set("-i");
        }
        // The agent restores it within milliseconds.
        let list = std::fs::read(&path).unwrap();
        let mut list: Value = serde_json::from_slice(&list).unwrap();
        list["plugins"].as_array_mut().unwrap().retain(|entry| entry["type"] != "weir-cni");
        self.agent(&format!("patch daemonset/weir-agent -p {}", node_selector("\"yes\"")));
        self.agent("wait pod --all --for=delete --timeout=60s");
        std::fs::write(&path, list.to_string()).unwrap();
        set("+i");
        self.agent(&format!("patch daemonset/weir-agent -p {}", node_selector("null")));
    }
}

/// Returns a CA that has expired, as in a `caBundle`.
fn expired_authority() -> String {
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    let key = rcgen::KeyPair::generate().unwrap();
    STANDARD.encode(params.self_signed(&key).unwrap().pem())
}

fn node_selector(value: &str) -> String {
    format!(r#"{{"spec":{{"template":{{"spec":{{"nodeSelector":{{"weir-test/away":{value}}}}}}}}}}}"#)
}
