//! Lists of networks and ports: when they become sets, and what those sets hold.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::program::{Elements, IpFamily, SetDef, Test};
use iptables_rules::ruleset::Reason;

/// Up to here rules are cheaper than a set: 7 ns each per new connection, and no set to create.
const RULES_AT_MOST: usize = 4;

/// The element in which the rules of a bundle differ.
#[derive(Debug)]
pub(super) enum Slot {
    /// They have none.
    None,
    /// Destination networks, all of one family.
    Nets(Vec<IpNet>),
    /// Destination ports.
    Ports(Vec<u16>),
}

impl Slot {
    pub(super) const fn is_none(&self) -> bool {
        matches!(self, Self::None)
    }

    /// Whether the elements of the other belong into the same list.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Nets(a), Self::Nets(b)) => {
                a.first().map(IpNet::max_prefix_len) == b.first().map(IpNet::max_prefix_len)
            }
            (Self::Ports(_), Self::Ports(_)) => true,
            _ => false,
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

/// Short lists stay free of duplicates; long ones become sets, which drop them anyway.
fn add_missing<T: PartialEq>(list: &mut Vec<T>, more: Vec<T>) {
    for item in more {
        if list.len() > RULES_AT_MOST || !list.contains(&item) {
            list.push(item);
        }
    }
}

/// Whether the list is long enough for a set.
pub(super) fn is_list(slot: &Slot) -> bool {
    match slot {
        Slot::None => false,
        Slot::Nets(nets) => nets.len() > RULES_AT_MOST,
        Slot::Ports(ports) => ports.len() > RULES_AT_MOST,
    }
}

/// Name of a set, without a number: what asked for it, and what it holds.
pub(super) fn stem(reason: Reason, slot: &Slot, transport: Option<u8>) -> String {
    let what = match reason {
        Reason::ExcludedInboundPort | Reason::Tunnel => "excluded-inbound",
        Reason::InboundPort => "inbound",
        Reason::ExcludedOutboundPort | Reason::ExcludedOutboundCidr => "excluded-outbound",
        Reason::OutboundPort | Reason::OutboundCidr => "outbound",
        Reason::Dns => "dns",
        Reason::ReroutedInterface => "rerouted",
        _ => "list",
    };
    let kind = match (slot, transport) {
        (Slot::Nets(nets), _) if matches!(nets.first(), Some(IpNet::V6(_))) => "ipv6",
        (Slot::Nets(_), _) => "ipv4",
        (_, Some(17)) => "udp",
        _ => "tcp",
    };
    format!("{what}-{kind}")
}

/// The set of a list, under a name that the table does not have yet, and the test that looks in it.
pub(super) fn set(taken: &[SetDef], stem: &str, slot: Slot) -> (SetDef, Test) {
    let mut name = stem.to_owned();
    let mut number = 1;
    while taken.iter().any(|set| set.name == name) {
        number += 1;
        name = format!("{stem}-{number}");
    }
    let (elements, test) = match slot {
        Slot::Nets(nets) => match nets.first() {
            Some(IpNet::V6(_)) => (v6(nets), Test::DestinationIn(IpFamily::V6, name.clone().into())),
            _ => (v4(nets), Test::DestinationIn(IpFamily::V4, name.clone().into())),
        },
        Slot::Ports(mut ports) => {
            ports.sort_unstable();
            ports.dedup();
            (Elements::Ports(ports), Test::DestinationPortIn(name.clone().into()))
        }
        Slot::None => (Elements::Ports(Vec::new()), Test::DestinationPortIn(name.clone().into())),
    };
    (SetDef { name: name.into(), elements }, test)
}

fn v4(nets: Vec<IpNet>) -> Elements {
    let ranges = nets.into_iter().filter_map(|net| match net {
        IpNet::V4(net) => Some((net.network(), net.broadcast())),
        IpNet::V6(_) => None,
    });
    Elements::V4(join(ranges.collect(), |a: Ipv4Addr| a.to_bits().checked_add(1).map(Ipv4Addr::from_bits)))
}

fn v6(nets: Vec<IpNet>) -> Elements {
    let ranges = nets.into_iter().filter_map(|net| match net {
        IpNet::V6(net) => Some((net.network(), net.broadcast())),
        IpNet::V4(_) => None,
    });
    Elements::V6(join(ranges.collect(), |a: Ipv6Addr| a.to_bits().checked_add(1).map(Ipv6Addr::from_bits)))
}

/// Sorted, and with overlapping and adjacent ranges joined: the kernel refuses overlaps.
pub(super) fn join<T: Ord + Copy>(mut ranges: Vec<(T, T)>, next: impl Fn(T) -> Option<T>) -> Vec<(T, T)> {
    ranges.sort_unstable();
    let mut joined: Vec<(T, T)> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match joined.last_mut() {
            Some(previous) if next(previous.1).is_none_or(|after| first <= after) => previous.1 = previous.1.max(last),
            _ => joined.push((first, last)),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(texts: &[&str]) -> Slot {
        Slot::Nets(texts.iter().map(|text| text.parse().unwrap()).collect())
    }

    fn shown(texts: &[&str]) -> String {
        set(&[], "list", nets(texts)).0.elements.to_string()
    }

    #[test]
    fn joins_networks_that_overlap_or_touch() {
        assert_eq!(shown(&["10.1.0.0/16", "10.0.0.0/8", "10.255.255.255/32"]), "10.0.0.0/8");
        assert_eq!(shown(&["10.0.0.0/8", "11.0.0.0/8", "12.0.0.0/8"]), "10.0.0.0-12.255.255.255");
        assert_eq!(shown(&["192.0.2.9/32", "192.0.2.7/32"]), "192.0.2.7, 192.0.2.9");
        assert_eq!(shown(&["255.0.0.0/8", "0.0.0.0/0"]), "0.0.0.0/0");
        assert_eq!(shown(&["ff00::/8", "fe00::/8", "::1/128"]), "::1, fe00::/7");
    }

    #[test]
    fn a_handful_stays_rules() {
        assert!(!is_list(&Slot::Ports(vec![1, 2, 3, 4])));
        assert!(is_list(&Slot::Ports(vec![1, 2, 3, 4, 5])));
        let mut repeated = Slot::Ports(vec![1]);
        (0..9).for_each(|_| repeated.append(Slot::Ports(vec![1])));
        assert!(!is_list(&repeated));
    }

    #[test]
    fn families_do_not_share_a_list() {
        assert!(!nets(&["10.0.0.0/8"]).is_like(&nets(&["fd00::/8"])));
        assert!(nets(&["10.0.0.0/8"]).is_like(&nets(&["11.0.0.0/8"])));
    }

    #[test]
    fn a_second_list_of_a_kind_gets_a_number() {
        let (first, _) = set(&[], "outbound-tcp", Slot::Ports(vec![2, 1, 2]));
        let (second, test) = set(std::slice::from_ref(&first), "outbound-tcp", Slot::Ports(vec![3]));
        assert_eq!(first.elements, Elements::Ports(vec![1, 2]));
        assert_eq!(second.name, "outbound-tcp-2");
        assert_eq!(test, Test::DestinationPortIn("outbound-tcp-2".into()));
    }
}
