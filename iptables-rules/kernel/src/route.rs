//! Addresses, routes and routing rules that a [`RuleSet`](crate::RuleSet) relies on, over rtnetlink, in the current namespace.

mod message;

use std::io;
use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NetlinkDeserializable};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::errno::Errno;

use self::message::{ListedRoute, Message};
use crate::netlink::{Answer, DUMPS_AT_MOST, Dumped, Netlink, append};
use iptables_rules::ruleset::{LocalDelivery, Routing};

/// `lo` is the first interface of every network namespace.
const LO: u32 = 1;
/// How long `lo` may take to come up before an address is added to it. containerd attaches `lo` and the pod's network at the same time, and the
/// loopback plugin refuses the sandbox when it finds an address of another network on `lo` right after bringing it up. Without
/// such a plugin `lo` may stay down, so it is not waited for longer than a slow plugin takes.
const LOOPBACK_WAIT: Duration = Duration::from_millis(200);
/// Time between two looks at `lo`.
const LOOPBACK_POLL: Duration = Duration::from_millis(2);
/// What the loopback plugin is left for its own look, once `lo` has come up before our eyes.
const LOOPBACK_SETTLE: Duration = Duration::from_millis(20);
/// `RT_TABLE_UNSPEC`, linux/rtnetlink.h: the number is in an attribute of its own, for tables above 255.
const TABLE_IN_ATTRIBUTE: u8 = 0;

/// How far [`apply`] came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Routed {
    /// Everything holds.
    Complete,
    /// IPv6 is switched off in the namespace, or missing from the kernel, so its part was left out: there is no IPv6 traffic to route.
    WithoutIpv6,
}

/// Why routing could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}")]
pub struct RouteError {
    /// What was being done.
    pub what: String,
    /// The kernel's answer.
    pub source: io::Error,
}

/// Makes `routing` hold; what exists already is fine. Local delivery is set up for IPv4, and for IPv6 where `lo` is to carry an
/// address of that family, which is how a [`RuleSet`](crate::RuleSet) with IPv6 rules says so.
///
/// # Errors
/// The first step the kernel refused.
pub fn apply(routing: &Routing) -> Result<Routed, RouteError> {
    if *routing == Routing::default() {
        return Ok(Routed::Complete);
    }
    let netlink = open()?;
    if !routing.lo_addresses.is_empty() {
        await_loopback(&netlink)?;
    }
    let mut routed = Routed::Complete;
    for step in steps(&netlink, routing)? {
        let mut bytes = Vec::with_capacity(128);
        append(&mut bytes, 1, NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK, step.message);
        let answers = netlink.exchange(&bytes, |_: Message| None::<()>);
        let answers = answers.map_err(|source| RouteError { what: step.what.clone(), source })?;
        for answer in answers {
            match answer {
                Answer::Verdict { errno: None | Some(Errno::EEXIST), .. } | Answer::Object(()) => {}
                Answer::Verdict { errno: Some(errno), .. } if step.ipv6 && is_ipv6_off(errno) => {
                    routed = Routed::WithoutIpv6;
                }
                Answer::Verdict { errno: Some(errno), .. } => {
                    return Err(RouteError { what: step.what, source: errno.into() });
                }
            }
        }
    }
    Ok(routed)
}

/// Waits, within bounds, until whoever brings `lo` up is done with it. The kernel gives it `127.0.0.1` and `::1` when it comes up.
fn await_loopback(netlink: &Netlink) -> Result<(), RouteError> {
    let begun = Instant::now();
    let is_up = || listed_addresses(netlink, |index| index == LO).map(|addresses| !addresses.is_empty());
    if is_up()? {
        return Ok(());
    }
    while begun.elapsed() < LOOPBACK_WAIT {
        thread::sleep(LOOPBACK_POLL);
        if is_up()? {
            thread::sleep(LOOPBACK_SETTLE);
            break;
        }
    }
    Ok(())
}

/// What of `routing` does not hold, one line each.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn verify(routing: &Routing) -> Result<Vec<String>, RouteError> {
    if *routing == Routing::default() {
        return Ok(Vec::new());
    }
    let netlink = open()?;
    let mut lines = Vec::new();
    let present = listed_addresses(&netlink, |index| index == LO)?;
    for net in &routing.lo_addresses {
        if !present.contains(net) {
            lines.push(format!("address {net} is missing on lo"));
        }
    }
    if let Some(delivery) = routing.local_delivery {
        for family in families(routing) {
            if !has_rule(&netlink, family, delivery)? {
                lines.push(format!("rule {} is missing", rule_text(family, delivery)));
            }
            if !has_route(&netlink, family, delivery.table)? {
                lines.push(format!("route {} is missing", route_text(family, delivery)));
            }
        }
    }
    Ok(lines)
}

/// One change, as a message and in words.
struct Step {
    what: String,
    ipv6: bool,
    message: Message,
}

fn steps(netlink: &Netlink, routing: &Routing) -> Result<Vec<Step>, RouteError> {
    let mut steps = Vec::new();
    for net in &routing.lo_addresses {
        steps.push(Step {
            what: format!("address {net} on lo"),
            ipv6: net.addr().is_ipv6(),
            message: Message::NewAddress(address(net)),
        });
    }
    let Some(delivery) = routing.local_delivery else { return Ok(steps) };
    for family in families(routing) {
        let ipv6 = family == AddressFamily::Inet6;
        // Not every kernel takes an equal rule with another priority for the same one.
        if !has_rule(netlink, family, delivery)? {
            let message = Message::NewRule(rule(family, delivery));
            steps.push(Step { what: format!("rule {}", rule_text(family, delivery)), ipv6, message });
        }
        let message = Message::NewRoute(route(family, delivery.table));
        steps.push(Step { what: format!("route {}", route_text(family, delivery)), ipv6, message });
    }
    Ok(steps)
}

fn families(routing: &Routing) -> Vec<AddressFamily> {
    let mut families = vec![AddressFamily::Inet];
    if routing.lo_addresses.iter().any(|net| net.addr().is_ipv6()) {
        families.push(AddressFamily::Inet6);
    }
    families
}

/// How the kernel says that there is no IPv6: `disable_ipv6` of the interface (net/ipv6/addrconf.c), or no IPv6 at all.
fn is_ipv6_off(errno: Errno) -> bool {
    matches!(errno, Errno::EACCES | Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT)
}

fn address(net: &IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family_of(net.addr());
    message.header.prefix_len = net.prefix_len();
    message.header.index = LO;
    message.attributes = vec![AddressAttribute::Local(net.addr()), AddressAttribute::Address(net.addr())];
    message
}

fn rule(family: AddressFamily, delivery: LocalDelivery) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = family;
    message.header.table = TABLE_IN_ATTRIBUTE;
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![RuleAttribute::FwMark(delivery.mark), RuleAttribute::Table(delivery.table)];
    message
}

fn route(family: AddressFamily, table: u32) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family;
    message.header.table = TABLE_IN_ATTRIBUTE;
    message.header.protocol = RouteProtocol::Boot;
    message.header.scope = RouteScope::Host;
    message.header.kind = RouteType::Local;
    message.attributes = vec![RouteAttribute::Table(table), RouteAttribute::Oif(LO)];
    message
}

fn open() -> Result<Netlink, RouteError> {
    Netlink::open(NETLINK_ROUTE).map_err(|source| RouteError { what: "rtnetlink".to_owned(), source })
}

/// Addresses in the namespace of the calling thread, without those of the loopback networks.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn addresses() -> Result<Vec<IpAddr>, RouteError> {
    let all = listed_addresses(&open()?, |_| true)?;
    Ok(all.iter().map(IpNet::addr).filter(|address| !address.is_loopback()).collect())
}

/// Marks whose packets are delivered locally in the namespace of the calling thread, by a rule of their own and a route for everything.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn deliveries() -> Result<Vec<LocalDelivery>, RouteError> {
    let netlink = open()?;
    let mut delivered = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        for delivery in rules(&netlink, family)? {
            if !delivered.contains(&delivery) && has_route(&netlink, family, delivery.table)? {
                delivered.push(delivery);
            }
        }
    }
    Ok(delivered)
}

fn listed_addresses(netlink: &Netlink, wanted: fn(u32) -> bool) -> Result<Vec<IpNet>, RouteError> {
    list(netlink, "addresses", Message::GetAddress(AddressMessage::default()), |answer| match answer {
        Message::NewAddress(message) if wanted(message.header.index) => {
            let address = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Address(address) => Some(*address),
                _ => None,
            })?;
            IpNet::new(address, message.header.prefix_len).ok()
        }
        _ => None,
    })
}

fn has_rule(netlink: &Netlink, family: AddressFamily, delivery: LocalDelivery) -> Result<bool, RouteError> {
    Ok(rules(netlink, family)?.contains(&delivery))
}

/// Routing rules that ask for a mark and nothing else.
fn rules(netlink: &Netlink, family: AddressFamily) -> Result<Vec<LocalDelivery>, RouteError> {
    let mut request = RuleMessage::default();
    request.header.family = family;
    list(netlink, "rules", Message::GetRule(request), |answer| match answer {
        Message::NewRule(message) if message.header.action == RuleAction::ToTable => {
            let (mut mark, mut table) = (None, None);
            for attribute in &message.attributes {
                match attribute {
                    RuleAttribute::FwMark(value) => mark = Some(*value),
                    RuleAttribute::Table(value) => table = Some(*value),
                    RuleAttribute::FwMask(bits) if *bits != u32::MAX => return None,
                    RuleAttribute::Source(_)
                    | RuleAttribute::Destination(_)
                    | RuleAttribute::Iifname(_)
                    | RuleAttribute::Oifname(_)
                    | RuleAttribute::UidRange(_)
                    | RuleAttribute::IpProtocol(_) => return None,
                    _ => {}
                }
            }
            Some(LocalDelivery { mark: mark?, table: table? })
        }
        _ => None,
    })
}

fn has_route(netlink: &Netlink, family: AddressFamily, table: u32) -> Result<bool, RouteError> {
    let mut request = RouteMessage::default();
    request.header.address_family = family;
    let wanted = ListedRoute { kind: RouteType::Local.into(), prefix: 0, table, interface: Some(LO) };
    let found =
        list(netlink, "routes", Message::GetRoute(request), |route: ListedRoute| (route == wanted).then_some(()))?;
    Ok(!found.is_empty())
}

fn list<M: NetlinkDeserializable, T>(
    netlink: &Netlink,
    what: &str,
    request: Message,
    mut decode: impl FnMut(M) -> Option<T>,
) -> Result<Vec<T>, RouteError> {
    let failed = |source: io::Error| RouteError { what: format!("listing {what}"), source };
    let mut bytes = Vec::with_capacity(64);
    append(&mut bytes, 1, NLM_F_DUMP, request);
    for _ in 0..DUMPS_AT_MOST {
        match netlink.dump(&bytes, &mut decode).map_err(failed)? {
            Dumped::Complete(items) => return Ok(items),
            Dumped::Disturbed => {}
            // A kernel without IPv6 has no list of its rules or routes.
            Dumped::Refused(errno) if is_ipv6_off(errno) => return Ok(Vec::new()),
            Dumped::Refused(errno) => return Err(failed(errno.into())),
        }
    }
    Err(failed(io::Error::other("they keep changing")))
}

fn family_of(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn rule_text(family: AddressFamily, delivery: LocalDelivery) -> String {
    format!("{}fwmark {} lookup {}", flag(family), delivery.mark, delivery.table)
}

fn route_text(family: AddressFamily, delivery: LocalDelivery) -> String {
    format!("{}local default dev lo table {}", flag(family), delivery.table)
}

fn flag(family: AddressFamily) -> &'static str {
    if family == AddressFamily::Inet6 { "-6 " } else { "" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{in_namespace, tool};

    fn routing() -> Routing {
        Routing {
            lo_addresses: vec!["::6/128".parse().unwrap()],
            local_delivery: Some(LocalDelivery { mark: 1337, table: 133 }),
        }
    }

    fn ip(command: &str) -> String {
        tool("ip", &command.split(' ').collect::<Vec<_>>(), "")
    }

    fn addresses_only() -> Routing {
        Routing { local_delivery: None, ..routing() }
    }

    #[test]
    fn adds_the_address_to_an_idle_interface_and_does_not_mind_it() {
        in_namespace(|| {
            let routing = addresses_only();
            assert_eq!(verify(&routing).unwrap(), ["address ::6/128 is missing on lo"]);
            assert_eq!(apply(&routing).unwrap(), Routed::Complete);
            assert_eq!(apply(&routing).unwrap(), Routed::Complete);
            assert_eq!(ip("-6 -o addr show dev lo to ::6").lines().count(), 1);
            assert!(ip("-o link show lo").contains("state DOWN"), "brings nothing up");
            assert_eq!(verify(&routing).unwrap(), Vec::<String>::new());
        });
    }

    #[test]
    fn leaves_a_loopback_plugin_that_is_at_work_an_interface_without_foreign_addresses() {
        in_namespace(|| {
            // What that plugin does: bring it up, then look.
            let plugin = thread::spawn(|| {
                thread::sleep(Duration::from_millis(40));
                tool("ip", &["-batch", "-"], "link set lo up\naddr show dev lo\n")
            });
            assert_eq!(apply(&addresses_only()).unwrap(), Routed::Complete);
            let seen = plugin.join().unwrap();
            assert!(seen.contains("127.0.0.1/8") && !seen.contains("::6/128"), "{seen}");
            assert_eq!(verify(&addresses_only()).unwrap(), Vec::<String>::new());
        });
    }

    #[test]
    fn delivers_marked_packets_locally_once() {
        in_namespace(|| {
            ip("link set lo up");
            let routing = routing();
            assert_eq!(
                verify(&routing).unwrap(),
                [
                    "address ::6/128 is missing on lo",
                    "rule fwmark 1337 lookup 133 is missing",
                    "route local default dev lo table 133 is missing",
                    "rule -6 fwmark 1337 lookup 133 is missing",
                    "route -6 local default dev lo table 133 is missing",
                ]
            );
            for _ in 0..3 {
                assert_eq!(apply(&routing).unwrap(), Routed::Complete);
                assert_eq!(verify(&routing).unwrap(), Vec::<String>::new());
            }
            for family in ["-4", "-6"] {
                assert_eq!(ip(&format!("{family} rule show")).matches("fwmark 0x539 lookup 133").count(), 1);
                assert_eq!(ip(&format!("{family} route show table 133")).matches("local default dev lo").count(), 1);
            }
        });
    }

    #[test]
    fn a_rule_of_the_peer_counts_as_ours() {
        in_namespace(|| {
            ip("link set lo up");
            ip("rule add priority 77 fwmark 1337 lookup 133");
            ip("rule add priority 78 fwmark 1337/0xff lookup 133");
            let routing = Routing { lo_addresses: Vec::new(), ..routing() };
            apply(&routing).unwrap();
            assert_eq!(ip("rule show").matches("fwmark 0x539 lookup 133").count(), 1);
            assert_eq!(ip("-6 rule show").matches("fwmark").count(), 0, "IPv6 is left alone");
        });
    }

    #[test]
    fn says_that_ipv6_is_switched_off() {
        in_namespace(|| {
            ip("link set lo up");
            // /proc/sys/net shows the namespace of the reading thread.
            std::fs::write("/proc/sys/net/ipv6/conf/lo/disable_ipv6", "1").unwrap();
            assert_eq!(apply(&addresses_only()).unwrap(), Routed::WithoutIpv6);
            assert_eq!(apply(&routing()).unwrap(), Routed::WithoutIpv6);
            assert!(ip("rule show").contains("fwmark 0x539"));
        });
    }

    #[test]
    fn names_the_step_that_fails() {
        in_namespace(|| {
            let error = apply(&routing()).unwrap_err();
            assert_eq!(error.to_string(), "route -6 local default dev lo table 133: Network is down (os error 100)");
        });
    }
}
