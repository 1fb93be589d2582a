//! Whether service accounts may do what flags ask of them, and the user what an installation asks.

use serde_json::Value;

use super::view::View;
use crate::check::fault;
use crate::check::finding::{Findings, Object};
use crate::check::snapshot::Right;

/// Something that is to be done.
struct Need<'a> {
    group: &'a str,
    resource: &'a str,
    verbs: &'a [&'a str],
    /// `None` for everywhere.
    namespace: Option<&'a str>,
    /// One object; `None` for any.
    name: Option<&'a str>,
    /// What asks for it.
    why: &'a str,
}

const ADMISSION: &str = "admissionregistration.k8s.io";

pub(super) fn user(view: &View<'_>, findings: &mut Findings) {
    for denied in &view.snapshot.denied {
        findings.add(&fault::RIGHT_MISSING, Object::global(&format!("right to {denied}"), ""), "you do not have it");
    }
}

pub(super) fn accounts(view: &View<'_>, findings: &mut Findings) {
    let Some(rights) = &view.snapshot.rights else { return };
    let places = &view.snapshot.places;
    for installed in &view.installations {
        let Some(deployment) = installed.deployment else { continue };
        let flags = &installed.flags;
        let mut needs = Vec::new();
        let home = Some(places.weir.as_str());
        let mut need = |group, resource, verbs, namespace, name, why| {
            needs.push(Need { group, resource, verbs, namespace, name, why });
        };
        if let Some(secret) = flags.get("ca-secret") {
            need("", "secrets", &["get", "patch"], home, Some(secret), "--ca-secret");
            need("", "secrets", &["create"], home, None, "--ca-secret");
            need("coordination.k8s.io", "leases", &["get", "patch"], home, Some(secret), "--ca-secret");
            need("coordination.k8s.io", "leases", &["create"], home, None, "--ca-secret");
        }
        let patches = flags.on("patch-ca-bundle", flags.get("ca-secret").is_some());
        let resource = "mutatingwebhookconfigurations";
        if patches || flags.on("verify-ca-bundle", false) {
            need(ADMISSION, resource, &["list", "watch"], None, None, "--patch-ca-bundle, --verify-ca-bundle");
        }
        for configuration in installed.configurations().filter(|_| patches) {
            let name = configuration["metadata"]["name"].as_str();
            need(ADMISSION, resource, &["patch"], None, name, "--patch-ca-bundle");
        }
        let maps = flags.get("injector-config-map").is_some() || flags.get("mesh-config-map").is_some();
        if maps {
            let namespace = flags.get("istio-namespace").unwrap_or(&places.weir);
            need(
                "",
                "configmaps",
                &["get", "list", "watch"],
                Some(namespace),
                None,
                "--injector-config-map, --mesh-config-map",
            );
        }
        for (word, group) in [("nodes", ""), ("namespaces", ""), ("proxyconfigs", "networking.istio.io")] {
            if flags.lists("watch", word) {
                need(group, word, &["list", "watch"], None, None, "--watch");
            }
        }
        say(view, deployment, rights, &needs, findings);
    }
    for agents in super::nodes::daemon_sets(view) {
        let environment = super::nodes::environment(view, agents);
        let on = |name: &str| environment.get(name).is_some_and(|value| value == "true");
        let mut needs = vec![Need {
            group: "",
            resource: "pods",
            verbs: &["get", "list", "watch"],
            namespace: None,
            name: None,
            why: "answering the plugin",
        }];
        let switches: [(&str, &str, &[&str]); 3] = [
            ("TAINT_ENABLED", "nodes", &["get", "patch"]),
            ("REPAIR_DELETE_PODS", "pods", &["delete"]),
            ("REPAIR_LABEL_PODS", "pods/status", &["patch"]),
        ];
        for (why, resource, verbs) in switches.into_iter().filter(|(name, ..)| on(name)) {
            needs.push(Need { group: "", resource, verbs, namespace: None, name: None, why });
        }
        say(view, agents, rights, &needs, findings);
    }
}

/// Says which needs of a workload's service account no rule covers.
fn say(view: &View<'_>, workload: &Value, rights: &[Right], needs: &[Need<'_>], findings: &mut Findings) {
    let namespace = workload["metadata"]["namespace"].as_str().unwrap_or(&view.snapshot.places.weir);
    let name = workload["spec"]["template"]["spec"]["serviceAccountName"].as_str().unwrap_or("default");
    let account = format!("{namespace}/{name}");
    let missing: Vec<String> = needs
        .iter()
        .filter_map(|need| {
            let lacking: Vec<&str> = need
                .verbs
                .iter()
                .copied()
                .filter(|verb| !rights.iter().any(|right| covers(right, &account, need, verb)))
                .collect();
            let place = need.namespace.map(|namespace| format!(" in {namespace}")).unwrap_or_default();
            let named = need.name.map(|name| format!(" {name}")).unwrap_or_default();
            (!lacking.is_empty())
                .then(|| format!("{} {}{named}{place} ({})", lacking.join(", "), need.resource, need.why))
        })
        .collect();
    if !missing.is_empty() {
        let text = format!("it may not {}", missing.join("; "));
        findings.add(&fault::SERVICE_ACCOUNT_RIGHT_MISSING, Object::new("ServiceAccount", namespace, name), text);
    }
}

/// Whether a rule gives an account the right to do something.
fn covers(right: &Right, account: &str, need: &Need<'_>, verb: &str) -> bool {
    let has = |list: &Value, word: &str| list.as_array().into_iter().flatten().any(|item| item == word || item == "*");
    let names = right.rule["resourceNames"].as_array().filter(|names| !names.is_empty());
    let whose = right.account == account
        || right.account == "*/*"
        || right
            .account
            .strip_suffix("/*")
            .is_some_and(|home| account.strip_prefix(home).is_some_and(|rest| rest.starts_with('/')));
    whose
        && right.namespace.as_deref().is_none_or(|namespace| need.namespace == Some(namespace))
        && has(&right.rule["apiGroups"], need.group)
        && has(&right.rule["resources"], need.resource)
        && has(&right.rule["verbs"], verb)
        && names.is_none_or(|names| need.name.is_some_and(|name| names.iter().any(|known| known == name)))
}
