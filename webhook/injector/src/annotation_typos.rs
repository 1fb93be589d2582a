//! Annotations with a prefix of Istio or Weir whose name is nearly that of another one: most likely a mistake, and without any effect.

use crate::annotations::{self as name, StringMap};
use iptables_rules::names::annotation;

/// Domains whose annotations are compared.
const DOMAINS: [&str; 2] = ["istio.io", "weir.dev"];
/// Largest distance (Damerau-Levenshtein) of a name that is taken for a misspelt one.
const MAX_DISTANCE: usize = 2;
/// Annotations of pods that Istio or Weir reads, or has read in an earlier release.
const KNOWN: [&str; 47] = [
    annotation::IPV6,
    annotation::INJECT,
    name::STATUS,
    name::OVERRIDES,
    name::PROXY_CONFIG,
    name::TEMPLATES,
    name::REVISION,
    name::CAPTURE,
    name::ORIGINAL,
    name::INTERCEPTION_MODE,
    name::NATIVE_SIDECAR,
    name::PROXY_IMAGE,
    name::PROXY_IMAGE_TYPE,
    name::BOOTSTRAP_OVERRIDE,
    name::USER_VOLUME,
    name::USER_VOLUME_MOUNT,
    name::CAP_NET_BIND_SERVICE,
    name::LOG_LEVEL,
    name::COMPONENT_LOG_LEVEL,
    name::AGENT_LOG_LEVEL,
    name::PROXY_CPU,
    name::PROXY_MEMORY,
    name::PROXY_CPU_LIMIT,
    name::PROXY_MEMORY_LIMIT,
    name::REWRITE_PROBES,
    name::STATUS_PORT,
    name::READINESS_INITIAL_DELAY,
    name::READINESS_PERIOD,
    name::READINESS_FAILURES,
    name::INCLUDE_OUTBOUND_RANGES,
    name::EXCLUDE_OUTBOUND_RANGES,
    name::INCLUDE_INBOUND_PORTS,
    name::EXCLUDE_INBOUND_PORTS,
    name::INCLUDE_OUTBOUND_PORTS,
    name::EXCLUDE_OUTBOUND_PORTS,
    name::EXCLUDE_INTERFACES,
    name::KUBEVIRT_INTERFACES,
    name::REROUTE_INTERFACES,
    name::MERGE_METRICS,
    "sidecar.istio.io/discoveryAddress",
    "sidecar.istio.io/enableCoreDump",
    "sidecar.istio.io/extraStatTags",
    "sidecar.istio.io/statsInclusionPrefixes",
    "sidecar.istio.io/statsInclusionRegexps",
    "sidecar.istio.io/statsInclusionSuffixes",
    "sidecar.istio.io/statsHistogramBuckets",
    "sidecar.istio.io/statsCompression",
];

/// Unknown annotations of one pod that are compared with the known ones. Its author may write thousands.
const MAX_COMPARED: usize = 64;

/// Returns a warning for each annotation that is probably misspelt, of the first [`MAX_COMPARED`] unknown ones.
pub(crate) fn warnings(annotations: StringMap<'_>) -> Vec<String> {
    let unknown = annotations.iter().map(|(key, _)| key).filter(|key| is_unknown(key)).take(MAX_COMPARED);
    let misspelt = unknown.filter_map(|key| Some((key, likely_name(key)?)));
    misspelt.map(|(key, likely)| format!("annotation '{key}' has no effect; did you mean '{likely}'?")).collect()
}

/// Returns whether a key has a prefix of Istio or Weir, but is none of their annotations.
fn is_unknown(key: &str) -> bool {
    let Some((prefix, _)) = key.split_once('/') else { return false };
    let is_domain =
        |domain: &str| prefix.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    DOMAINS.iter().any(|domain| is_domain(domain)) && !KNOWN.contains(&key)
}

/// Returns the known annotation that an unknown key is probably meant to be; `None` if it is like none of them.
fn likely_name(key: &str) -> Option<&'static str> {
    let (prefix, name) = key.split_once('/')?;
    let name = name.to_lowercase();
    let distance = |known: &str| {
        let (known_prefix, known_name) = known.split_once('/')?;
        // Under another prefix, only the same name is meant.
        let limit = if known_prefix == prefix { MAX_DISTANCE.min(name.len() / 3) } else { 0 };
        if name.len().abs_diff(known_name.len()) > limit {
            return None;
        }
        let distance = strsim::damerau_levenshtein(&name, &known_name.to_lowercase());
        (distance <= limit).then_some((distance, known_prefix != prefix))
    };
    KNOWN.iter().filter_map(|known| Some((distance(known)?, *known))).min().map(|(_, known)| known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misspelt_annotations_have_a_likely_name() {
        for (key, likely) in [
            ("traffic.sidecar.istio.io/includeInboundPort", Some(name::INCLUDE_INBOUND_PORTS)),
            ("traffic.sidecar.istio.io/excludeinboundports", Some(name::EXCLUDE_INBOUND_PORTS)),
            ("traffic.sidecar.istio.io/excludeOutboundIPRange", Some(name::EXCLUDE_OUTBOUND_RANGES)),
            ("sidecar.istio.io/includeInboundPorts", Some(name::INCLUDE_INBOUND_PORTS)),
            ("sidecar.istio.io/injcet", Some(annotation::INJECT)),
            ("sidecar.istio.io/proxyCpu", Some(name::PROXY_CPU)),
            ("inject.istio.io/template", Some(name::TEMPLATES)),
            ("weir.dev/ipv4", Some(annotation::IPV6)),
            ("weir.dev/captur", Some(name::CAPTURE)),
            ("sidecar.istio.io/somethingElse", None),
            ("sidecar.istio.io/statsInclusionPrefixes", None),
            ("notistio.io/includeInboundPort", None),
            ("example.com/includeInboundPort", None),
        ] {
            assert_eq!(likely_name(key).filter(|_| is_unknown(key)), likely, "{key}");
        }
        assert!(!KNOWN.iter().any(|known| is_unknown(known)));
    }

    #[test]
    fn only_some_of_many_unknown_annotations_are_compared() {
        let misspelt = |number: usize| (format!("traffic.sidecar.istio.io/includeInboundPort{number}"), "80".into());
        let annotations: serde_json::Map<_, _> = (0..5_000).map(misspelt).collect();
        let pod = serde_json::json!({"metadata": {"annotations": annotations}});
        assert_eq!(warnings(StringMap::of(&pod, "annotations")).len(), MAX_COMPARED);
    }
}
