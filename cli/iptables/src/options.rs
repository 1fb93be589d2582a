//! The options of `istio-iptables` in one table: names, variables, help, and how a value is parsed.

mod values;

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use iptables_rules::CaptureConfig;
use iptables_rules::annotations::Setting;
use iptables_rules::backend::{Backend, Visibility};
use iptables_rules::config::{CidrSelection, PortSelection};
use iptables_rules::names::{annotation, variable};
use iptables_rules::ports;
use weir_kernel::iptables::IptablesVariant;

use self::values::{addresses, boolean, duration, ids, number, one_of, port};

/// One option.
pub(crate) struct OptionSpec {
    /// Name on the command line; empty for an option that only a variable can set.
    pub(crate) long: &'static str,
    pub(crate) short: Option<char>,
    /// Variables that set the option; the first one that is not empty counts.
    pub(crate) env: &'static [&'static str],
    /// Name of the value in the help; `None` for a switch, which takes `=true` and `=false`.
    pub(crate) value: Option<&'static str>,
    pub(crate) help: &'static str,
    /// Parses a value into the options; errors are half sentences about the value.
    pub(crate) parse_into: fn(&mut ParsedOptions, &str) -> Result<(), Vec<String>>,
}

/// The parsed options, one by one; [`Request`](crate::request::Request) combines them.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of the command line")]
pub(crate) struct ParsedOptions {
    pub(crate) config: CaptureConfig,
    pub(crate) uids: Option<Vec<u32>>,
    pub(crate) gids: Option<Vec<u32>>,
    /// Name of the proxy's user, for when no id is given.
    pub(crate) user_name: Option<String>,
    pub(crate) redirect_dns: bool,
    pub(crate) capture_all_dns: bool,
    pub(crate) dns_servers: Option<Vec<IpAddr>>,
    pub(crate) ipv6: Ipv6,
    pub(crate) backend: Option<Backend>,
    pub(crate) visibility: Visibility,
    pub(crate) variant: Option<IptablesVariant>,
    pub(crate) native_nftables: bool,
    pub(crate) dry_run: bool,
    pub(crate) dry_run_file: Option<PathBuf>,
    pub(crate) skip_rule_apply: bool,
    pub(crate) cleanup_only: bool,
    pub(crate) reconcile: bool,
    pub(crate) force_apply: bool,
    pub(crate) run_validation: bool,
    pub(crate) probe_port: u16,
    pub(crate) probe_timeout: Duration,
    pub(crate) network_namespace: Option<PathBuf>,
    pub(crate) log_json: bool,
    pub(crate) log_level: Option<String>,
}

/// `--ipv6`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ipv6 {
    /// Capture IPv6 unless the kernel has none.
    Auto,
    On,
    Off,
}

impl Default for ParsedOptions {
    /// Captures nothing by default, like Istio's init container and unlike its CNI plugin.
    fn default() -> Self {
        Self {
            config: CaptureConfig {
                inbound_ports: PortSelection::Only(Vec::new()),
                inbound_ports_exclude: Vec::new(),
                outbound_cidrs: CidrSelection::Only(Vec::new()),
                outbound_ports_exclude: Vec::new(),
                ..CaptureConfig::default()
            },
            uids: None,
            gids: None,
            user_name: None,
            redirect_dns: false,
            capture_all_dns: false,
            dns_servers: None,
            ipv6: Ipv6::Auto,
            backend: None,
            visibility: Visibility::default(),
            variant: None,
            native_nftables: false,
            dry_run: false,
            dry_run_file: None,
            skip_rule_apply: false,
            cleanup_only: false,
            reconcile: false,
            force_apply: false,
            run_validation: false,
            probe_port: 15002,
            probe_timeout: Duration::from_secs(5),
            network_namespace: None,
            log_json: false,
            log_level: None,
        }
    }
}

const fn value(
    long: &'static str,
    short: Option<char>,
    env: &'static [&'static str],
    value: &'static str,
    help: &'static str,
    parse_into: fn(&mut ParsedOptions, &str) -> Result<(), Vec<String>>,
) -> OptionSpec {
    OptionSpec { long, short, env, value: Some(value), help, parse_into }
}

const fn switch(
    long: &'static str,
    short: Option<char>,
    env: &'static [&'static str],
    help: &'static str,
    parse_into: fn(&mut ParsedOptions, &str) -> Result<(), Vec<String>>,
) -> OptionSpec {
    OptionSpec { long, short, env, value: None, help, parse_into }
}

/// Parses an option that has the grammar of an annotation or a variable of the proxy.
fn setting(name: &str, options: &mut ParsedOptions, text: &str) -> Result<(), Vec<String>> {
    match Setting::find(name) {
        Some(setting) => setting.parse_into(&mut options.config, text),
        None => Err(vec![format!("has the grammar of {name}, which does not exist")]),
    }
}

/// Parser of such an option.
macro_rules! as_setting {
    ($name:expr) => {
        |options, text| setting($name, options, text)
    };
}

/// Parser of a switch.
macro_rules! switch_of {
    ($field:ident) => {
        |options, text| boolean(text).map(|on| options.$field = on)
    };
}

#[rustfmt::skip]
pub(crate) const OPTIONS: &[OptionSpec] = &[
    value("envoy-port", Some('p'), &[], "PORT", "Redirect outbound traffic to this port of the proxy [default: 15001]",
        |options, text| port(text).map(|port| options.config.proxy_port = port)),
    value("inbound-capture-port", Some('z'), &["INBOUND_CAPTURE_PORT"], "PORT", "Redirect inbound traffic to this port of the proxy [default: 15006]",
        |options, text| port(text).map(|port| options.config.inbound_port = port)),
    value("inbound-tunnel-port", Some('e'), &["INBOUND_TUNNEL_PORT"], "PORT", "Never capture inbound traffic to this port, that of the HBONE tunnel [default: 15008]",
        |options, text| port(text).map(|port| options.config.tunnel_port = port)),
    value("proxy-uid", Some('u'), &["PROXY_UID"], "IDS", "Treat traffic of these users as the proxy's own [default: the user named by ENVOY_USER, else 1337]",
        |options, text| ids(text).map(|ids| options.uids = ids)),
    value("proxy-gid", Some('g'), &["PROXY_GID"], "IDS", "Treat traffic of these groups as the proxy's own [default: as --proxy-uid]",
        |options, text| ids(text).map(|ids| options.gids = ids)),
    value("istio-inbound-interception-mode", Some('m'), &["ISTIO_INBOUND_INTERCEPTION_MODE"], "MODE", "Capture by REDIRECT or TPROXY, or nothing with NONE [default: REDIRECT]",
        |options, text| if text.is_empty() { Ok(()) } else { setting(annotation::INTERCEPTION_MODE, options, text) }),
    value("istio-inbound-ports", Some('b'), &["ISTIO_INBOUND_PORTS"], "PORTS", "Capture these inbound ports, or all with '*' [default: none]",
        as_setting!(annotation::INCLUDE_INBOUND_PORTS)),
    value("istio-local-exclude-ports", Some('d'), &["ISTIO_LOCAL_EXCLUDE_PORTS"], "PORTS", "Exclude these inbound ports from '*'",
        |options, text| ports::parse(text).map(|ports| options.config.inbound_ports_exclude = ports)),
    value("istio-exclude-interfaces", Some('c'), &["ISTIO_EXCLUDE_INTERFACES"], "NAMES", "Exclude traffic of these interfaces, in both directions",
        as_setting!(annotation::EXCLUDE_INTERFACES)),
    value("istio-service-cidr", Some('i'), &["ISTIO_SERVICE_CIDR"], "CIDRS", "Capture outbound traffic to these destinations, or to all with '*' [default: none]",
        as_setting!(annotation::INCLUDE_OUTBOUND_IP_RANGES)),
    value("istio-service-exclude-cidr", Some('x'), &["ISTIO_SERVICE_EXCLUDE_CIDR"], "CIDRS", "Exclude outbound traffic to these destinations",
        as_setting!(annotation::EXCLUDE_OUTBOUND_IP_RANGES)),
    value("istio-outbound-ports", Some('q'), &["ISTIO_OUTBOUND_PORTS"], "PORTS", "Capture these outbound ports whatever the destination",
        as_setting!(annotation::INCLUDE_OUTBOUND_PORTS)),
    value("istio-local-outbound-ports-exclude", Some('o'), &["ISTIO_LOCAL_OUTBOUND_PORTS_EXCLUDE"], "PORTS", "Exclude these outbound ports, TCP and UDP",
        as_setting!(annotation::EXCLUDE_OUTBOUND_PORTS)),
    value("kube-virt-interfaces", Some('k'), &["KUBE_VIRT_INTERFACES"], "NAMES", "Capture traffic from these interfaces of virtual machines as outbound traffic",
        as_setting!(annotation::REROUTE_VIRTUAL_INTERFACES)),
    value("istio-inbound-tproxy-mark", Some('t'), &["ISTIO_INBOUND_TPROXY_MARK"], "MARK", "Mark captured inbound packets with this value in TPROXY mode [default: 1337]",
        |options, text| number(text).map(|mark| options.config.tproxy_mark = mark)),
    value("istio-inbound-tproxy-route-table", Some('r'), &["ISTIO_INBOUND_TPROXY_ROUTE_TABLE"], "TABLE", "Route marked packets by this table [default: 133]",
        |options, text| number(text).map(|table| options.config.tproxy_route_table = table)),
    switch("redirect-dns", None, &["REDIRECT_DNS", variable::DNS_CAPTURE], "Redirect the application's DNS requests to the Istio agent", switch_of!(redirect_dns)),
    switch("capture-all-dns", None, &["CAPTURE_ALL_DNS"], "Redirect DNS requests to any server, not only to those of /etc/resolv.conf", switch_of!(capture_all_dns)),
    value("dns-servers", None, &["DNS_SERVERS"], "ADDRESSES", "Redirect DNS requests to these servers instead of those of /etc/resolv.conf",
        |options, text| addresses(text).map(|servers| options.dns_servers = Some(servers))),
    switch("drop-invalid", None, &["DROP_INVALID", variable::INVALID_DROP], "Drop packets in conntrack state INVALID",
        |options, text| boolean(text).map(|on| options.config.drop_invalid = on)),
    value("ipv6", None, &["WEIR_IPV6"], "auto|on|off", "Capture IPv6 like IPv4; auto does unless the kernel has no IPv6 [default: auto]",
        |options, text| one_of(text, &["auto", "on", "off"], &[Ipv6::Auto, Ipv6::On, Ipv6::Off]).map(|ipv6| options.ipv6 = ipv6)),
    switch("dual-stack", None, &["DUAL_STACK", variable::DUAL_STACK], "Accepted without effect: IPv6 is captured unless --ipv6 is off",
        |_, text| boolean(text).map(drop)),
    value("backend", None, &["WEIR_BACKEND"], "auto|nft|iptables", "Install rules by nf_tables or by iptables-restore; auto uses nft unless the kernel has no nf_tables [default: auto]",
        |options, text| one_of(text, &Backend::NAMES, &[Backend::Auto, Backend::Nft, Backend::Iptables]).map(|backend| options.backend = Some(backend))),
    value("visibility", None, &["WEIR_VISIBILITY"], "nft|iptables", "Let nf_tables rules look native, or such that iptables-save shows them [default: nft]",
        |options, text| one_of(text, &Visibility::NAMES, &[Visibility::Nft, Visibility::Iptables]).map(|visibility| options.visibility = visibility)),
    value("force-iptables-binary", None, &["FORCE_IPTABLES_BINARY"], "legacy|nft", "Use the iptables backend, with this variant",
        |options, text| if text.is_empty() { Ok(()) } else { one_of(text, &IptablesVariant::NAMES, &[IptablesVariant::Legacy, IptablesVariant::Nft]).map(|variant| options.variant = Some(variant)) }),
    switch("native-nftables", None, &["NATIVE_NFTABLES"], "Use the nft backend", switch_of!(native_nftables)),
    switch("dry-run", Some('n'), &["DRY_RUN"], "Print the rules as iptables-restore reads them, without changing anything", switch_of!(dry_run)),
    value("", None, &["DRY_RUN_FILE_PATH"], "FILE", "", |options, text| { options.dry_run_file = Some(text.into()); Ok(()) }),
    switch("skip-rule-apply", None, &["SKIP_RULE_APPLY"], "Do not change the rules", switch_of!(skip_rule_apply)),
    switch("cleanup-only", None, &["CLEANUP_ONLY"], "Remove the rules of every backend, and exit", switch_of!(cleanup_only)),
    switch("reconcile", None, &["RECONCILE"], "Remove rules that another backend or istio-iptables left", switch_of!(reconcile)),
    switch("force-apply", None, &["FORCE_APPLY"], "Write the rules even if they are in place", switch_of!(force_apply)),
    switch("run-validation", None, &["RUN_VALIDATION"], "Verify the rules with test connections; exit with 126 if they do not work", switch_of!(run_validation)),
    value("iptables-probe-port", None, &["IPTABLES_PROBE_PORT"], "PORT", "Connect to this port in the validation [default: 15002]",
        |options, text| port(text).map(|port| options.probe_port = port)),
    value("probe-timeout", None, &["PROBE_TIMEOUT"], "DURATION", "Repeat failed test connections for this long, at most 1h [default: 5s]",
        |options, text| duration(text).map(|time| options.probe_timeout = time)),
    value("network-namespace", None, &["NETWORK_NAMESPACE"], "PATH", "Enter this network namespace first",
        |options, text| { options.network_namespace = (!text.is_empty()).then(|| text.into()); Ok(()) }),
    switch("cni-mode", None, &["CNI_MODE"], "Accepted without effect", |_, text| boolean(text).map(drop)),
    switch("log_as_json", None, &["LOG_AS_JSON"], "Log JSON objects", switch_of!(log_json)),
    value("log_output_level", None, &["LOG_OUTPUT_LEVEL"], "LEVELS", "Set the log level in Istio's form, such as default:warn [default: default:info]",
        |options, text| { options.log_level = Some(text.to_owned()); Ok(()) }),
    value("", None, &["ENVOY_USER"], "NAME", "", |options, text| { options.user_name = Some(text.to_owned()); Ok(()) }),
    value("", None, &[variable::OWNER_GROUPS], "GROUPS", "", as_setting!(variable::OWNER_GROUPS)),
    value("", None, &[variable::OWNER_GROUPS_EXCLUDE], "GROUPS", "", as_setting!(variable::OWNER_GROUPS_EXCLUDE)),
    value("", None, &[variable::LOOPBACK_CIDR], "CIDR", "", as_setting!(variable::LOOPBACK_CIDR)),
];

/// Options of older versions, accepted with a warning. All may have a value.
pub(crate) const IGNORED: &[(&str, Option<char>)] = &[
    ("restore-format", Some('f')),
    ("iptables-trace-logging", None),
    ("iptables-version", None),
    ("output-paths", None),
    ("istio-outbound-owner-groups", None),
    ("log_caller", None),
    ("log_rotate", None),
    ("log_stacktrace_level", None),
    ("log_target", None),
    ("vklog", None),
];
