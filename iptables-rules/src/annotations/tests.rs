use proptest::prelude::*;

use super::*;
use crate::config::{CidrSelection, DnsCapture, InterceptionMode, Ipv6Policy, PortSelection};

fn map<const N: usize>(entries: [(&str, &str); N]) -> BTreeMap<String, String> {
    entries.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

fn from<const N: usize>(annotations: [(&str, &str); N]) -> Result<CaptureConfig, Vec<SettingError>> {
    CaptureConfig::from_annotations(&map(annotations), &ProxySpec::default())
}

fn with_env<const N: usize>(env: [(&str, &str); N]) -> Result<CaptureConfig, Vec<SettingError>> {
    CaptureConfig::from_annotations(&BTreeMap::new(), &ProxySpec { env: map(env), ..ProxySpec::default() })
}

fn texts(result: Result<CaptureConfig, Vec<SettingError>>) -> String {
    result.unwrap_err().iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

#[test]
fn no_annotations_give_the_default() {
    assert_eq!(from([]), Ok(CaptureConfig::default()));
    assert_eq!(from([("example.org/other", "x"), (annotation::STATUS, "{}")]), Ok(CaptureConfig::default()));
}

#[test]
fn default_of_each_setting_equals_leaving_it_out() {
    for setting in SETTINGS {
        let entry = map([(setting.name, setting.default)]);
        let (annotations, env) = match setting.source {
            SettingSource::Annotation => (entry, BTreeMap::new()),
            SettingSource::Variable => (BTreeMap::new(), entry),
            SettingSource::Flag => panic!("a pod has no command line"),
        };
        let proxy = ProxySpec { env, is_known: true, ..ProxySpec::default() };
        let config = CaptureConfig::from_annotations(&annotations, &proxy);
        assert_eq!(
            config,
            Ok(CaptureConfig { ipv6: Ipv6Policy::Auto, ..CaptureConfig::default() }),
            "{}",
            setting.name
        );
    }
}

#[test]
fn reads_every_annotation() {
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
fn deprecated_name_of_rerouted_interfaces_counts_alone() {
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
fn names_every_invalid_annotation() {
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
    invalid value 'redirect' for annotation 'sidecar.istio.io/interceptionMode': must be one of REDIRECT, TPROXY, NONE
    invalid value '' for annotation 'weir.dev/ipv6': must be 'auto', 'capture' or 'leave'
    invalid value '*,10.0.0.0/8' for annotation 'traffic.sidecar.istio.io/includeOutboundIPRanges': '*' cannot be combined with other values
    invalid value '*' for annotation 'traffic.sidecar.istio.io/excludeOutboundIPRanges': '*' is not allowed here: list each network
    invalid value '80,*' for annotation 'traffic.sidecar.istio.io/includeInboundPorts': '*' cannot be combined with other values
    invalid value '*' for annotation 'traffic.sidecar.istio.io/excludeInboundPorts': '*' is not allowed here: list each port
    invalid value '*' for annotation 'traffic.sidecar.istio.io/includeOutboundPorts': '*' is not allowed here: list each port
    invalid value 'a,b,c,d,e,f,g' for annotation 'traffic.sidecar.istio.io/excludeOutboundPorts': port 'a' is not a number, port 'b' is not a number, port 'c' is not a number, port 'd' is not a number, port 'e' is not a number, and 2 more
    invalid value 'net1,-j,0net,an-interface-too-long,n*' for annotation 'traffic.sidecar.istio.io/excludeInterfaces': '-j' must start with a letter, '0net' must start with a letter, 'an-interface-too-long' is longer than 15 characters, 'n*' must contain only letters, digits, '_', '.' and '-'
    invalid value 'tap+' for annotation 'istio.io/reroute-virtual-interfaces': 'tap+' must contain only letters, digits, '_', '.' and '-'
    ");
}

#[test]
fn truncates_long_values_between_characters() {
    let value = "ä".repeat(1000);
    let error = &from([(annotation::EXCLUDE_INTERFACES, &value)]).unwrap_err()[0];
    assert_eq!(error.value, format!("{}...", "ä".repeat(32)));
    assert!(error.reason.len() < 200, "{}", error.reason);
    let value = format!("a{value}");
    let error = &from([(annotation::IPV6, &value)]).unwrap_err()[0];
    assert_eq!(error.value, format!("a{}...", "ä".repeat(31)));
}

#[test]
fn root_and_unset_ids_mean_the_default() {
    let ids = |uid, gid| {
        let proxy = ProxySpec { uid, gid, ..ProxySpec::default() };
        let config = CaptureConfig::from_annotations(&BTreeMap::new(), &proxy).unwrap();
        (config.proxy_uids, config.proxy_gids)
    };
    assert_eq!(ids(None, Some(0)), (vec![1337], vec![1337]));
    assert_eq!(ids(Some(1000), Some(2000)), (vec![1000], vec![2000]));
}

#[test]
fn reads_every_variable() {
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
    assert_eq!(config.ipv6, Ipv6Policy::Auto, "the addresses of the pod decide");
    let groups = ["java", "202"].map(|group| crate::config::Group::parse(group).unwrap());
    assert_eq!(config.owner_groups, OwnerGroups::AllBut(groups.to_vec()));
    assert_eq!(config.loopback.to_string(), "127.1.0.0/16");
    let off = with_env([(variable::DNS_CAPTURE, ""), (variable::INVALID_DROP, "F")]).unwrap();
    assert_eq!(off, CaptureConfig::default());
}

#[test]
fn ipv6_is_decided_by_the_proxy_and_the_addresses() {
    let policy = |annotation: Option<&str>, dual_stack: Option<&str>, is_known| {
        let entry = |name: &str, value: Option<&str>| value.map(|value| (name.to_owned(), value.to_owned()));
        let annotations = entry(annotation::IPV6, annotation).into_iter().collect();
        let env = entry(variable::DUAL_STACK, dual_stack).into_iter().collect();
        CaptureConfig::from_annotations(&annotations, &ProxySpec { env, is_known, ..ProxySpec::default() })
            .unwrap()
            .ipv6
    };
    for annotation in [None, Some("auto")] {
        assert_eq!(policy(annotation, Some("true"), true), Ipv6Policy::Capture);
        assert_eq!(policy(annotation, Some("false"), true), Ipv6Policy::Auto);
        assert_eq!(policy(annotation, None, true), Ipv6Policy::Auto);
        assert_eq!(policy(annotation, None, false), Ipv6Policy::Capture, "nobody knows whether the proxy accepts IPv6");
    }
    for dual_stack in [None, Some("true"), Some("false")] {
        assert_eq!(policy(Some("capture"), dual_stack, true), Ipv6Policy::Capture);
        assert_eq!(policy(Some("leave"), dual_stack, true), Ipv6Policy::Leave);
    }
    let (v4, v6) = ("10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap());
    assert_eq!(Ipv6Policy::Auto.for_addresses(&[v4, v6]), Ipv6Policy::Leave);
    assert_eq!(Ipv6Policy::Auto.for_addresses(&[v6]), Ipv6Policy::Capture);
    assert_eq!(Ipv6Policy::Auto.for_addresses(&[v4]), Ipv6Policy::Capture, "it may get an IPv6 address later");
    assert_eq!(Ipv6Policy::Auto.for_addresses(&[]), Ipv6Policy::Auto);
    assert_eq!(Ipv6Policy::Capture.for_addresses(&[v4, v6]), Ipv6Policy::Capture);
    assert_eq!(Ipv6Policy::Leave.for_addresses(&[v6]), Ipv6Policy::Leave);
}

#[test]
fn names_every_invalid_variable() {
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
    invalid value 'yes' for variable 'ISTIO_META_DNS_CAPTURE': must be true or false
    invalid value 'TrUe' for variable 'INVALID_DROP': must be true or false
    invalid value '2' for variable 'ISTIO_DUAL_STACK': must be true or false
    invalid value '0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24...' for variable 'ISTIO_OUTBOUND_OWNER_GROUPS': lists 65 groups; at most 64 are allowed
    invalid value 'a b,4294967296' for variable 'ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE': 'a b' must contain only letters, digits, '_', '.' and '-', '4294967296' is out of range for a group id (0-4294967294)
    invalid value '126.0.0.0/7' for variable 'ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR': must be within 127.0.0.0/8
    ");
}

#[test]
fn group_cannot_be_both_included_and_excluded() {
    let groups = |exclude| with_env([(variable::OWNER_GROUPS, "java,202"), (variable::OWNER_GROUPS_EXCLUDE, exclude)]);
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
    fn never_panics_and_names_invalid_settings(
        values in proptest::collection::vec(prop_oneof![any::<String>(), "[0-9a-z*,./: -]{0,20}"], SETTINGS.len()),
    ) {
        let given = |source| {
            let of_source = SETTINGS.iter().zip(&values).filter(move |(setting, _)| setting.source == source);
            of_source.map(|(setting, value)| (setting.name.to_owned(), value.clone())).collect::<BTreeMap<_, _>>()
        };
        let proxy = ProxySpec { env: given(SettingSource::Variable), ..ProxySpec::default() };
        match CaptureConfig::from_annotations(&given(SettingSource::Annotation), &proxy) {
            Ok(config) => prop_assert!(crate::plan(&config).is_ok()),
            Err(errors) => {
                for error in errors {
                    prop_assert!(SETTINGS.iter().any(|setting| setting.name == error.name));
                    prop_assert!(error.value.chars().count() <= 8 * crate::text::MAX_SHOWN_BYTES && !error.reason.is_empty());
                    prop_assert!(!error.to_string().contains(char::is_control));
                }
            }
        }
    }
}
