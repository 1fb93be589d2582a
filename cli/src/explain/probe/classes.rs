//! Ranges of ports and addresses that the conditions of rules do not tell apart.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use iptables_rules::ruleset::Match;
use iptables_rules::trace::{Chains, Predicate};

/// Ranges, first and last included.
pub(super) type Classes<T> = Vec<(T, T)>;

/// Limits of classes: their product is the number of traced packets. Beyond, the last class is wider than the rules ask for.
const MAX_PORT_CLASSES: usize = 128;
const MAX_ADDRESS_CLASSES: usize = 256;
/// Limit of ranges that are printed.
const MAX_RANGES: usize = 8;

/// Returns the classes of destination ports.
pub(super) fn port_classes(chains: &Chains) -> Classes<u16> {
    let mut starts = BTreeSet::from([1_u16]);
    for_each_match(chains, &mut |condition| {
        if let Predicate::Planned(Match::DestinationPorts { ports, .. }) = condition {
            starts.extend(ports.iter().flat_map(|port| [Some(*port), port.checked_add(1)]).flatten());
        }
    });
    starts.remove(&0);
    let starts: Vec<u16> = starts.into_iter().take(MAX_PORT_CLASSES).collect();
    let ends = starts.iter().skip(1).map(|start| start - 1).chain([u16::MAX]);
    starts.iter().copied().zip(ends).collect()
}

/// Returns the classes of destination addresses, without loopback and without the pod's own address.
pub(super) fn address_classes(chains: &Chains, own: IpAddr) -> Classes<IpAddr> {
    let loopback = match own {
        IpAddr::V4(_) => (number(Ipv4Addr::new(127, 0, 0, 0).into()), number(Ipv4Addr::new(127, 255, 255, 255).into())),
        IpAddr::V6(_) => (number(Ipv6Addr::LOCALHOST.into()), number(Ipv6Addr::LOCALHOST.into())),
    };
    let last = if own.is_ipv4() { u128::from(u32::MAX) } else { u128::MAX };
    let skipped = [loopback, (number(own), number(own))];
    let mut starts = BTreeSet::from([0_u128]);
    let mut add = |first: IpAddr, end: IpAddr| {
        if first.is_ipv4() == own.is_ipv4() {
            starts.insert(number(first));
            starts.extend(number(end).checked_add(1).filter(|next| *next <= last));
        }
    };
    for_each_match(chains, &mut |condition| match condition {
        Predicate::Planned(Match::Destination { net, .. }) => add(net.network(), net.broadcast()),
        Predicate::DestinationIn(ranges) => ranges.iter().for_each(|(first, end)| add(*first, *end)),
        _ => {}
    });
    for (first, end) in skipped {
        starts.insert(first);
        starts.extend(end.checked_add(1).filter(|next| *next <= last));
    }
    let starts: Vec<u128> = starts.into_iter().take(MAX_ADDRESS_CLASSES).collect();
    let ends = starts.iter().skip(1).map(|start| start - 1).chain([last]);
    let kept = starts
        .iter()
        .copied()
        .zip(ends)
        .filter(|class| !skipped.iter().any(|(first, end)| class.0 >= *first && class.1 <= *end));
    kept.map(|(first, end)| (address(first, own), address(end, own))).collect()
}

/// Returns the number of addresses in ranges.
pub(super) fn size(classes: &[(IpAddr, IpAddr)]) -> u128 {
    classes.iter().fold(0, |sum: u128, (first, last)| sum.saturating_add(number(*last) - number(*first)))
}

/// Describes ranges of ports.
pub(super) fn join_ports(classes: &[(u16, u16)]) -> String {
    let mut joined: Classes<u16> = Vec::new();
    for &(first, last) in classes {
        match joined.last_mut() {
            Some((_, end)) if end.checked_add(1) == Some(first) => *end = last,
            _ => joined.push((first, last)),
        }
    }
    match joined[..] {
        [(1, u16::MAX)] => "every port".to_owned(),
        [(first, last)] if first == last => format!("port {first}"),
        _ => format!("ports {}", join(joined.iter().copied().map(range))),
    }
}

/// Describes ranges of addresses, as networks where they are some.
pub(super) fn join_addresses(classes: &[(IpAddr, IpAddr)]) -> String {
    let mut joined: Classes<u128> = Vec::new();
    let Some(&(family, _)) = classes.first() else { return String::new() };
    for (first, last) in classes.iter().map(|(first, last)| (number(*first), number(*last))) {
        match joined.last_mut() {
            Some((_, end)) if end.checked_add(1) == Some(first) => *end = last,
            _ => joined.push((first, last)),
        }
    }
    let bits = if family.is_ipv4() { 32 } else { 128 };
    join(joined.iter().map(|&(first, last)| {
        let size = (last - first).checked_add(1);
        match size {
            Some(size) if size.is_power_of_two() && first % size == 0 => {
                let prefix = bits - size.trailing_zeros();
                if prefix == bits {
                    address(first, family).to_string()
                } else {
                    format!("{}/{prefix}", address(first, family))
                }
            }
            _ => format!("{}-{}", address(first, family), address(last, family)),
        }
    }))
}

fn range((first, last): (u16, u16)) -> String {
    if first == last { first.to_string() } else { format!("{first}-{last}") }
}

fn join(words: impl Iterator<Item = String>) -> String {
    let words: Vec<String> = words.collect();
    let more = words.len().saturating_sub(MAX_RANGES);
    let shown = words[..words.len() - more].join(", ");
    if more > 0 { format!("{shown} and {more} more ranges") } else { shown }
}

fn for_each_match(chains: &Chains, each: &mut dyn FnMut(&Predicate)) {
    fn visit(condition: &Predicate, each: &mut dyn FnMut(&Predicate)) {
        match condition {
            Predicate::Not(inner) => visit(inner, each),
            other => each(other),
        }
    }
    let rules = chains.chains.iter().flat_map(|chain| &chain.rules);
    rules.flat_map(|rule| &rule.conditions).for_each(|condition| visit(condition, each));
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

/// Returns the address of a number in the family of another address.
fn address(number: u128, family: IpAddr) -> IpAddr {
    match family {
        // Numbers of this family fit.
        IpAddr::V4(_) => IpAddr::V4(u32::try_from(number).unwrap_or(u32::MAX).into()),
        IpAddr::V6(_) => IpAddr::V6(number.into()),
    }
}
