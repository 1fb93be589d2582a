//! Describes classes of packets.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::super::space::{Dimension, NO_OWNER, Ranges, STATES, TCP, UDP};
use super::super::walk::Direction;
use super::PacketClass;
use crate::restore::RestoreFamily;

/// Ranges that a description lists; the rest is counted.
const MAX_RANGES: usize = 8;

impl fmt::Display for PacketClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direction = match self.direction {
            Direction::Inbound => "inbound",
            Direction::Outbound => "outbound",
        };
        let family = if !self.has_any_address() {
            ""
        } else if self.family == RestoreFamily::V4 {
            " IPv4"
        } else {
            " IPv6"
        };
        write!(f, "{direction}{family} {}", self.transport())?;
        let phrases = [
            (Dimension::State, " in state "),
            (Dimension::Interface, " over "),
            (Dimension::Source, " from "),
            (Dimension::SourcePort, " from port "),
            (Dimension::Uid, " of uid "),
            (Dimension::Gid, " of gid "),
            (Dimension::Destination, " to "),
            (Dimension::DestinationPort, " to port "),
            (Dimension::Mark, " with mark "),
            (Dimension::ConnectionMark, " with connection mark "),
        ];
        for (dimension, phrase) in phrases {
            let phrase = match dimension {
                Dimension::Gid if self.ranges.contains_key(&Dimension::Uid) => " and gid ",
                _ => phrase,
            };
            if let Some(values) = self.values(dimension) {
                write!(f, "{phrase}{values}")?;
            }
        }
        Ok(())
    }
}

impl PacketClass {
    /// Describes the values of a dimension, such as `10.0.0.0/8` or `other than 1337`; `None` if the class has all.
    pub fn values(&self, dimension: Dimension) -> Option<String> {
        let ranges = self.ranges.get(&dimension)?;
        match dimension {
            Dimension::State => states(ranges),
            Dimension::Interface => Some(self.interfaces(ranges)),
            Dimension::Uid | Dimension::Gid => Some(owners(ranges)),
            Dimension::Transport => Some(self.transport()),
            _ => Some(shorter(ranges, dimension.last(self.family), |range| self.range(dimension, range))),
        }
    }

    fn transport(&self) -> String {
        let name = |number: u128| match number {
            TCP => "TCP".to_owned(),
            UDP => "UDP".to_owned(),
            number => format!("protocol {number}"),
        };
        let Some(ranges) = self.ranges.get(&Dimension::Transport) else { return "packets".to_owned() };
        let last = Dimension::Transport.last(self.family);
        let words = |ranges: &Ranges| -> Option<String> {
            let numbers: Vec<u128> = ranges.iter().flat_map(|(first, last)| *first..=*last).take(MAX_RANGES).collect();
            (numbers.len() < MAX_RANGES).then(|| numbers.into_iter().map(name).collect::<Vec<_>>().join(" and "))
        };
        words(ranges)
            .or_else(|| words(&complement(ranges, last)).map(|others| format!("packets other than {others}")))
            .unwrap_or_else(|| format!("packets of protocols {}", join(ranges, plain)))
    }

    fn interfaces(&self, ranges: &Ranges) -> String {
        let named = |inside: bool| -> Vec<&str> {
            let names = (0_u128..).zip(&self.names.interfaces);
            let has = |index: u128| ranges.iter().any(|(first, last)| (*first..=*last).contains(&index));
            names.filter(|(index, _)| has(*index) == inside).map(|(_, name)| name.as_str()).collect()
        };
        let has_others = ranges.last().is_some_and(|(_, last)| *last == Dimension::Interface.last(self.family));
        if has_others { format!("interfaces other than {}", named(false).join(", ")) } else { named(true).join(", ") }
    }

    fn range(&self, dimension: Dimension, (first, last): (u128, u128)) -> String {
        if !matches!(dimension, Dimension::Source | Dimension::Destination) {
            return plain((first, last));
        }
        let address = |bits: u128| match self.family {
            // The dimension has 32 bits.
            RestoreFamily::V4 => Ipv4Addr::from_bits(u32::try_from(bits).unwrap_or(u32::MAX)).to_string(),
            RestoreFamily::V6 => Ipv6Addr::from_bits(bits).to_string(),
        };
        let size = (last - first).wrapping_add(1);
        if first == last {
            address(first)
        } else if size.is_power_of_two() && first & (size - 1) == 0 {
            let length = u32::from(dimension.width(self.family)) - size.trailing_zeros();
            format!("{}/{length}", address(first))
        } else {
            format!("{}-{}", address(first), address(last))
        }
    }
}

/// New and related packets are the first ones of connections, which need no word.
fn states(ranges: &Ranges) -> Option<String> {
    if *ranges == [(0, 1)] {
        return None;
    }
    let indices = ranges.iter().flat_map(|(first, last)| *first..=*last);
    let names = indices.filter_map(|index| STATES.get(usize::try_from(index).ok()?).map(ToString::to_string));
    Some(names.collect::<Vec<_>>().join(" or "))
}

/// Describes users or groups. Packets without a socket are named only where they are the only ones.
fn owners(ranges: &Ranges) -> String {
    let owned: Ranges = ranges
        .iter()
        .filter(|(first, _)| *first < NO_OWNER)
        .map(|(first, last)| (*first, (*last).min(NO_OWNER - 1)))
        .collect();
    if owned.is_empty() {
        return "none (sent by the kernel)".to_owned();
    }
    shorter(&owned, NO_OWNER - 1, plain)
}

/// Describes ranges, or what they leave out if that is shorter.
fn shorter(ranges: &Ranges, last: u128, text: impl Fn((u128, u128)) -> String) -> String {
    let others = complement(ranges, last);
    if others.is_empty() {
        "any".to_owned()
    } else if others.len() < ranges.len() || (others.len() == ranges.len() && size(&others) < size(ranges)) {
        format!("other than {}", join(&others, text))
    } else {
        join(ranges, text)
    }
}

fn size(ranges: &Ranges) -> u128 {
    ranges.iter().fold(0, |sum: u128, (first, last)| sum.saturating_add(last - first))
}

fn complement(ranges: &Ranges, last: u128) -> Ranges {
    let mut start = Some(0);
    let mut others = Ranges::new();
    for (first, end) in ranges {
        if let Some(start) = start.filter(|start| start < first) {
            others.push((start, first - 1));
        }
        start = end.checked_add(1).filter(|next| *next <= last);
    }
    others.extend(start.map(|start| (start, last)));
    others
}

fn join(ranges: &Ranges, text: impl Fn((u128, u128)) -> String) -> String {
    let mut words: Vec<String> = ranges.iter().take(MAX_RANGES).map(|range| text(*range)).collect();
    if ranges.len() > MAX_RANGES {
        words.push(format!("{} more", ranges.len() - MAX_RANGES));
    }
    words.join(", ")
}

fn plain((first, last): (u128, u128)) -> String {
    if first == last { first.to_string() } else { format!("{first}-{last}") }
}
