//! The options of `istio-iptables`, in one table: names, variables, meaning.
//!
//! The command line wins over the environment; an empty variable counts as unset, as in Istio.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use iptables_rules::CaptureConfig;
use iptables_rules::annotations::Setting;
use iptables_rules::config::{CidrSelection, PortSelection};
use iptables_rules::names::{annotation, variable};
use iptables_rules::ports;
use weir_kernel::backend::{Backend, Visibility};
use weir_kernel::iptables::Variant;

/// One option.
pub(crate) struct Opt {
    /// Name on the command line; empty where the environment alone can say it.
    pub(crate) long: &'static str,
    pub(crate) short: Option<char>,
    /// Variables that say the same; the first one that is set counts.
    pub(crate) env: &'static [&'static str],
    /// What stands for the value in the help; `None` for a switch, which takes `=true` and `=false`.
    pub(crate) value: Option<&'static str>,
    pub(crate) help: &'static str,
    /// Puts a value into the draft; its faults as half sentences otherwise.
    pub(crate) read: fn(&mut Draft, &str) -> Result<(), Vec<String>>,
}

/// What the options say, one by one; what follows from several of them is worked out later.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of the command line")]
pub(crate) struct Draft {
    pub(crate) config: CaptureConfig,
    pub(crate) uids: Option<Vec<u32>>,
    pub(crate) gids: Option<Vec<u32>>,
    /// User of the proxy by name, where no id is given.
    pub(crate) user_name: Option<String>,
    pub(crate) redirect_dns: bool,
    pub(crate) capture_all_dns: bool,
    pub(crate) dns_servers: Option<Vec<IpAddr>>,
    pub(crate) ipv6: Ipv6,
    pub(crate) backend: Option<Backend>,
    pub(crate) visibility: Visibility,
    pub(crate) variant: Option<Variant>,
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
    /// Captured, unless the machine has no IPv6 at all.
    Auto,
    /// Captured.
    On,
    /// Left alone.
    Off,
}

impl Default for Draft {
    /// Istio's init container captures what it is told to, unlike its CNI plugin.
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

/// An option with a value.
const fn value(
    long: &'static str,
    short: Option<char>,
    env: &'static [&'static str],
    value: &'static str,
    help: &'static str,
    read: fn(&mut Draft, &str) -> Result<(), Vec<String>>,
) -> Opt {
    Opt { long, short, env, value: Some(value), help, read }
}

/// A switch.
const fn switch(
    long: &'static str,
    short: Option<char>,
    env: &'static [&'static str],
    help: &'static str,
    read: fn(&mut Draft, &str) -> Result<(), Vec<String>>,
) -> Opt {
    Opt { long, short, env, value: None, help, read }
}

/// Reads a setting that an annotation or a variable makes too.
fn setting(name: &str, draft: &mut Draft, text: &str) -> Result<(), Vec<String>> {
    match Setting::named(name) {
        Some(setting) => setting.read(&mut draft.config, text),
        None => fault(format!("{name} is no setting")),
    }
}

/// The reader of such a setting.
macro_rules! as_setting {
    ($name:expr) => {
        |draft, text| setting($name, draft, text)
    };
}

/// Reader of a switch.
macro_rules! switch_of {
    ($field:ident) => {
        |draft, text| boolean(text).map(|on| draft.$field = on)
    };
}

/// All options.
#[rustfmt::skip]
pub(crate) const OPTIONS: &[Opt] = &[
    value("envoy-port", Some('p'), &[], "PORT", "Port of the proxy for outbound traffic [default: 15001]",
        |draft, text| port(text).map(|port| draft.config.proxy_port = port)),
    value("inbound-capture-port", Some('z'), &["INBOUND_CAPTURE_PORT"], "PORT", "Port of the proxy for inbound traffic [default: 15006]",
        |draft, text| port(text).map(|port| draft.config.inbound_port = port)),
    value("inbound-tunnel-port", Some('e'), &["INBOUND_TUNNEL_PORT"], "PORT", "Port of the HBONE tunnel, never captured [default: 15008]",
        |draft, text| port(text).map(|port| draft.config.tunnel_port = port)),
    value("proxy-uid", Some('u'), &["PROXY_UID"], "IDS", "Users whose traffic is the proxy's own [default: the user named by ENVOY_USER, else 1337]",
        |draft, text| ids(text).map(|ids| draft.uids = ids)),
    value("proxy-gid", Some('g'), &["PROXY_GID"], "IDS", "Groups whose traffic is the proxy's own [default: as --proxy-uid]",
        |draft, text| ids(text).map(|ids| draft.gids = ids)),
    value("istio-inbound-interception-mode", Some('m'), &["ISTIO_INBOUND_INTERCEPTION_MODE"], "MODE", "REDIRECT, TPROXY, or NONE to capture nothing [default: REDIRECT]",
        |draft, text| if text.is_empty() { Ok(()) } else { setting(annotation::INTERCEPTION_MODE, draft, text) }),
    value("istio-inbound-ports", Some('b'), &["ISTIO_INBOUND_PORTS"], "PORTS", "Inbound ports that are captured: '*' or a list; none without",
        as_setting!(annotation::INCLUDE_INBOUND_PORTS)),
    value("istio-local-exclude-ports", Some('d'), &["ISTIO_LOCAL_EXCLUDE_PORTS"], "PORTS", "Inbound ports that are not captured, where all others are",
        |draft, text| ports::parse(text).map(|ports| draft.config.inbound_ports_exclude = ports)),
    value("istio-exclude-interfaces", Some('c'), &["ISTIO_EXCLUDE_INTERFACES"], "NAMES", "Interfaces that are left alone in both directions",
        as_setting!(annotation::EXCLUDE_INTERFACES)),
    value("istio-service-cidr", Some('i'), &["ISTIO_SERVICE_CIDR"], "CIDRS", "Destinations whose outbound traffic is captured: '*' or a list; none without",
        as_setting!(annotation::INCLUDE_OUTBOUND_IP_RANGES)),
    value("istio-service-exclude-cidr", Some('x'), &["ISTIO_SERVICE_EXCLUDE_CIDR"], "CIDRS", "Destinations whose outbound traffic is not captured",
        as_setting!(annotation::EXCLUDE_OUTBOUND_IP_RANGES)),
    value("istio-outbound-ports", Some('q'), &["ISTIO_OUTBOUND_PORTS"], "PORTS", "Outbound ports that are captured whatever the destination",
        as_setting!(annotation::INCLUDE_OUTBOUND_PORTS)),
    value("istio-local-outbound-ports-exclude", Some('o'), &["ISTIO_LOCAL_OUTBOUND_PORTS_EXCLUDE"], "PORTS", "Outbound ports, TCP and UDP, that are not captured",
        as_setting!(annotation::EXCLUDE_OUTBOUND_PORTS)),
    value("kube-virt-interfaces", Some('k'), &["KUBE_VIRT_INTERFACES"], "NAMES", "Interfaces of virtual machines: what comes in by them is captured as outbound traffic",
        as_setting!(annotation::REROUTE_VIRTUAL_INTERFACES)),
    value("istio-inbound-tproxy-mark", Some('t'), &["ISTIO_INBOUND_TPROXY_MARK"], "MARK", "Packet mark of captured inbound traffic in TPROXY mode [default: 1337]",
        |draft, text| number(text).map(|mark| draft.config.tproxy_mark = mark)),
    value("istio-inbound-tproxy-route-table", Some('r'), &["ISTIO_INBOUND_TPROXY_ROUTE_TABLE"], "TABLE", "Routing table for that mark [default: 133]",
        |draft, text| number(text).map(|table| draft.config.tproxy_route_table = table)),
    switch("redirect-dns", None, &["REDIRECT_DNS", variable::DNS_CAPTURE], "DNS requests of the application are answered by the Istio agent", switch_of!(redirect_dns)),
    switch("capture-all-dns", None, &["CAPTURE_ALL_DNS"], "Those to any server, not only to those of /etc/resolv.conf", switch_of!(capture_all_dns)),
    value("dns-servers", None, &["DNS_SERVERS"], "ADDRESSES", "Servers in place of those of /etc/resolv.conf",
        |draft, text| addresses(text).map(|servers| draft.dns_servers = Some(servers))),
    switch("drop-invalid", None, &["DROP_INVALID", variable::INVALID_DROP], "Packets that connection tracking calls invalid are dropped",
        |draft, text| boolean(text).map(|on| draft.config.drop_invalid = on)),
    value("ipv6", None, &["WEIR_IPV6"], "auto|on|off", "Whether IPv6 is captured like IPv4; auto: unless the machine has none [default: auto]",
        |draft, text| one_of(text, &["auto", "on", "off"], &[Ipv6::Auto, Ipv6::On, Ipv6::Off]).map(|ipv6| draft.ipv6 = ipv6)),
    switch("dual-stack", None, &["DUAL_STACK", variable::DUAL_STACK], "Checked only: IPv6 is captured anyway, and --ipv6 off is what leaves it alone",
        |_, text| boolean(text).map(drop)),
    value("backend", None, &["WEIR_BACKEND"], "auto|nft|iptables", "How rules get into the kernel; auto: nft, unless the kernel has no nf_tables [default: auto]",
        |draft, text| one_of(text, &Backend::NAMES, &[Backend::Auto, Backend::Nft, Backend::Iptables]).map(|backend| draft.backend = Some(backend))),
    value("visibility", None, &["WEIR_VISIBILITY"], "nft|iptables", "Whose rules those of nf_tables look like; iptables: iptables-save shows them [default: nft]",
        |draft, text| one_of(text, &Visibility::NAMES, &[Visibility::Nft, Visibility::Iptables]).map(|visibility| draft.visibility = visibility)),
    value("force-iptables-binary", None, &["FORCE_IPTABLES_BINARY"], "legacy|nft", "The backend iptables, by this variant",
        |draft, text| if text.is_empty() { Ok(()) } else { one_of(text, &Variant::NAMES, &[Variant::Legacy, Variant::Nft]).map(|variant| draft.variant = Some(variant)) }),
    switch("native-nftables", None, &["NATIVE_NFTABLES"], "The backend nft", switch_of!(native_nftables)),
    switch("dry-run", Some('n'), &["DRY_RUN"], "Print the rules in the form of iptables-restore, change nothing", switch_of!(dry_run)),
    value("", None, &["DRY_RUN_FILE_PATH"], "FILE", "", |draft, text| { draft.dry_run_file = Some(text.into()); Ok(()) }),
    switch("skip-rule-apply", None, &["SKIP_RULE_APPLY"], "Do not touch the rules", switch_of!(skip_rule_apply)),
    switch("cleanup-only", None, &["CLEANUP_ONLY"], "Remove the rules of every backend, and nothing else", switch_of!(cleanup_only)),
    switch("reconcile", None, &["RECONCILE"], "Also remove rules that another backend, or Istio's own program, has left", switch_of!(reconcile)),
    switch("force-apply", None, &["FORCE_APPLY"], "Write the rules again although they are in place", switch_of!(force_apply)),
    switch("run-validation", None, &["RUN_VALIDATION"], "Check by connections that the rules do their work; exit status 126 if they do not", switch_of!(run_validation)),
    value("iptables-probe-port", None, &["IPTABLES_PROBE_PORT"], "PORT", "Port that the validation connects to [default: 15002]",
        |draft, text| port(text).map(|port| draft.probe_port = port)),
    value("probe-timeout", None, &["PROBE_TIMEOUT"], "TIME", "How long the validation tries, for example 5s [default: 5s]",
        |draft, text| duration(text).map(|time| draft.probe_timeout = time)),
    value("network-namespace", None, &["NETWORK_NAMESPACE"], "PATH", "Work in this network namespace",
        |draft, text| { draft.network_namespace = (!text.is_empty()).then(|| text.into()); Ok(()) }),
    switch("cni-mode", None, &["CNI_MODE"], "Accepted; what it changes in Istio does not exist here", |_, text| boolean(text).map(drop)),
    switch("log_as_json", None, &["LOG_AS_JSON"], "Log lines are JSON objects", switch_of!(log_json)),
    value("log_output_level", None, &["LOG_OUTPUT_LEVEL"], "LEVELS", "As Istio writes it, for example default:info; below info, only warnings are logged",
        |draft, text| { draft.log_level = Some(text.to_owned()); Ok(()) }),
    value("", None, &["ENVOY_USER"], "NAME", "", |draft, text| { draft.user_name = Some(text.to_owned()); Ok(()) }),
    value("", None, &[variable::OWNER_GROUPS], "GROUPS", "", as_setting!(variable::OWNER_GROUPS)),
    value("", None, &[variable::OWNER_GROUPS_EXCLUDE], "GROUPS", "", as_setting!(variable::OWNER_GROUPS_EXCLUDE)),
    value("", None, &[variable::LOOPBACK_CIDR], "CIDR", "", as_setting!(variable::LOOPBACK_CIDR)),
];

/// Options of older versions that scripts and templates still give: taken, and said to mean nothing. All may have a value.
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

fn fault<T>(reason: impl Into<String>) -> Result<T, Vec<String>> {
    Err(vec![reason.into()])
}

fn port(text: &str) -> Result<u16, Vec<String>> {
    match ports::parse(text)?.as_slice() {
        [port] => Ok(*port),
        _ => fault("is not one port"),
    }
}

fn number(text: &str) -> Result<u32, Vec<String>> {
    match text.trim().parse() {
        Ok(number) if text.trim().bytes().all(|byte| byte.is_ascii_digit()) => Ok(number),
        _ => fault("is not a number from 0 to 4294967295"),
    }
}

/// Ids with commas; none is as if the option was not given.
fn ids(text: &str) -> Result<Option<Vec<u32>>, Vec<String>> {
    let (mut ids, mut faults) = (Vec::new(), Vec::new());
    for element in text.split(',').map(str::trim).filter(|element| !element.is_empty()) {
        match number(element) {
            Ok(id) if !ids.contains(&id) => ids.push(id),
            Ok(_) => {}
            Err(_) => faults.push(format!("'{element}' is not an id")),
        }
    }
    if faults.is_empty() { Ok((!ids.is_empty()).then_some(ids)) } else { Err(faults) }
}

fn addresses(text: &str) -> Result<Vec<IpAddr>, Vec<String>> {
    let (mut addresses, mut faults) = (Vec::new(), Vec::new());
    for element in text.split(',').map(str::trim).filter(|element| !element.is_empty()) {
        match element.parse() {
            Ok(address) if !addresses.contains(&address) => addresses.push(address),
            Ok(_) => {}
            Err(_) => faults.push(format!("'{element}' is not an address")),
        }
    }
    if faults.is_empty() { Ok(addresses) } else { Err(faults) }
}

/// The words that Go's tools take for a switch.
fn boolean(text: &str) -> Result<bool, Vec<String>> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => fault("is neither true nor false"),
    }
}

fn one_of<T: Copy>(text: &str, names: &[&str], values: &[T]) -> Result<T, Vec<String>> {
    let found = names.iter().position(|name| *name == text).and_then(|at| values.get(at));
    found.copied().ok_or_else(|| vec![format!("is none of {}", names.join(", "))])
}

/// A time as Go writes it, with one unit: `5s`, `500ms`, `1m`.
fn duration(text: &str) -> Result<Duration, Vec<String>> {
    /// Longer than any pod should wait for an answer.
    const MOST: Duration = Duration::from_hours(1);
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let read = number.parse::<u64>().ok().and_then(|number| match unit {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "m" => number.checked_mul(60).map(Duration::from_secs),
        _ => None,
    });
    match read {
        Some(time) if !time.is_zero() && time <= MOST => Ok(time),
        _ => fault("is not a time like 5s or 500ms, at most an hour"),
    }
}
