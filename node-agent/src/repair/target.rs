//! The capture rules that a pod should have: those that it was started with.

use std::sync::Arc;

use iptables_rules::backend::Backend;
use iptables_rules::config::Ipv6Policy;
use iptables_rules::{CaptureConfig, plan};
use weir_protocol::decision::CaptureDecision;

use super::inspect::ExpectedRules;
use super::installed::{InstalledConfigs, Knowledge};
use crate::pods::PodFacts;

/// Facts about the rules of one pod before its network namespace is visited.
#[derive(Debug)]
pub(super) struct Target {
    /// The configuration to compare with and to restore.
    pub(super) config: Option<Arc<CaptureConfig>>,
    /// Whether the pod was started with it for sure.
    pub(super) is_known: bool,
    /// Whether the pod is in the mesh, by its annotations or by what was installed.
    pub(super) is_meshed: bool,
    /// Whether the annotations ask for something else than `config`.
    pub(super) annotations_changed: bool,
    /// Faults of the annotations or the spec, one line each, where nothing else is known.
    pub(super) faults: Option<Vec<String>>,
}

impl Target {
    /// Finds out what a pod was started with: what ADD reported or an inspection confirmed, else what its annotations said when it was first
    /// seen, else what they say now.
    pub(super) fn of(pod: &PodFacts, configs: &InstalledConfigs) -> Self {
        let asked = match &pod.decision {
            CaptureDecision::Capture(config, _) => Some(config),
            _ => None,
        };
        let is_skipped = matches!(pod.decision, CaptureDecision::Skip(_));
        match configs.get(pod) {
            Some((config, knowledge)) => Self {
                annotations_changed: asked.is_none_or(|asked| asks_for_other(asked, &config)),
                is_known: knowledge == Knowledge::Installed,
                is_meshed: true,
                faults: None,
                config: Some(config),
            },
            None => Self {
                annotations_changed: false,
                is_known: false,
                is_meshed: !is_skipped,
                faults: if asked.is_some() || is_skipped { None } else { Some(faults(&pod.decision)) },
                config: asked.map(|asked| {
                    let ipv6 = asked.ipv6.for_addresses(&pod.ips);
                    Arc::new(CaptureConfig { ipv6, ..(**asked).clone() })
                }),
            },
        }
    }

    /// Plans the rules.
    ///
    /// # Errors
    /// A line for each unsupported setting.
    pub(super) fn expected_rules(&self, backend: Backend) -> Result<ExpectedRules, Vec<String>> {
        let rules = self.config.as_ref().map(|config| plan(config)).transpose();
        let rules = rules.map_err(|settings| to_lines(&settings))?;
        Ok(ExpectedRules { rules, is_known: self.is_known, backend, verified: None })
    }
}

/// Returns whether the annotations ask for something else than was installed. Where they leave it open, ADD has decided about IPv6.
fn asks_for_other(asked: &CaptureConfig, installed: &CaptureConfig) -> bool {
    match asked.ipv6 {
        Ipv6Policy::Auto => CaptureConfig { ipv6: installed.ipv6, ..asked.clone() } != *installed,
        _ => asked != installed,
    }
}

/// Returns a line for each invalid setting.
fn faults(decision: &CaptureDecision) -> Vec<String> {
    match decision {
        CaptureDecision::InvalidAnnotations(errors) => to_lines(errors),
        CaptureDecision::InvalidSpec(lines) | CaptureDecision::NeedsSpec(lines) => lines.clone(),
        CaptureDecision::StatusContradicted(fault) => vec![fault.clone()],
        CaptureDecision::Capture(..) | CaptureDecision::Skip(_) => Vec::new(),
    }
}

fn to_lines<T: ToString>(items: &[T]) -> Vec<String> {
    items.iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::pods::facts;

    #[test]
    fn addresses_decide_about_ipv6_that_the_annotations_leave_open() {
        let pod = |ips: &[&str]| {
            let ips: Vec<_> = ips.iter().map(|ip| json!({"ip": ip})).collect();
            facts(json!({
                "metadata": {"namespace": "shop", "name": "web", "uid": "u1", "annotations": {
                    "sidecar.istio.io/status": r#"{"containers":["istio-proxy"]}"#, "weir.dev/capture": r#"{"v":1,"?ipv6Auto":true}"#,
                }},
                "spec": {"containers": [{"name": "istio-proxy"}]},
                "status": {"podIPs": ips},
            }))
        };
        let configs = InstalledConfigs::default();
        let policy = |pod: &PodFacts| Target::of(pod, &configs).config.unwrap().ipv6;
        assert_eq!(policy(&pod(&["10.1.0.2", "fd00::2"])), Ipv6Policy::Leave);
        assert_eq!(policy(&pod(&["fd00::2"])), Ipv6Policy::Capture);
        for installed in [r#"{"v":1}"#, r#"{"v":1,"ipv6":"leave"}"#] {
            let configs = InstalledConfigs::default();
            configs.record_report("u1", installed);
            for ips in [&[][..], &["10.1.0.2", "fd00::2"]] {
                assert!(!Target::of(&pod(ips), &configs).annotations_changed, "{installed} {ips:?}");
            }
        }
        configs.record_report("u1", r#"{"v":1,"proxyUids":[1]}"#);
        assert!(Target::of(&pod(&[]), &configs).annotations_changed);
    }
}
