//! Lists of networks and ports, and the sets that long lists become.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::program::{Elements, IpFamily, SetDef, Test};
use iptables_rules::ruleset::RuleReason;

/// Up to this length rules are cheaper than a set: 7 ns per rule and new connection, and no set to create.
const MAX_RULES: usize = 4;

/// Elements in which the rules of a group differ.
#[derive(Debug)]
pub(super) enum ListMatch {
    /// No elements.
    None,
    /// Destination networks, all of one family.
    Nets(Vec<IpNet>),
    /// Destination ports.
    Ports(Vec<u16>),
}

/// Kind of the elements of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum ListKind {
    V4,
    V6,
    Ports,
}

impl ListMatch {
    pub(super) const fn is_none(&self) -> bool {
        matches!(self, Self::None)
    }

    /// Returns the kind of the elements; lists of the same kind can be joined.
    pub(super) fn kind(&self) -> Option<ListKind> {
        match self {
            Self::None => None,
            Self::Nets(nets) if matches!(nets.first(), Some(IpNet::V6(_))) => Some(ListKind::V6),
            Self::Nets(_) => Some(ListKind::V4),
            Self::Ports(_) => Some(ListKind::Ports),
        }
    }

    pub(super) fn append(&mut self, other: Self) {
        match (self, other) {
            (Self::Nets(a), Self::Nets(b)) => add_missing(a, b),
            (Self::Ports(a), Self::Ports(b)) => add_missing(a, b),
            _ => {}
        }
    }
}

/// Adds elements. Drops duplicates in short lists only; long lists become sets, which drop them anyway.
fn add_missing<T: PartialEq>(list: &mut Vec<T>, more: Vec<T>) {
    for item in more {
        if list.len() > MAX_RULES || !list.contains(&item) {
            list.push(item);
        }
    }
}

/// Returns whether the list is long enough for a set.
pub(super) fn needs_set(list: &ListMatch) -> bool {
    match list {
        ListMatch::None => false,
        ListMatch::Nets(nets) => nets.len() > MAX_RULES,
        ListMatch::Ports(ports) => ports.len() > MAX_RULES,
    }
}

/// Returns the name of a set, without a number: purpose and kind of elements.
pub(super) fn set_name(reason: RuleReason, list: &ListMatch, transport: Option<u8>) -> String {
    let what = match reason {
        RuleReason::ExcludedInboundPort | RuleReason::Tunnel => "excluded-inbound",
        RuleReason::InboundPort => "inbound",
        RuleReason::ExcludedOutboundPort | RuleReason::ExcludedOutboundCidr => "excluded-outbound",
        RuleReason::OutboundPort | RuleReason::OutboundCidr => "outbound",
        RuleReason::Dns => "dns",
        RuleReason::ReroutedInterface => "rerouted",
        _ => "list",
    };
    let kind = match (list, transport) {
        (ListMatch::Nets(nets), _) if matches!(nets.first(), Some(IpNet::V6(_))) => "ipv6",
        (ListMatch::Nets(_), _) => "ipv4",
        (_, Some(17)) => "udp",
        _ => "tcp",
    };
    format!("{what}-{kind}")
}

/// Builds the set of a list, with a name that is unique in the table, and the test that matches it.
pub(super) fn build_set(taken: &[SetDef], stem: &str, list: ListMatch) -> (SetDef, Test) {
    let mut name = stem.to_owned();
    let mut number = 1;
    while taken.iter().any(|set| set.name == name) {
        number += 1;
        name = format!("{stem}-{number}");
    }
    let (elements, test) = match list {
        ListMatch::Nets(nets) => match nets.first() {
            Some(IpNet::V6(_)) => (v6(nets), Test::DestinationIn(IpFamily::V6, name.clone().into())),
            _ => (v4(nets), Test::DestinationIn(IpFamily::V4, name.clone().into())),
        },
        ListMatch::Ports(mut ports) => {
            ports.sort_unstable();
            ports.dedup();
            (Elements::Ports(ports), Test::DestinationPortIn(name.clone().into()))
        }
        ListMatch::None => (Elements::Ports(Vec::new()), Test::DestinationPortIn(name.clone().into())),
    };
    (SetDef { name: name.into(), elements }, test)
}

fn v4(nets: Vec<IpNet>) -> Elements {
    let ranges = nets.into_iter().filter_map(|net| match net {
        IpNet::V4(net) => Some((net.network(), net.broadcast())),
        IpNet::V6(_) => None,
    });
    Elements::V4(merge_ranges(ranges.collect(), |a: Ipv4Addr| a.to_bits().checked_add(1).map(Ipv4Addr::from_bits)))
}

fn v6(nets: Vec<IpNet>) -> Elements {
    let ranges = nets.into_iter().filter_map(|net| match net {
        IpNet::V6(net) => Some((net.network(), net.broadcast())),
        IpNet::V4(_) => None,
    });
    Elements::V6(merge_ranges(ranges.collect(), |a: Ipv6Addr| a.to_bits().checked_add(1).map(Ipv6Addr::from_bits)))
}

/// Sorts ranges and merges overlapping and adjacent ones: the kernel rejects overlaps.
pub(super) fn merge_ranges<T: Ord + Copy>(mut ranges: Vec<(T, T)>, next: impl Fn(T) -> Option<T>) -> Vec<(T, T)> {
    ranges.sort_unstable();
    let mut merged: Vec<(T, T)> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match merged.last_mut() {
            Some(previous) if next(previous.1).is_none_or(|after| first <= after) => previous.1 = previous.1.max(last),
            _ => merged.push((first, last)),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(texts: &[&str]) -> ListMatch {
        ListMatch::Nets(texts.iter().map(|text| text.parse().unwrap()).collect())
    }

    fn shown(texts: &[&str]) -> String {
        build_set(&[], "list", nets(texts)).0.elements.to_string()
    }

    #[test]
    fn merges_overlapping_and_adjacent_networks() {
        assert_eq!(shown(&["10.1.0.0/16", "10.0.0.0/8", "10.255.255.255/32"]), "10.0.0.0/8");
        assert_eq!(shown(&["10.0.0.0/8", "11.0.0.0/8", "12.0.0.0/8"]), "10.0.0.0-12.255.255.255");
        assert_eq!(shown(&["192.0.2.9/32", "192.0.2.7/32"]), "192.0.2.7, 192.0.2.9");
        assert_eq!(shown(&["255.0.0.0/8", "0.0.0.0/0"]), "0.0.0.0/0");
        assert_eq!(shown(&["ff00::/8", "fe00::/8", "::1/128"]), "::1, fe00::/7");
    }

    #[test]
    fn short_lists_stay_rules() {
        assert!(!needs_set(&ListMatch::Ports(vec![1, 2, 3, 4])));
        assert!(needs_set(&ListMatch::Ports(vec![1, 2, 3, 4, 5])));
        let mut repeated = ListMatch::Ports(vec![1]);
        (0..9).for_each(|_| repeated.append(ListMatch::Ports(vec![1])));
        assert!(!needs_set(&repeated));
    }

    #[test]
    fn families_have_separate_lists() {
        assert_ne!(nets(&["10.0.0.0/8"]).kind(), nets(&["fd00::/8"]).kind());
        assert_eq!(nets(&["10.0.0.0/8"]).kind(), nets(&["11.0.0.0/8"]).kind());
    }

    #[test]
    fn second_set_of_a_kind_gets_a_number() {
        let (first, _) = build_set(&[], "outbound-tcp", ListMatch::Ports(vec![2, 1, 2]));
        let (second, test) = build_set(std::slice::from_ref(&first), "outbound-tcp", ListMatch::Ports(vec![3]));
        assert_eq!(first.elements, Elements::Ports(vec![1, 2]));
        assert_eq!(second.name, "outbound-tcp-2");
        assert_eq!(test, Test::DestinationPortIn("outbound-tcp-2".into()));
    }
}
