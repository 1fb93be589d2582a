use clap::{Args as _, Command, FromArgMatches as _};
use iptables_rules::config::{CidrSelection, Group, InterceptionMode, OwnerGroups, PortSelection};
use weir_kernel::iptables::IptablesVariant;

use super::*;

/// Arguments, and the environment as `NAME=value`.
fn request_of(arguments: &[&str], env: &[&str]) -> Result<Request, Vec<String>> {
    let command = IptablesArgs::augment_args(Command::new("iptables").no_binary_name(true));
    let matches = command.try_get_matches_from(arguments).map_err(|error| vec![error.to_string()])?;
    let env = |name: &str| env.iter().find_map(|entry| entry.strip_prefix(name)?.strip_prefix('=').map(str::to_owned));
    let host = HostInfo {
        env: &env,
        user: &|name| (name == "envoy").then_some(101),
        dns_servers: &|| vec!["10.96.0.10".parse().unwrap()],
        lacks_ipv6: &|| env("NO_IPV6").is_some(),
    };
    Request::new(&IptablesArgs::from_arg_matches(&matches).unwrap(), &host)
}

fn config(arguments: &str, env: &[&str]) -> CaptureConfig {
    request_of(&arguments.split_whitespace().collect::<Vec<_>>(), env).unwrap().config
}

fn findings(arguments: &str, env: &[&str]) -> String {
    request_of(&arguments.split_whitespace().collect::<Vec<_>>(), env).unwrap_err().join("\n")
}

#[test]
fn arguments_of_istios_template_give_the_default_configuration() {
    let arguments = "-p 15001 -z 15006 -u 1337 -m REDIRECT -i * -b * -d 15090,15021,15020";
    let mut arguments: Vec<&str> = arguments.split(' ').collect();
    arguments.extend(["-x", "", "--log_output_level=default:info"]);
    let expected = CaptureConfig {
        inbound_ports_exclude: vec![15090, 15021, 15020],
        // The default of Istio's plugin, which its init container does not have.
        outbound_ports_exclude: vec![],
        ..CaptureConfig::default()
    };
    assert_eq!(request_of(&arguments, &[]).unwrap().config, expected);
}

#[test]
fn nothing_is_captured_by_default() {
    let config = config("", &[]);
    assert_eq!(config.inbound_ports, PortSelection::Only(vec![]));
    assert_eq!(config.outbound_cidrs, CidrSelection::Only(vec![]));
}

#[test]
fn long_form_short_form_and_variable_mean_the_same() {
    let long = "--envoy-port=1 --inbound-capture-port=2 --inbound-tunnel-port=3 --proxy-uid=4,5 --proxy-gid=6 \
        --istio-inbound-interception-mode=TPROXY --istio-inbound-ports=7,8 --istio-local-exclude-ports=9 \
        --istio-exclude-interfaces=net1 --istio-service-cidr=10.0.0.0/8 --istio-service-exclude-cidr=10.1.0.0/16,fd00::/8 \
        --istio-outbound-ports=11 --istio-local-outbound-ports-exclude=12 --kube-virt-interfaces=tap0 \
        --istio-inbound-tproxy-mark=13 --istio-inbound-tproxy-route-table=14 --redirect-dns --capture-all-dns --drop-invalid";
    let short = "-p 1 -z 2 -e 3 -u 4,5 -g 6 -m TPROXY -b 7,8 -d 9 -c net1 -i 10.0.0.0/8 -x 10.1.0.0/16,fd00::/8 -q 11 -o 12 -k tap0 \
        -t 13 -r 14 --redirect-dns=true --capture-all-dns=1 --drop-invalid=T";
    let env = [
        "INBOUND_CAPTURE_PORT=2",
        "INBOUND_TUNNEL_PORT=3",
        "PROXY_UID=4,5",
        "PROXY_GID=6",
        "ISTIO_INBOUND_INTERCEPTION_MODE=TPROXY",
        "ISTIO_INBOUND_PORTS=7,8",
        "ISTIO_LOCAL_EXCLUDE_PORTS=9",
        "ISTIO_EXCLUDE_INTERFACES=net1",
        "ISTIO_SERVICE_CIDR=10.0.0.0/8",
        "ISTIO_SERVICE_EXCLUDE_CIDR=10.1.0.0/16,fd00::/8",
        "ISTIO_OUTBOUND_PORTS=11",
        "ISTIO_LOCAL_OUTBOUND_PORTS_EXCLUDE=12",
        "KUBE_VIRT_INTERFACES=tap0",
        "ISTIO_INBOUND_TPROXY_MARK=13",
        "ISTIO_INBOUND_TPROXY_ROUTE_TABLE=14",
        "ISTIO_META_DNS_CAPTURE=true",
        "CAPTURE_ALL_DNS=true",
        "INVALID_DROP=true",
    ];
    let by_long = config(long, &[]);
    assert_eq!(by_long, config(short, &[]));
    assert_eq!(by_long, config("-p 1", &env));
    assert_eq!((by_long.proxy_port, by_long.inbound_port, by_long.tunnel_port), (1, 2, 3));
    assert_eq!((&by_long.proxy_uids[..], &by_long.proxy_gids[..]), (&[4, 5][..], &[6][..]));
    assert_eq!(by_long.mode, InterceptionMode::Tproxy);
    assert_eq!((by_long.tproxy_mark, by_long.tproxy_route_table), (13, 14));
    assert_eq!((by_long.dns, by_long.drop_invalid), (DnsCapture::All, true));
}

#[test]
fn command_line_wins_and_an_empty_variable_is_unset() {
    assert_eq!(config("-d 7", &["ISTIO_LOCAL_EXCLUDE_PORTS=8"]).inbound_ports_exclude, [7]);
    assert_eq!(config("-d=", &["ISTIO_LOCAL_EXCLUDE_PORTS=8"]).inbound_ports_exclude, Vec::<u16>::new());
    assert_eq!(config("", &["ISTIO_INBOUND_INTERCEPTION_MODE=", "PROXY_UID="]).proxy_uids, [1337]);
    assert_eq!(config("-d 7 -d 8", &[]).inbound_ports_exclude, [8], "the last one counts");
}

#[test]
fn proxy_user_may_be_given_by_name() {
    let ids = |arguments, env| {
        let config = config(arguments, env);
        (config.proxy_uids, config.proxy_gids)
    };
    assert_eq!(ids("", &["ENVOY_USER=envoy"]), (vec![101], vec![101]));
    assert_eq!(ids("", &["ENVOY_USER=nobody-here"]), (vec![1337], vec![1337]));
    assert_eq!(ids("-u 7 -g 8", &["ENVOY_USER=envoy"]), (vec![7], vec![8]));
    assert_eq!(ids("-u 7", &[]), (vec![7], vec![7]), "groups are as users");
}

#[test]
fn dns_servers_come_from_the_option_or_the_host() {
    let servers = |arguments| config(arguments, &[]).dns;
    assert_eq!(servers("--capture-all-dns"), DnsCapture::Off, "not asked for");
    assert_eq!(servers("--redirect-dns"), DnsCapture::Servers(vec!["10.96.0.10".parse().unwrap()]));
    let two = ["1.1.1.1", "fd00::1"].map(|address| address.parse().unwrap()).to_vec();
    assert_eq!(servers("--redirect-dns --dns-servers 1.1.1.1,fd00::1"), DnsCapture::Servers(two));
    let none = request_of(&["--redirect-dns", "--dns-servers="], &[]).unwrap();
    assert!(none.warnings[0].starts_with("DNS is not captured"), "{:?}", none.warnings);
}

#[test]
fn ipv6_is_captured_unless_off_or_missing() {
    let ipv6 = |arguments, env: &[&str]| config(arguments, env).ipv6;
    assert_eq!(ipv6("", &[]), Ipv6Policy::Capture);
    assert_eq!(ipv6("--ipv6 off", &[]), Ipv6Policy::Leave);
    assert_eq!(ipv6("", &["NO_IPV6=1"]), Ipv6Policy::Leave);
    assert_eq!(ipv6("--ipv6 on", &["NO_IPV6=1"]), Ipv6Policy::Capture);
    assert_eq!(ipv6("--dual-stack=false", &[]), Ipv6Policy::Capture);
}

#[test]
fn owner_groups_come_from_the_environment() {
    let groups = config("", &["ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE=java,202"]).owner_groups;
    assert_eq!(groups, OwnerGroups::AllBut(vec![Group::parse("java").unwrap(), Group::Id(202)]));
    assert_eq!(config("", &["ISTIO_OUTBOUND_OWNER_GROUPS=202"]).owner_groups, OwnerGroups::Only(vec![Group::Id(202)]));
}

#[test]
fn backend_options_combine_or_contradict() {
    let method = |arguments: &str| {
        request_of(&arguments.split_whitespace().collect::<Vec<_>>(), &[]).map(|request| request.method)
    };
    assert_eq!(method("").unwrap(), BackendOptions::default());
    assert_eq!(method("--native-nftables").unwrap().backend, Backend::Nft);
    let legacy = method("--force-iptables-binary legacy").unwrap();
    assert_eq!((legacy.backend, legacy.variant), (Backend::Iptables, Some(IptablesVariant::Legacy)));
    assert_eq!(method("--force-iptables-binary=").unwrap(), BackendOptions::default());
    for contradiction in [
        "--native-nftables --backend iptables",
        "--native-nftables --force-iptables-binary nft",
        "--backend nft --force-iptables-binary nft",
        "--cleanup-only --run-validation",
    ] {
        assert!(method(contradiction).is_err(), "{contradiction}");
    }
}

#[test]
fn obsolete_options_are_accepted_with_a_warning() {
    let arguments = ["-f", "--iptables-trace-logging=true", "--log_target", "stdout", "-b", "*"];
    let request = request_of(&arguments, &[]).unwrap();
    assert_eq!(request.config.inbound_ports, PortSelection::All);
    assert_eq!(request.warnings.len(), 3, "{:?}", request.warnings);
    assert!(request.warnings[0].contains("--restore-format has no effect"), "{:?}", request.warnings);
}

#[test]
fn all_invalid_values_are_reported_at_once() {
    let bad = "-p 70000 -z 0 -e 1,2 -u -1,a -g 4294967296 -m tproxy -b 80-90,* -d * -c eth0+,-j -i 10.0.0.0/33,* -x * -q 1000000 -o 53:54 \
        -k a/b -t 0x539 -r -1 --redirect-dns=yes --dns-servers dns.example --ipv6 maybe --backend ipset --visibility all \
        --force-iptables-binary new --iptables-probe-port p --probe-timeout 5x --dry-run=2";
    let env = [
        "INVALID_DROP=maybe",
        "ISTIO_DUAL_STACK=2",
        "ISTIO_OUTBOUND_OWNER_GROUPS=a b",
        "ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE=-x",
        "ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR=10.0.0.0/8",
    ];
    insta::assert_snapshot!(findings(bad, &env));
}

#[test]
fn host_bits_of_cidrs_are_cleared() {
    let nets = config("-i 10.1.2.3/8 -x fd00::1/16", &[]);
    assert_eq!(nets.outbound_cidrs.to_string(), "10.0.0.0/8");
    assert_eq!(iptables_rules::cidrs::print(&nets.outbound_cidrs_exclude), "fd00::/16");
}

#[test]
fn effective_configuration_can_be_parsed_back() {
    let request = request_of(&["-b", "80", "--force-apply", "--network-namespace", "/run/netns/x"], &[]).unwrap();
    let text = request.to_string();
    let json = text.strip_prefix("capture ").and_then(|rest| rest.split(' ').next()).unwrap();
    assert_eq!(CaptureConfig::from_capture_annotation(json), Ok(request.config));
    assert!(text.ends_with(" backend auto visibility nft force-apply network-namespace /run/netns/x"), "{text}");
}
