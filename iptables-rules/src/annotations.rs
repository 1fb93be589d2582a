//! From the annotations of a pod, and what its spec says about the proxy, to a [`CaptureConfig`]: all errors at once.
//!
//! [`SETTINGS`] is the one list of what is read, with defaults and meaning. The annotation `weir.dev/capture`, which
//! carries a finished configuration from the webhook to the plugin, is in [`capture_annotation`](CaptureConfig::to_capture_annotation).

use std::collections::BTreeMap;

use crate::CaptureConfig;
use crate::config::OwnerGroups;
use crate::names::{self, annotation, variable};
use crate::text::shorten;

mod proxy_spec;
mod settings;

pub use crate::capture_annotation::CAPTURE_MAX_BYTES;
pub use proxy_spec::ProxySpec;
pub use settings::{SETTINGS, Setting};

/// A value that cannot be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid value '{value}' for {source_kind} '{name}': {reason}")]
pub struct AnnotationError {
    /// Where the value stands.
    pub source_kind: Source,
    /// Key of the annotation, or name of the variable.
    pub name: String,
    /// Its value, cut where it is long.
    pub value: String,
    /// What is wrong with it.
    pub reason: String,
}

/// Where a value stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// Annotation of the pod.
    Annotation,
    /// Environment variable of the proxy container.
    Variable,
    /// Option of a command line.
    Flag,
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Annotation => "annotation",
            Self::Variable => "variable",
            Self::Flag => "option",
        })
    }
}

impl AnnotationError {
    /// An error about an annotation; a long value is cut.
    pub fn annotation(name: &str, value: &str, reason: impl Into<String>) -> Self {
        Self::new(Source::Annotation, name, value, reason)
    }

    /// An error about an environment variable; a long value is cut.
    pub fn variable(name: &str, value: &str, reason: impl Into<String>) -> Self {
        Self::new(Source::Variable, name, value, reason)
    }

    /// An error about a value with several faults, of which many are counted.
    pub fn of(source_kind: Source, name: &str, value: &str, faults: &[String]) -> Self {
        Self::new(source_kind, name, value, in_one_line(faults))
    }

    fn new(source_kind: Source, name: &str, value: &str, reason: impl Into<String>) -> Self {
        Self { source_kind, name: name.to_owned(), value: shorten(value), reason: reason.into() }
    }
}

impl CaptureConfig {
    /// Configuration from Istio's annotations, with the defaults of Istio's CNI plugin.
    ///
    /// # Errors
    /// Every annotation or variable that cannot be taken.
    pub fn from_annotations(
        annotations: &BTreeMap<String, String>,
        proxy: &ProxySpec,
    ) -> Result<Self, Vec<AnnotationError>> {
        let mut config = Self { proxy_uids: vec![id(proxy.uid)], proxy_gids: vec![id(proxy.gid)], ..Self::default() };
        let mut errors = Vec::new();
        for setting in SETTINGS {
            let given = match setting.source {
                Source::Annotation => annotations.get(setting.name),
                Source::Variable => proxy.env.get(setting.name),
                Source::Flag => None,
            };
            let Some(value) = given else { continue };
            if setting.name == annotation::KUBEVIRT_INTERFACES
                && annotations.contains_key(annotation::REROUTE_VIRTUAL_INTERFACES)
            {
                continue; // the deprecated twin counts only alone
            }
            if let Err(faults) = (setting.read)(&mut config, value) {
                errors.push(AnnotationError::of(setting.source, setting.name, value, &faults));
            }
        }
        errors.extend(combine_owner_groups(&mut config, &proxy.env));
        if errors.is_empty() { Ok(config) } else { Err(errors) }
    }
}

/// An id of the proxy: 0 counts as unset, as the proxy never runs as root on purpose.
fn id(given: Option<u32>) -> u32 {
    given.filter(|&id| id != 0).unwrap_or(names::PROXY_ID)
}

/// The exclusion list means something only next to `*`. Beside a list of groups it may repeat what holds anyway, but not contradict it.
/// To be called when [`variable::OWNER_GROUPS`] has been read.
pub fn combine_owner_groups(config: &mut CaptureConfig, env: &BTreeMap<String, String>) -> Option<AnnotationError> {
    let excluded = env.get(variable::OWNER_GROUPS_EXCLUDE)?;
    let groups = settings::groups(excluded).ok()?; // reported with its own setting
    match &mut config.owner_groups {
        OwnerGroups::AllBut(all_but) => {
            *all_but = groups;
            None
        }
        OwnerGroups::Only(only) => {
            let both = groups.iter().find(|group| only.contains(group))?;
            let reason = format!("'{both}' is also in {}", variable::OWNER_GROUPS);
            Some(AnnotationError::variable(variable::OWNER_GROUPS_EXCLUDE, excluded, reason))
        }
    }
}

/// How many faults of one value an error text names.
const SHOWN_FAULTS: usize = 5;

/// Faults of one value in one text; many are counted.
pub(crate) fn in_one_line(faults: &[String]) -> String {
    let shown = faults.iter().take(SHOWN_FAULTS).map(String::as_str).collect::<Vec<_>>().join(", ");
    match faults.len().saturating_sub(SHOWN_FAULTS) {
        0 => shown,
        more => format!("{shown}, and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::{CidrSelection, DnsCapture, InterceptionMode, PortSelection};

    fn map<const N: usize>(entries: [(&str, &str); N]) -> BTreeMap<String, String> {
        entries.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    fn from<const N: usize>(annotations: [(&str, &str); N]) -> Result<CaptureConfig, Vec<AnnotationError>> {
        CaptureConfig::from_annotations(&map(annotations), &ProxySpec::default())
    }

    fn with_env<const N: usize>(env: [(&str, &str); N]) -> Result<CaptureConfig, Vec<AnnotationError>> {
        CaptureConfig::from_annotations(&BTreeMap::new(), &ProxySpec { env: map(env), ..ProxySpec::default() })
    }

    fn texts(result: Result<CaptureConfig, Vec<AnnotationError>>) -> String {
        result.unwrap_err().iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn nothing_said_is_the_default() {
        assert_eq!(from([]), Ok(CaptureConfig::default()));
        assert_eq!(from([("example.org/other", "x"), (annotation::STATUS, "{}")]), Ok(CaptureConfig::default()));
    }

    #[test]
    fn the_default_of_each_setting_means_the_same_as_leaving_it_out() {
        for setting in SETTINGS {
            let entry = map([(setting.name, setting.default)]);
            let (annotations, env) = match setting.source {
                Source::Annotation => (entry, BTreeMap::new()),
                Source::Variable => (BTreeMap::new(), entry),
                Source::Flag => panic!("a pod has no command line"),
            };
            let proxy = ProxySpec { env, ..ProxySpec::default() };
            let config = CaptureConfig::from_annotations(&annotations, &proxy);
            assert_eq!(config, Ok(CaptureConfig::default()), "{}", setting.name);
        }
    }

    #[test]
    fn takes_every_annotation() {
        let config = from([
            (annotation::INTERCEPTION_MODE, "TPROXY"),
            (annotation::IPV6, "leave"),
            (annotation::INCLUDE_OUTBOUND_IP_RANGES, "10.1.2.3/24,fd00::/8"),
            (annotation::EXCLUDE_OUTBOUND_IP_RANGES, "10.9.0.0/16"),
            (annotation::INCLUDE_INBOUND_PORTS, " 80, 443,80,"),
            (annotation::EXCLUDE_INBOUND_PORTS, "8080,15021"),
            (annotation::INCLUDE_OUTBOUND_PORTS, "9200"),
            (annotation::EXCLUDE_OUTBOUND_PORTS, "5432,0,65535"),
            (annotation::EXCLUDE_INTERFACES, "net1, net2,"),
            (annotation::REROUTE_VIRTUAL_INTERFACES, "tap0"),
            (annotation::KUBEVIRT_INTERFACES, "- not read -"),
        ])
        .unwrap();
        assert_eq!(config.mode, InterceptionMode::Tproxy);
        assert_eq!(config.ipv6, crate::config::Ipv6Policy::Leave);
        assert_eq!(config.outbound_cidrs.to_string(), "10.1.2.0/24,fd00::/8");
        assert_eq!(crate::cidrs::print(&config.outbound_cidrs_exclude), "10.9.0.0/16");
        assert_eq!(config.inbound_ports, PortSelection::Only(vec![80, 443]));
        assert_eq!(config.inbound_ports_exclude, [8080, 15021, 15020, 15090]);
        assert_eq!(config.outbound_ports, [9200]);
        assert_eq!(config.outbound_ports_exclude, [5432, 0, 65535]);
        let names = |names: &[crate::config::InterfaceName]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(names(&config.exclude_interfaces), ["net1", "net2"]);
        assert_eq!(names(&config.reroute_interfaces), ["tap0"]);
    }

    #[test]
    fn the_deprecated_name_of_rerouted_interfaces_counts_alone() {
        let config = from([(annotation::KUBEVIRT_INTERFACES, "tap1")]).unwrap();
        assert_eq!(config.reroute_interfaces[0].as_str(), "tap1");
    }

    #[test]
    fn empty_lists_capture_nothing_and_exclude_nothing_more() {
        let config = from([
            (annotation::INCLUDE_OUTBOUND_IP_RANGES, ""),
            (annotation::INCLUDE_INBOUND_PORTS, ""),
            (annotation::EXCLUDE_INBOUND_PORTS, ""),
            (annotation::EXCLUDE_OUTBOUND_PORTS, ""),
        ])
        .unwrap();
        assert_eq!(config.outbound_cidrs, CidrSelection::Only(vec![]));
        assert_eq!(config.inbound_ports, PortSelection::Only(vec![]));
        assert_eq!(config.inbound_ports_exclude, [15020, 15021, 15090]);
        assert_eq!(config.outbound_ports_exclude, [0_u16; 0]);
    }

    #[test]
    fn names_every_bad_annotation_at_once() {
        let result = from([
            (annotation::INTERCEPTION_MODE, "redirect"),
            (annotation::IPV6, ""),
            (annotation::INCLUDE_OUTBOUND_IP_RANGES, "*,10.0.0.0/8"),
            (annotation::EXCLUDE_OUTBOUND_IP_RANGES, "*"),
            (annotation::INCLUDE_INBOUND_PORTS, "80,*"),
            (annotation::EXCLUDE_INBOUND_PORTS, "*"),
            (annotation::INCLUDE_OUTBOUND_PORTS, "*"),
            (annotation::EXCLUDE_OUTBOUND_PORTS, "a,b,c,d,e,f,g"),
            (annotation::EXCLUDE_INTERFACES, "net1,-j,0net,an-interface-too-long,n*"),
            (annotation::REROUTE_VIRTUAL_INTERFACES, "tap+"),
        ]);
        insta::assert_snapshot!(texts(result), @r"
        invalid value 'redirect' for annotation 'sidecar.istio.io/interceptionMode': is none of REDIRECT, TPROXY, NONE
        invalid value '' for annotation 'weir.dev/ipv6': is neither 'capture' nor 'leave'
        invalid value '*,10.0.0.0/8' for annotation 'traffic.sidecar.istio.io/includeOutboundIPRanges': '*' has to stand alone
        invalid value '*' for annotation 'traffic.sidecar.istio.io/excludeOutboundIPRanges': '*' is not possible here: this list has to name each network
        invalid value '80,*' for annotation 'traffic.sidecar.istio.io/includeInboundPorts': '*' has to stand alone
        invalid value '*' for annotation 'traffic.sidecar.istio.io/excludeInboundPorts': '*' is not possible here: this list has to name each port
        invalid value '*' for annotation 'traffic.sidecar.istio.io/includeOutboundPorts': '*' is not possible here: this list has to name each port
        invalid value 'a,b,c,d,e,f,g' for annotation 'traffic.sidecar.istio.io/excludeOutboundPorts': 'a' is not a port number, 'b' is not a port number, 'c' is not a port number, 'd' is not a port number, 'e' is not a port number, and 2 more
        invalid value 'net1,-j,0net,an-interface-too-long,n*' for annotation 'traffic.sidecar.istio.io/excludeInterfaces': '-j' does not start with a letter, '0net' does not start with a letter, 'an-interface-too-long' is longer than 15 characters, 'n*' has a character other than letters, digits, '_', '.' and '-'
        invalid value 'tap+' for annotation 'istio.io/reroute-virtual-interfaces': 'tap+' has a character other than letters, digits, '_', '.' and '-'
        ");
    }

    #[test]
    fn cuts_long_values_between_characters() {
        let value = "ä".repeat(1000);
        let error = &from([(annotation::EXCLUDE_INTERFACES, &value)]).unwrap_err()[0];
        assert_eq!(error.value, format!("{}...", "ä".repeat(32)));
        assert!(error.reason.len() < 200, "{}", error.reason);
        let value = format!("a{value}");
        let error = &from([(annotation::IPV6, &value)]).unwrap_err()[0];
        assert_eq!(error.value, format!("a{}...", "ä".repeat(31)));
    }

    #[test]
    fn root_and_unset_ids_are_the_proxys() {
        let ids = |uid, gid| {
            let proxy = ProxySpec { uid, gid, ..ProxySpec::default() };
            let config = CaptureConfig::from_annotations(&BTreeMap::new(), &proxy).unwrap();
            (config.proxy_uids, config.proxy_gids)
        };
        assert_eq!(ids(None, Some(0)), (vec![1337], vec![1337]));
        assert_eq!(ids(Some(1000), Some(2000)), (vec![1000], vec![2000]));
    }

    #[test]
    fn takes_every_variable() {
        let config = with_env([
            (variable::DNS_CAPTURE, "True"),
            (variable::INVALID_DROP, "1"),
            (variable::DUAL_STACK, "false"),
            (variable::OWNER_GROUPS, "*"),
            (variable::OWNER_GROUPS_EXCLUDE, "java, 202,java"),
            (variable::LOOPBACK_CIDR, "127.1.2.3/16"),
        ])
        .unwrap();
        assert_eq!(config.dns, DnsCapture::All);
        assert!(config.drop_invalid);
        assert_eq!(config.ipv6, crate::config::Ipv6Policy::Capture, "dual stack off does not mean IPv6 unseen");
        let groups = ["java", "202"].map(|group| crate::config::Group::parse(group).unwrap());
        assert_eq!(config.owner_groups, OwnerGroups::AllBut(groups.to_vec()));
        assert_eq!(config.loopback.to_string(), "127.1.0.0/16");
        let off = with_env([(variable::DNS_CAPTURE, ""), (variable::INVALID_DROP, "F")]).unwrap();
        assert_eq!(off, CaptureConfig::default());
    }

    #[test]
    fn names_every_bad_variable_at_once() {
        let many = (0..65).map(|id| id.to_string()).collect::<Vec<_>>().join(",");
        let result = with_env([
            (variable::DNS_CAPTURE, "yes"),
            (variable::INVALID_DROP, "TrUe"),
            (variable::DUAL_STACK, "2"),
            (variable::OWNER_GROUPS, &many),
            (variable::OWNER_GROUPS_EXCLUDE, "a b,4294967296"),
            (variable::LOOPBACK_CIDR, "126.0.0.0/7"),
        ]);
        insta::assert_snapshot!(texts(result), @r"
        invalid value 'yes' for variable 'ISTIO_META_DNS_CAPTURE': is neither true nor false
        invalid value 'TrUe' for variable 'INVALID_DROP': is neither true nor false
        invalid value '2' for variable 'ISTIO_DUAL_STACK': is neither true nor false
        invalid value '0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24...' for variable 'ISTIO_OUTBOUND_OWNER_GROUPS': names 65 groups, at most 64 are possible
        invalid value 'a b,4294967296' for variable 'ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE': 'a b' has a character other than letters, digits, '_', '.' and '-', '4294967296' is not a group id (0 to 4294967294)
        invalid value '126.0.0.0/7' for variable 'ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR': is not within 127.0.0.0/8
        ");
    }

    #[test]
    fn an_excluded_group_cannot_be_an_included_one() {
        let groups =
            |exclude| with_env([(variable::OWNER_GROUPS, "java,202"), (variable::OWNER_GROUPS_EXCLUDE, exclude)]);
        assert!(matches!(groups("203").unwrap().owner_groups, OwnerGroups::Only(groups) if groups.len() == 2));
        insta::assert_snapshot!(texts(groups("203,202")), @r"
        invalid value '203,202' for variable 'ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE': '202' is also in ISTIO_OUTBOUND_OWNER_GROUPS
        ");
        assert!(
            matches!(with_env([(variable::OWNER_GROUPS, "")]).unwrap().owner_groups, OwnerGroups::Only(groups) if groups.is_empty())
        );
    }

    proptest! {
        #[test]
        fn never_panics_and_names_what_it_refuses(
            values in proptest::collection::vec(prop_oneof![any::<String>(), "[0-9a-z*,./: -]{0,20}"], SETTINGS.len()),
        ) {
            let given = |source| {
                let of_source = SETTINGS.iter().zip(&values).filter(move |(setting, _)| setting.source == source);
                of_source.map(|(setting, value)| (setting.name.to_owned(), value.clone())).collect::<BTreeMap<_, _>>()
            };
            let proxy = ProxySpec { env: given(Source::Variable), ..ProxySpec::default() };
            match CaptureConfig::from_annotations(&given(Source::Annotation), &proxy) {
                Ok(config) => prop_assert!(crate::plan(&config).is_ok()),
                Err(errors) => {
                    for error in errors {
                        prop_assert!(SETTINGS.iter().any(|setting| setting.name == error.name));
                        prop_assert!(error.value.chars().count() <= 8 * crate::text::SHOWN_BYTES && !error.reason.is_empty());
                        prop_assert!(!error.to_string().contains(char::is_control));
                    }
                }
            }
        }
    }
}
