//! `weir.dev/capture`: what the CNI plugin will program, decided here once and handed on through the runtime.

use std::collections::BTreeMap;

use iptables_rules::CaptureConfig;
use iptables_rules::annotations::ProxySpec;
use serde_json::Value;

use super::annotations::{self as name, Texts};
use super::containers;
use super::context::PROXY;

/// The effective capture configuration of an injected pod, from its final annotations and its final proxy.
///
/// # Errors
/// Everything in them that cannot be carried out.
pub(super) fn annotation(pod: &Value) -> Result<String, Vec<String>> {
    let annotations: BTreeMap<String, String> = Texts::of(pod, "annotations")
        .iter()
        .filter(|(key, _)| *key != name::CAPTURE)
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    let proxy = containers::find(pod, PROXY).map(proxy_spec).unwrap_or_default();
    CaptureConfig::from_annotations(&annotations, &proxy)
        .map(|config| config.to_capture_annotation())
        .map_err(|errors| errors.iter().map(ToString::to_string).collect())
}

fn proxy_spec(proxy: &Value) -> ProxySpec {
    let id = |field: &str| proxy["securityContext"][field].as_u64().and_then(|id| u32::try_from(id).ok());
    let env = proxy["env"].as_array().into_iter().flatten();
    ProxySpec {
        uid: id("runAsUser"),
        gid: id("runAsGroup"),
        env: env
            .filter_map(|variable| {
                Some((variable["name"].as_str()?.to_owned(), variable["value"].as_str()?.to_owned()))
            })
            .collect(),
    }
}
