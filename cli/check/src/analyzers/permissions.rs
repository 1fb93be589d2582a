//! Permissions that the flags of webhook and agents need, and those that an installation needs.

use super::nodes::{agent_daemon_sets, agent_environment};
use super::view::{ClusterView, InstalledRevision};
use crate::fault;
use crate::finding::{FindingObject, Findings};
use crate::snapshot::cluster::PermissionRule;
use crate::snapshot::own::Controller;

/// A permission that a flag needs.
struct RequiredPermission<'a> {
    group: &'a str,
    resource: &'a str,
    verbs: &'a [&'a str],
    /// `None` for the whole cluster.
    namespace: Option<&'a str>,
    /// Name of one object; `None` for any.
    name: Option<&'a str>,
    /// The flag or feature that needs it.
    reason: &'a str,
}

const ADMISSION: &str = "admissionregistration.k8s.io";

pub(super) fn analyze_user(view: &ClusterView<'_>, findings: &mut Findings) {
    for missing in &view.snapshot.missing_permissions {
        let object = FindingObject::cluster_scoped(&format!("permission to {missing}"), "");
        findings.add(&fault::RIGHT_MISSING, object, "you do not have it");
    }
}

pub(super) fn analyze_service_accounts(view: &ClusterView<'_>, findings: &mut Findings) {
    let Some(granted) = &view.snapshot.permissions else { return };
    for installed in &view.revisions {
        if let Some(deployment) = installed.deployment {
            let required = webhook_permissions(installed, &view.snapshot.install_namespaces.webhook);
            add_missing(deployment, granted, &required, findings);
        }
    }
    for agents in agent_daemon_sets(view) {
        add_missing(agents, granted, &agent_permissions(view, agents), findings);
    }
}

fn webhook_permissions<'a>(installed: &'a InstalledRevision<'_>, namespace: &'a str) -> Vec<RequiredPermission<'a>> {
    let flags = &installed.flags;
    let mut required = Vec::new();
    let mut require = |group, resource, verbs, namespace, name, reason| {
        required.push(RequiredPermission { group, resource, verbs, namespace, name, reason });
    };
    let own = Some(namespace);
    if let Some(secret) = flags.get("ca-secret") {
        require("", "secrets", &["get", "patch"], own, Some(secret), "--ca-secret");
        require("", "secrets", &["create"], own, None, "--ca-secret");
        require("coordination.k8s.io", "leases", &["get", "patch"], own, Some(secret), "--ca-secret");
        require("coordination.k8s.io", "leases", &["create"], own, None, "--ca-secret");
    }
    let patches_bundle = flags.is_on("patch-ca-bundle", flags.get("ca-secret").is_some());
    let resource = "mutatingwebhookconfigurations";
    if patches_bundle || flags.is_on("verify-ca-bundle", false) {
        require(ADMISSION, resource, &["list", "watch"], None, None, "--patch-ca-bundle, --verify-ca-bundle");
    }
    for configuration in installed.configurations().filter(|_| patches_bundle) {
        require(ADMISSION, resource, &["patch"], None, Some(&configuration.metadata.name), "--patch-ca-bundle");
    }
    if flags.get("injector-config-map").is_some() || flags.get("mesh-config-map").is_some() {
        let namespace = Some(flags.get("istio-namespace").unwrap_or(namespace));
        let reason = "--injector-config-map, --mesh-config-map";
        require("", "configmaps", &["get", "list", "watch"], namespace, None, reason);
    }
    for (watched, group) in [("nodes", ""), ("namespaces", ""), ("proxyconfigs", "networking.istio.io")] {
        if flags.contains("watch", watched) {
            require(group, watched, &["list", "watch"], None, None, "--watch");
        }
    }
    required
}

fn agent_permissions<'a>(view: &ClusterView<'a>, agents: &'a Controller) -> Vec<RequiredPermission<'a>> {
    let environment = agent_environment(view, agents);
    let is_on = |name: &str| environment.get(name).is_some_and(|value| *value == "true");
    let switches: [(&str, &str, &[&str]); 3] = [
        ("TAINT_ENABLED", "nodes", &["get", "patch"]),
        ("REPAIR_DELETE_PODS", "pods", &["delete"]),
        ("REPAIR_LABEL_PODS", "pods/status", &["patch"]),
    ];
    let always: (&str, &str, &[&str]) = ("answering the plugin", "pods", &["get", "list", "watch"]);
    let required = std::iter::once(always).chain(switches.into_iter().filter(|(name, ..)| is_on(name)));
    required
        .map(|(reason, resource, verbs)| RequiredPermission {
            group: "",
            resource,
            verbs,
            namespace: None,
            name: None,
            reason,
        })
        .collect()
}

/// Adds a finding about the required permissions that the service account of a workload lacks.
fn add_missing(
    workload: &Controller,
    granted: &[PermissionRule],
    required: &[RequiredPermission<'_>],
    findings: &mut Findings,
) {
    let namespace = &workload.metadata.namespace;
    let name = workload.spec.template.spec.service_account_name.as_deref().unwrap_or("default");
    let account = format!("{namespace}/{name}");
    let missing: Vec<String> = required
        .iter()
        .filter_map(|permission| {
            let is_missing = |verb: &&str| !granted.iter().any(|rule| grants(rule, &account, permission, verb));
            let verbs: Vec<&str> = permission.verbs.iter().copied().filter(is_missing).collect();
            let place = permission.namespace.map(|namespace| format!(" in {namespace}")).unwrap_or_default();
            let object = permission.name.map(|name| format!(" {name}")).unwrap_or_default();
            let RequiredPermission { resource, reason, .. } = permission;
            (!verbs.is_empty()).then(|| format!("{} {resource}{object}{place} ({reason})", verbs.join(", ")))
        })
        .collect();
    if !missing.is_empty() {
        let text = format!("may not {}", missing.join("; "));
        findings.add(
            &fault::SERVICE_ACCOUNT_RIGHT_MISSING,
            FindingObject::new("ServiceAccount", namespace, name),
            text,
        );
    }
}

/// Returns whether a rule grants a verb of a permission to an account.
fn grants(granted: &PermissionRule, account: &str, required: &RequiredPermission<'_>, verb: &str) -> bool {
    let has = |list: &[String], word: &str| list.iter().any(|item| item == word || item == "*");
    let in_namespace = |namespace: &str| account.split_once('/').is_some_and(|(home, _)| home == namespace);
    let is_subject = granted.account == account
        || granted.account == "*/*"
        || granted.account.strip_suffix("/*").is_some_and(in_namespace);
    let names = &granted.rule.resource_names;
    is_subject
        && granted.namespace.as_deref().is_none_or(|namespace| required.namespace == Some(namespace))
        && has(&granted.rule.api_groups, required.group)
        && has(&granted.rule.resources, required.resource)
        && has(&granted.rule.verbs, verb)
        && (names.is_empty() || required.name.is_some_and(|name| names.iter().any(|known| known == name)))
}
