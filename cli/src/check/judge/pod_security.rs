//! Pod Security levels of namespaces, and whether what is injected passes them.
//!
//! Source: Kubernetes, Pod Security Standards. Only what an injection can add is looked at.

use serde_json::{Map, Value, json};
use weir_injector::inject::finish::status::InjectionStatus;
use weir_injector::inject::selection::Labels;
use weir_injector::inject::{InjectRequest, Outcome, inject};

use super::view::{View, containers};
use crate::check::fault;
use crate::check::finding::{Findings, Object};

/// Label of a namespace with its level.
const ENFORCE: &str = "pod-security.kubernetes.io/enforce";
/// Capabilities that the level `baseline` lets a container add.
const BASELINE: [&str; 13] = [
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

pub(super) fn judge(view: &View<'_>, findings: &mut Findings) {
    for (name, labels) in &view.namespaces {
        let level = labels.get(ENFORCE).and_then(Value::as_str);
        let Some(level) = level.filter(|level| ["baseline", "restricted"].contains(level)) else { continue };
        let takers = view.sent_to(Labels { namespace: labels, pod: &Map::new() });
        let revision = takers.iter().find_map(|injector| injector.revision);
        let settings = revision.and_then(|revision| view.installation(revision)?.settings.as_ref());
        let Some(settings) = settings else { continue };
        let pod = json!({"metadata": {"name": "any", "namespace": name}, "spec": {"containers": [{"name": "app", "image": "app"}]}});
        let request = InjectRequest { pod, namespace: Some((*name).to_owned()), ..InjectRequest::default() };
        let Ok(Outcome::Injected { pod, .. }) = inject(&request, settings) else { continue };
        let broken = violations(&pod, level == "restricted");
        if !broken.is_empty() {
            let text = format!("its level {level:?} refuses what is injected: {}", broken.join("; "));
            findings.add(&fault::POD_SECURITY_REFUSES, Object::global("Namespace", name), text);
        }
    }
}

/// What of the injected containers a level refuses.
fn violations(pod: &Value, restricted: bool) -> Vec<String> {
    let status = InjectionStatus::of_pod(pod);
    let injected: Vec<String> =
        status.into_iter().flat_map(|status| [status.containers, status.init_containers]).flatten().flatten().collect();
    let mut found = Vec::new();
    for container in containers(pod).filter(|container| injected.iter().any(|name| container["name"] == name.as_str()))
    {
        let name = container["name"].as_str().unwrap_or_default();
        let context = &container["securityContext"];
        let listed = |key: &str| -> Vec<&str> {
            context["capabilities"][key].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
        };
        let allowed = if restricted { &["NET_BIND_SERVICE"][..] } else { &BASELINE };
        let added: Vec<&str> = listed("add").into_iter().filter(|capability| !allowed.contains(capability)).collect();
        if !added.is_empty() {
            found.push(format!("{name} adds {}", added.join(", ")));
        }
        if context["privileged"] == true {
            found.push(format!("{name} is privileged"));
        }
        if !restricted {
            continue;
        }
        if context["allowPrivilegeEscalation"] != false {
            found.push(format!("{name} may gain privileges"));
        }
        if !listed("drop").contains(&"ALL") {
            found.push(format!("{name} keeps capabilities"));
        }
        if context["runAsNonRoot"] != true && pod["spec"]["securityContext"]["runAsNonRoot"] != true
            || context["runAsUser"] == 0
        {
            found.push(format!("{name} may run as root"));
        }
        // A profile of the pod holds for all containers, and it is the user's to set.
        let profile = context["seccompProfile"]["type"].as_str();
        if profile == Some("Unconfined") {
            found.push(format!("{name} has no seccomp profile"));
        }
    }
    found
}
