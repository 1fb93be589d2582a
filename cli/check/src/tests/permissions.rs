//! Users with limited permissions.

use serde_json::json;

use super::changes::{change_values, make_unready, webhook_args};
use super::fixture::{Fixture, manifest};
use super::{collected, findings, findings_in, pre_install_scope};
use crate::{AreaState, analyze, fault};

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
        let areas = crate::areas(&findings, false);
        assert!(!crate::is_complete(&findings), "{forbidden}: a check that reads nothing is no success");
        assert!(areas.iter().any(|area| area.state == AreaState::Incomplete), "{forbidden}: {areas:?}");
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
fn roles_with_resource_names_grant_the_config_maps_of_istio() {
    let mut fixture = Fixture::healthy();
    let args = webhook_args(&mut fixture);
    args.retain(|arg| !["--values", "--mesh"].iter().any(|flag| arg.as_str().unwrap().starts_with(flag)));
    let flags =
        ["--injector-config-map=istio-sidecar-injector", "--mesh-config-map=istio", "--istio-namespace=istio-system"];
    args.extend(flags.map(serde_json::Value::from));
    let text = |key: &str| fixture.find("configmaps", "weir-system", "weir-webhook").unwrap()["data"][key].clone();
    for (name, data) in
        [("istio-sidecar-injector", json!({"values": text("values")})), ("istio", json!({"mesh": text("mesh")}))]
    {
        let metadata = json!({"name": name, "namespace": "istio-system"});
        fixture.add(json!({"kind": "ConfigMap", "metadata": metadata, "data": data}));
    }
    let lacks = |fixture: &Fixture| {
        let found = findings(fixture);
        found.iter().any(|finding| finding.fault == &fault::SERVICE_ACCOUNT_RIGHT_MISSING)
    };
    assert!(lacks(&fixture));
    fixture.add_all(manifest("components/istio-config/rbac.yaml"));
    assert!(!lacks(&fixture));
    fixture.get("roles", "istio-system", "weir-webhook")["rules"][0]["resourceNames"] = json!(["istio"]);
    assert!(lacks(&fixture), "the other one may not be read");
}

#[test]
fn cni_mode_of_the_webhook_overrides_the_values() {
    let mut fixture = Fixture::healthy();
    change_values(&mut fixture, "cni:\n    enabled: true", "cni:\n    enabled: false");
    let is_off = |fixture: &Fixture| findings(fixture).iter().any(|finding| finding.fault == &fault::CNI_MODE_OFF);
    assert!(is_off(&fixture));
    webhook_args(&mut fixture).push("--cni-mode=true".into());
    assert!(!is_off(&fixture));
}

#[test]
fn installation_that_did_not_finish_is_named() {
    let mut fixture = Fixture::healthy();
    fixture.remove("mutatingwebhookconfigurations", "", "weir-sidecar-injector");
    make_unready(&mut fixture, "weir-system", "weir-webhook-1");
    let found = findings(&fixture);
    let finding = found.iter().find(|finding| finding.fault == &fault::WEBHOOK_CONFIGURATION_MISSING).unwrap();
    assert!(finding.text.contains("did not finish") && finding.text.contains("weir-webhook-1"), "{}", finding.text);
    assert!(finding.fix.contains("describe these pods"), "{}", finding.fix);
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
