//! Checks before an installation, of one namespace, and of several revisions.

use serde_json::{Value, json};
use weir_injector::selection::InjectorRevision;
use weir_injector::selection::configurations::WebhookOptions;

use super::changes::add_istio_injector;
use super::fixture::{Fixture, namespace, plain_pod, pod_of};
use super::{findings, findings_in, pre_install_scope, scope};
use crate::CheckScope;

#[test]
fn pre_install_check_finds_conflicts() {
    let mut fixture = Fixture::healthy();
    add_istio_injector(&mut fixture, "default");
    fixture.get("nodes", "", "node-1")["status"]["nodeInfo"]["containerRuntimeVersion"] = "docker://20.10.1".into();
    fixture.add(namespace("team", &json!({"istio-injection": "on"})));
    let names: Vec<&str> =
        findings_in(&fixture, &pre_install_scope("default")).iter().map(|finding| finding.fault.name).collect();
    assert_eq!(names, ["double-injection", "namespace-label-unclear", "runtime-without-annotations"]);
    // A named revision does not conflict with Istio's default injector.
    let names: Vec<&str> =
        findings_in(&fixture, &pre_install_scope("weir")).iter().map(|finding| finding.fault.name).collect();
    assert_eq!(names, ["namespace-label-unclear", "runtime-without-annotations"]);
}

#[test]
fn namespace_limits_the_checked_pods() {
    let mut fixture = Fixture::healthy();
    fixture.add(plain_pod("shop", "old-1", "old-1-a"));
    let limited = |namespace: &str| CheckScope { namespace: Some(namespace.to_owned()), ..scope() };
    assert_eq!(findings_in(&fixture, &limited("shop")).len(), 1);
    assert!(findings_in(&fixture, &limited("plain")).is_empty());
}

#[test]
fn pods_of_one_owner_are_one_finding() {
    let mut fixture = Fixture::healthy();
    for number in 0..7 {
        fixture.add(plain_pod("shop", "old-1", &format!("old-1-{number}")));
    }
    let found = findings(&fixture);
    assert_eq!((found.len(), found[0].similar), (1, 6));
    assert_eq!(found[0].fix, "kubectl -n shop rollout restart deployment/old");
    let agents = fixture.get("daemonsets", "weir-node", "weir-agent").clone();
    fixture.add(pod_of(&agents, "weir-agent-4", "node-1"));
    for (port, path) in [(15033, "readyz"), (15034, "metrics")] {
        let report = fixture.reports[&format!("weir-node/weir-agent-1:{port}/{path}")].clone();
        fixture.reports.insert(format!("weir-node/weir-agent-4:{port}/{path}"), report);
    }
    assert_eq!(findings(&fixture).len(), 1, "two agents on a node during an update");
}

#[test]
fn faults_of_one_revision_do_not_hide_those_of_another() {
    let mut fixture = Fixture::healthy();
    // A canary besides the default revision, without a caBundle yet.
    let injector = InjectorRevision { revision: "canary".to_owned(), ..InjectorRevision::default() };
    let configuration = injector.webhook_configurations(&WebhookOptions::default()).remove(0);
    fixture.add(configuration);
    for (resource, namespace, name) in [
        ("deployments", "weir-system", "weir-webhook"),
        ("services", "weir-system", "weir-webhook"),
        ("endpointslices", "weir-system", "weir-webhook-x"),
        ("poddisruptionbudgets", "weir-system", "weir-webhook"),
        ("networkpolicies", "weir-system", "weir-webhook"),
        ("pods", "weir-system", "weir-webhook-1"),
        ("pods", "weir-system", "weir-webhook-2"),
    ] {
        let text = fixture.get(resource, namespace, name).to_string();
        let text = text
            .replace("weir-webhook-1\"", "weir-webhook-canary-1\"")
            .replace("weir-webhook-2\"", "weir-webhook-canary-2\"");
        let text = text.replace("\"weir.dev/rev\":\"default\"", "\"weir.dev/rev\":\"canary\"");
        let mut copy: Value =
            serde_json::from_str(&text.replace("\"weir-webhook\"", "\"weir-webhook-canary\"")).unwrap();
        // Container and ConfigMap keep their names.
        let text = copy
            .to_string()
            .replace("\"configMap\":{\"name\":\"weir-webhook-canary\"}", "\"configMap\":{\"name\":\"weir-webhook\"}");
        copy = serde_json::from_str(&text).unwrap();
        if resource == "deployments" {
            copy["spec"]["template"]["spec"]["serviceAccountName"] = "weir-webhook".into();
            let args = copy["spec"]["template"]["spec"]["containers"][0]["args"].as_array_mut().unwrap();
            args.push("--revision=canary".into());
        }
        if resource == "endpointslices" {
            copy["metadata"]["name"] = "weir-webhook-canary-x".into();
        }
        fixture.add(copy);
    }
    for number in 1..=2 {
        for path in ["15014/readyz", "15014/metrics"] {
            let report = fixture.reports[&format!("weir-system/weir-webhook-{number}:{path}")].clone();
            fixture.reports.insert(format!("weir-system/weir-webhook-canary-{number}:{path}"), report);
        }
    }
    fixture.fail_webhook_call("tls: failed to verify certificate: x509: certificate signed by unknown authority");
    let findings = findings(&fixture);
    let mut names: Vec<(&str, &str)> =
        findings.iter().map(|finding| (finding.fault.name, finding.object.name.as_str())).collect();
    names.sort_unstable();
    let wanted = [
        ("ca-bundle-empty", "weir-sidecar-injector-canary"),
        ("ca-bundle-stale", "weir-sidecar-injector"),
        // The account may not patch the configuration of the canary.
        ("service-account-right-missing", "weir-webhook"),
    ];
    assert_eq!(names, wanted, "{findings:#?}");
}
