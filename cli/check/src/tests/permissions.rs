//! Users with limited permissions.

use super::fixture::Fixture;
use super::{collected, findings, findings_in, pre_install_scope};
use crate::{analyze, fault};

#[test]
fn unreadable_objects_are_reported_and_the_rest_is_checked() {
    let everything = [
        "/apis/admissionregistration.k8s.io",
        "/api/v1/nodes",
        "/api/v1/namespaces/weir-system/pods",
        "/api/v1/namespaces/weir-system/secrets",
        "/api/v1/namespaces/weir-node",
        "/apis/apps/v1/daemonsets",
        "/apis/rbac.authorization.k8s.io",
        "/api/v1/pods",
        "/api/v1/events",
        "/api/v1/namespaces/istio-system",
        "/apis/discovery.k8s.io",
        "/apis/networking.k8s.io",
        "/apis/policy",
    ];
    for forbidden in everything {
        let mut fixture = Fixture::healthy();
        fixture.forbidden = vec![forbidden];
        let findings = findings(&fixture);
        assert!(!findings.is_empty(), "{forbidden}");
        for finding in &findings {
            let is_dry_run = finding.fault == &fault::PROBE_REFUSED;
            assert!(finding.fault == &fault::NOT_READ || is_dry_run, "{forbidden}: {findings:#?}");
            assert!(finding.text.contains("403") && finding.text.contains("forbidden"), "{}", finding.text);
        }
    }
    let mut fixture = Fixture::healthy();
    fixture.forbidden = everything.to_vec();
    fixture.get("configmaps", "weir-system", "weir-webhook")["data"]["values"] = "global: {hub: [1]}".into();
    fixture.forbidden.retain(|path| !path.ends_with("istio-system") && !path.ends_with("weir-node"));
    assert!(findings(&fixture).iter().any(|finding| finding.fault == &fault::SETTINGS_REFUSED));
}

#[test]
fn missing_permissions_for_an_installation_are_reported() {
    let scope = pre_install_scope("default");
    let mut snapshot = collected(&Fixture::healthy(), &scope).unwrap();
    assert!(snapshot.missing_permissions.is_empty());
    snapshot.missing_permissions.push("create clusterroles.rbac.authorization.k8s.io".to_owned());
    assert_eq!(analyze(&snapshot)[0].fault, &fault::RIGHT_MISSING);
    // A failed access review is no denial.
    let mut fixture = Fixture::healthy();
    fixture.forbidden = vec!["/apis/authorization.k8s.io"];
    let findings = findings_in(&fixture, &scope);
    assert_eq!(findings.iter().map(|finding| finding.fault).collect::<Vec<_>>(), [&fault::NOT_READ]);
}

#[test]
fn dry_run_tries_other_namespaces_if_forbidden() {
    let mut fixture = Fixture::healthy();
    fixture.forbidden = vec!["/api/v1/namespaces/secure/pods"];
    assert!(findings(&fixture).is_empty());
    fixture.forbidden = vec!["/api/v1/namespaces/"];
    let rejected = findings(&fixture).into_iter().find(|finding| finding.fault == &fault::PROBE_REFUSED);
    assert!(rejected.is_some_and(|finding| finding.text.contains("403")));
}
