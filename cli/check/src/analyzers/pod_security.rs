//! Pod Security levels of namespaces that reject the injected containers.
//!
//! Source: Kubernetes, Pod Security Standards. Only what an injection can add is checked.

use serde::Deserialize;
use serde_json::{Map, json};
use weir_injector::finish::status::InjectionStatus;
use weir_injector::selection::Labels;
use weir_injector::{InjectOutcome, InjectRequest, inject};

use super::view::ClusterView;
use crate::fault;
use crate::finding::{FindingObject, Findings};
use crate::snapshot::object::{parse, text};

/// Label of a namespace with its level.
const ENFORCE: &str = "pod-security.kubernetes.io/enforce";
/// Capabilities that containers may add at the level `baseline`.
const BASELINE_CAPABILITIES: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// A pod, as far as Pod Security reads it.
#[derive(Default, Deserialize)]
#[serde(default)]
struct SecuredPod {
    spec: SecuredSpec,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct SecuredSpec {
    init_containers: Vec<SecuredContainer>,
    containers: Vec<SecuredContainer>,
    security_context: SecurityContext,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct SecuredContainer {
    name: String,
    security_context: SecurityContext,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct SecurityContext {
    privileged: bool,
    allow_privilege_escalation: Option<bool>,
    run_as_non_root: bool,
    run_as_user: Option<i64>,
    capabilities: Capabilities,
    seccomp_profile: SeccompProfile,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Capabilities {
    add: Vec<String>,
    drop: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct SeccompProfile {
    #[serde(rename = "type")]
    kind: String,
}

pub(super) fn analyze(view: &ClusterView<'_>, findings: &mut Findings) {
    for (name, labels) in &view.namespaces {
        let level = text(labels, ENFORCE).filter(|level| ["baseline", "restricted"].contains(level));
        let Some(level) = level else { continue };
        let injectors = view.injectors_for(Labels { namespace: labels, pod: &Map::new() });
        let revision = injectors.iter().find_map(|injector| injector.revision());
        let settings = revision.and_then(|revision| view.revision(revision)?.settings.as_ref());
        let Some(settings) = settings else { continue };
        let pod = json!({"metadata": {"name": "any", "namespace": name}, "spec": {"containers": [{"name": "app", "image": "app"}]}});
        let request = InjectRequest { pod, namespace: Some((*name).to_owned()), ..InjectRequest::default() };
        let Ok(InjectOutcome::Injected { pod, .. }) = inject(&request, settings) else { continue };
        let status = InjectionStatus::of_pod(&pod).unwrap_or_default();
        let injected: Vec<String> =
            [status.containers, status.init_containers].into_iter().flatten().flatten().collect();
        let Ok(pod) = parse::<SecuredPod>(pod) else { continue };
        let violations = violations(&pod.spec, &injected, level == "restricted");
        if !violations.is_empty() {
            let text = format!("its level {level:?} rejects the injected containers: {}", violations.join("; "));
            findings.add(&fault::POD_SECURITY_REFUSES, FindingObject::cluster_scoped("Namespace", name), text);
        }
    }
}

/// Returns what a level rejects of the injected containers.
fn violations(pod: &SecuredSpec, injected: &[String], is_restricted: bool) -> Vec<String> {
    let containers = pod.init_containers.iter().chain(&pod.containers);
    let mut found = Vec::new();
    for SecuredContainer { name, security_context: context } in containers.filter(|it| injected.contains(&it.name)) {
        let allowed = if is_restricted { &["NET_BIND_SERVICE"][..] } else { &BASELINE_CAPABILITIES };
        let added = context.capabilities.add.iter().map(String::as_str);
        let added: Vec<&str> = added.filter(|capability| !allowed.contains(capability)).collect();
        if !added.is_empty() {
            found.push(format!("{name} adds capabilities {}", added.join(", ")));
        }
        if context.privileged {
            found.push(format!("{name} is privileged"));
        }
        if !is_restricted {
            continue;
        }
        if context.allow_privilege_escalation != Some(false) {
            found.push(format!("{name} allows privilege escalation"));
        }
        if !context.capabilities.drop.iter().any(|capability| capability == "ALL") {
            found.push(format!("{name} does not drop all capabilities"));
        }
        let non_root = context.run_as_non_root || pod.security_context.run_as_non_root;
        if !non_root || context.run_as_user == Some(0) {
            found.push(format!("{name} may run as root"));
        }
        // A profile of the pod applies to all containers, and is the user's to set.
        if context.seccomp_profile.kind == "Unconfined" {
            found.push(format!("{name} has no seccomp profile"));
        }
    }
    found
}
