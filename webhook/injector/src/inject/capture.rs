//! `weir.dev/capture`: what the CNI plugin will program, decided here once and handed on through the runtime.

use std::collections::BTreeMap;

use iptables_rules::CaptureConfig;
use iptables_rules::annotations::{CAPTURE_MAX_BYTES, ProxySpec, SETTINGS, Source};
use iptables_rules::config::{Group, InterceptionMode, OwnerGroups};
use iptables_rules::names::variable;
use serde_json::Value;

use super::annotations::{self as name, Texts};
use super::containers;
use super::context::PROXY;
use crate::settings::Mesh;

/// The effective capture configuration of an injected pod, from its final annotations and its final proxy. The
/// ports on which the proxy listens are those of the mesh.
///
/// # Errors
/// Everything in them that cannot be carried out: a pod that the plugin would refuse could not start, and nobody sees why
/// as soon as here.
pub(super) fn annotation(pod: &Value, mesh: &Mesh) -> Result<String, Vec<String>> {
    let annotations = settings_of(Texts::of(pod, "annotations"));
    let proxy = containers::find(pod, PROXY).map(ProxySpec::of_container).transpose();
    let (proxy, mut findings) = match proxy {
        Ok(proxy) => (proxy.unwrap_or_default(), Vec::new()),
        Err(findings) => (ProxySpec::default(), findings),
    };
    match CaptureConfig::from_annotations(&annotations, &proxy) {
        Err(errors) => findings.extend(errors.iter().map(ToString::to_string)),
        Ok(config) => {
            let config = CaptureConfig { proxy_port: mesh.proxy_port, inbound_port: mesh.inbound_port, ..config };
            let text = config.to_capture_annotation();
            if text.len() > CAPTURE_MAX_BYTES {
                findings.push(format!(
                    "the lists of ports and addresses are too long: annotation '{}' would have {} bytes, at most \
                     {CAPTURE_MAX_BYTES} can be handed to the CNI plugin",
                    name::CAPTURE,
                    text.len()
                ));
            } else {
                findings.extend(beyond_the_plugin(&config));
            }
            if findings.is_empty() {
                return Ok(text);
            }
        }
    }
    Err(findings)
}

/// The annotations that choose the captured traffic.
pub(super) fn settings_of(annotations: Texts<'_>) -> BTreeMap<String, String> {
    let settings = SETTINGS.iter().filter(|setting| setting.source == Source::Annotation);
    settings.filter_map(|setting| Some((setting.name.to_owned(), annotations.get(setting.name)?.to_owned()))).collect()
}

/// What can be written down, but not programmed by the plugin.
fn beyond_the_plugin(config: &CaptureConfig) -> Vec<String> {
    let mut findings: Vec<String> = match iptables_rules::plan(config) {
        Ok(_) => Vec::new(),
        Err(unsupported) => unsupported.iter().map(ToString::to_string).collect(),
    };
    let (setting, groups) = match &config.owner_groups {
        OwnerGroups::Only(groups) => (variable::OWNER_GROUPS, groups),
        OwnerGroups::AllBut(groups) => (variable::OWNER_GROUPS_EXCLUDE, groups),
    };
    if config.mode != InterceptionMode::None {
        let named = groups.iter().filter(|group| matches!(group, Group::Name(_)));
        findings.extend(named.map(|group| {
            format!("variable '{setting}': group '{group}' is given by name, which only the pod's image knows; give its number")
        }));
    }
    findings
}
