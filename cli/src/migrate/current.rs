//! Capture rules that a running pod of Istio has, by its specification.
//!
//! ```text
//! init container istio-init ─▶ its arguments and variables (weir_iptables)
//! none ─────────────────────▶ annotations and proxy container, as istio-cni derives them
//! ```

use std::net::IpAddr;

use iptables_rules::CaptureConfig;
use iptables_rules::config::{InterceptionMode, Ipv6Policy};
use iptables_rules::names::{annotation, variable};
use serde_json::Value;

use super::object::{self, addresses, container};
use crate::rules::init_container;
use crate::rules::subject::{Capture, INIT, PROXY, of_pod};

/// The program that installed the rules of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Origin {
    /// The init container `istio-init`.
    InitContainer,
    /// Istio's CNI plugin.
    IstioCni,
    /// Weir, which has injected the pod.
    Weir,
}

impl Origin {
    /// Returns the origin of a meshed pod's rules; `None` for a pod without a sidecar.
    pub(super) fn of(pod: &Value) -> Option<Self> {
        let is_injected = object::annotation(pod, annotation::STATUS).is_some() || container(pod, PROXY).is_some();
        if !is_injected {
            return None;
        }
        Some(if object::annotation(pod, annotation::CAPTURE).is_some() {
            Self::Weir
        } else if container(pod, INIT).is_some() {
            Self::InitContainer
        } else {
            Self::IstioCni
        })
    }

    /// Returns the name in output.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::InitContainer => "istio-init",
            Self::IstioCni => "istio-cni",
            Self::Weir => "weir",
        }
    }
}

/// Derives the configuration of a pod that Istio has injected.
///
/// # Errors
/// Every setting that is not understood.
pub(super) fn capture(pod: &Value, origin: Origin, dns_servers: &[IpAddr]) -> Result<CaptureConfig, Vec<String>> {
    let mut config = match (origin, container(pod, INIT)) {
        (Origin::InitContainer, Some(init)) => init_container::capture_config(init, resolvers(pod, dns_servers))?,
        _ => match of_pod(pod, false)? {
            Capture::Configured { config, .. } => *config,
            Capture::NotInjected(reason) => return Err(vec![reason.message().to_owned()]),
            Capture::Skipped(_) => no_capture(),
        },
    };
    if origin != Origin::Weir {
        config.ipv6 = istio_ipv6(pod, config.ipv6);
    }
    Ok(config)
}

/// Returns the configuration of a pod in which a plugin installs nothing.
pub(super) fn no_capture() -> CaptureConfig {
    CaptureConfig { mode: InterceptionMode::None, ..CaptureConfig::default() }
}

/// Returns whether Istio captures IPv6: if the first address of the pod is one, or any with `ISTIO_DUAL_STACK` (`getLocalIP` of
/// `tools/istio-iptables/pkg/config`).
fn istio_ipv6(pod: &Value, unknown: Ipv6Policy) -> Ipv6Policy {
    let addresses = addresses(pod);
    let env = |name: &str| {
        let all = [PROXY, INIT].into_iter().filter_map(|name| container(pod, name)?["env"].as_array()).flatten();
        all.into_iter().find(|entry| entry["name"] == name).and_then(|entry| entry["value"].as_str().map(str::to_owned))
    };
    let Some(first) = addresses.first() else { return unknown };
    let is_dual_stack = env(variable::DUAL_STACK).as_deref() == Some("true");
    let captures = first.is_ipv6() || is_dual_stack && addresses.iter().any(IpAddr::is_ipv6);
    if captures { Ipv6Policy::Capture } else { Ipv6Policy::Leave }
}

/// Returns the DNS servers of the pod: those of the cluster, unless it says otherwise.
fn resolvers<'a>(pod: &Value, cluster: &'a [IpAddr]) -> &'a [IpAddr] {
    let is_default = matches!(pod["spec"]["dnsPolicy"].as_str(), None | Some("ClusterFirst"));
    let has_others =
        pod.pointer("/spec/dnsConfig/nameservers").and_then(Value::as_array).is_some_and(|all| !all.is_empty());
    if is_default && !has_others { cluster } else { &[] }
}

#[cfg(test)]
mod tests {
    use iptables_rules::config::DnsCapture;
    use serde_json::json;

    use super::*;

    fn pod(init: &Value, ips: &[&str]) -> Value {
        let ips: Vec<Value> = ips.iter().map(|ip| json!({"ip": ip})).collect();
        json!({
            "metadata": {"annotations": {annotation::STATUS: "{}"}},
            "spec": {"initContainers": [init], "containers": [{"name": "istio-proxy", "securityContext": {"runAsUser": 1337, "runAsGroup": 1337}}]},
            "status": {"podIPs": ips},
        })
    }

    fn init(args: &str) -> Value {
        json!({"name": "istio-init", "args": args.split(' ').collect::<Vec<_>>(), "env": [{"name": "ISTIO_META_DNS_CAPTURE", "value": "true"}]})
    }

    #[test]
    fn arguments_of_the_init_container_decide() {
        let server: IpAddr = "10.96.0.10".parse().unwrap();
        let mut pod = pod(&init("istio-iptables -p 15001 -z 15006 -u 1337 -i * -b * -d 15090 -o 7"), &["10.0.0.1"]);
        pod["metadata"]["annotations"]["traffic.sidecar.istio.io/excludeOutboundPorts"] = "9".into();
        assert_eq!(Origin::of(&pod), Some(Origin::InitContainer));
        let config = capture(&pod, Origin::InitContainer, &[server]).unwrap();
        assert_eq!((config.outbound_ports_exclude, config.dns), (vec![7], DnsCapture::Servers(vec![server])));
        pod["spec"]["dnsPolicy"] = "None".into();
        assert!(capture(&pod, Origin::InitContainer, &[server]).unwrap_err()[0].contains("resolv.conf"));
        pod["spec"]["initContainers"][0]["command"] = json!(["sh", "-c", "istio-iptables"]);
        assert!(capture(&pod, Origin::InitContainer, &[server]).unwrap_err()[0].contains("shell"));
    }

    #[test]
    fn annotations_decide_without_an_init_container() {
        let mut pod = pod(&json!({"name": "istio-validation"}), &["10.0.0.1", "fd00::1"]);
        pod["metadata"]["annotations"]["traffic.sidecar.istio.io/excludeOutboundPorts"] = "9".into();
        assert_eq!(Origin::of(&pod), Some(Origin::IstioCni));
        let config = capture(&pod, Origin::IstioCni, &[]).unwrap();
        assert_eq!((config.outbound_ports_exclude, config.ipv6), (vec![9], Ipv6Policy::Leave));
        pod["spec"]["containers"][0]["env"] = json!([{"name": "ISTIO_DUAL_STACK", "value": "true"}]);
        assert_eq!(capture(&pod, Origin::IstioCni, &[]).unwrap().ipv6, Ipv6Policy::Capture);
        pod["metadata"]["annotations"]["weir.dev/capture"] = "{}".into();
        assert_eq!(Origin::of(&pod), Some(Origin::Weir));
        assert_eq!(Origin::of(&json!({"spec": {"containers": [{"name": "app"}]}})), None);
    }
}
