//! Somebody who may not read everything.

use super::fixture::Fixture;
use super::{found, found_with, gathered, scope};
use crate::check::fault;
use crate::check::gather::Scope;

#[test]
fn what_may_not_be_read_is_said_and_the_rest_is_checked() {
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
        let findings = found(&fixture);
        assert!(!findings.is_empty(), "{forbidden}");
        for finding in &findings {
            let trial = finding.fault == &fault::PROBE_REFUSED;
            assert!(finding.fault == &fault::NOT_READ || trial, "{forbidden}: {findings:#?}");
            assert!(finding.text.contains("403") && finding.text.contains("forbidden"), "{}", finding.text);
        }
    }
    let mut fixture = Fixture::healthy();
    fixture.forbidden = everything.to_vec();
    fixture.get("configmaps", "weir-system", "weir-webhook")["data"]["values"] = "global: {hub: [1]}".into();
    fixture.forbidden.retain(|path| !path.ends_with("istio-system") && !path.ends_with("weir-node"));
    assert!(found(&fixture).iter().any(|finding| finding.fault == &fault::SETTINGS_REFUSED));
}

#[test]
fn rights_that_an_installation_needs_are_asked_for() {
    let before = Scope { before: Some("default".to_owned()), ..scope() };
    let mut snapshot = gathered(&Fixture::healthy(), &before).unwrap();
    assert!(snapshot.denied.is_empty());
    snapshot.denied.push("create clusterroles.rbac.authorization.k8s.io".to_owned());
    let findings = crate::check::judge::judge(&snapshot).into_sorted(&[]);
    assert_eq!(findings[0].fault, &fault::RIGHT_MISSING);
    // Access reviews that cannot be made are no denials.
    let mut fixture = Fixture::healthy();
    fixture.forbidden = vec!["/apis/authorization.k8s.io"];
    let findings = found_with(&fixture, &before);
    assert_eq!(findings.iter().map(|finding| finding.fault).collect::<Vec<_>>(), [&fault::NOT_READ]);
}

#[test]
fn a_namespace_in_which_nobody_may_create_pods_is_passed_over() {
    let mut fixture = Fixture::healthy();
    fixture.forbidden = vec!["/api/v1/namespaces/secure/pods"];
    assert!(found(&fixture).is_empty());
    fixture.forbidden = vec!["/api/v1/namespaces/"];
    let trial = found(&fixture).into_iter().find(|finding| finding.fault == &fault::PROBE_REFUSED);
    assert!(trial.is_some_and(|finding| finding.text.contains("403")));
}
