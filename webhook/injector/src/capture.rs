//! Computes the annotation `weir.dev/capture`, which tells the CNI plugin which rules to install.

use std::collections::BTreeMap;

use iptables_rules::CaptureConfig;
use iptables_rules::annotations::{ProxySpec, SETTINGS, SettingSource};
use iptables_rules::capture_annotation::CAPTURE_MAX_BYTES;
use iptables_rules::config::{Group, InterceptionMode, OwnerGroups};
use iptables_rules::names::variable;
use serde_json::Value;

use crate::annotations::{self as name, StringMap};
use crate::containers::{self, PROXY_CONTAINER};
use crate::settings::Mesh;

/// Returns the effective capture configuration of an injected pod, from its final annotations and its final proxy. The
/// ports on which the proxy listens are those of the mesh.
///
/// # Errors
/// Returns everything that the plugin does not support: it would reject the pod later, where the cause is harder to see.
pub(crate) fn annotation(pod: &Value, mesh: &Mesh) -> Result<String, Vec<String>> {
    let annotations = capture_annotations(StringMap::of(pod, "annotations"));
    let proxy = containers::find(pod, PROXY_CONTAINER).map(ProxySpec::from_container).transpose();
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
                    "the lists of ports and addresses are too long: annotation '{}' would have {} bytes; the limit is \
                     {CAPTURE_MAX_BYTES}",
                    name::CAPTURE,
                    text.len()
                ));
            } else {
                findings.extend(unsupported_by_plugin(&config));
            }
            if findings.is_empty() {
                return Ok(text);
            }
        }
    }
    Err(findings)
}

/// Returns the annotations that choose the captured traffic.
pub(crate) fn capture_annotations(annotations: StringMap<'_>) -> BTreeMap<String, String> {
    let settings = SETTINGS.iter().filter(|setting| setting.source == SettingSource::Annotation);
    settings.filter_map(|setting| Some((setting.name.to_owned(), annotations.get(setting.name)?.to_owned()))).collect()
}

/// Returns the settings that the annotation can express but the plugin cannot apply.
fn unsupported_by_plugin(config: &CaptureConfig) -> Vec<String> {
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
            format!("variable '{setting}': group '{group}' is a name, which only the pod's image can resolve; use its number")
        }));
    }
    findings
}
