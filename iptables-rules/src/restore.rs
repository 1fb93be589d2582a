//! Formats a rule set as text for `iptables-restore`: input of the backend `iptables`, and output of dry runs.
//!
//! The text equals Istio's byte for byte: tables in alphabetical order, each with the chains that its rules need, rules in program order.

use std::fmt::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::RuleSet;
use crate::names::chain;
use crate::ruleset::{Action, Families, Family, Match, Position, Protocol, Rule, Table};

pub mod parse;

/// Address family of a restore text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestoreFamily {
    /// For `iptables-restore`.
    V4,
    /// For `ip6tables-restore`.
    V6,
}

impl RestoreFamily {
    /// Both families.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// Returns the program of the family; its name is the prefix of the names of the others.
    pub const fn tool(self) -> &'static str {
        match self {
            Self::V4 => "iptables",
            Self::V6 => "ip6tables",
        }
    }

    /// Returns the unspecified address, which stands for any packet of the family.
    pub const fn any_address(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Self::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        }
    }

    /// Returns whether the text of this family contains rules for `family`.
    const fn includes(self, family: Family) -> bool {
        matches!((self, family), (_, Family::Any) | (Self::V4, Family::V4) | (Self::V6, Family::V6))
    }

    /// Returns whether this family is one of `families`.
    pub const fn is_among(self, families: Families) -> bool {
        matches!((self, families), (Self::V4, _) | (Self::V6, Families::V4AndV6))
    }
}

/// Formats the input of `iptables-restore --noflush` (or `ip6tables-restore`) that installs the rules; empty without rules of that family.
pub fn restore_text(rules: &RuleSet, family: RestoreFamily) -> String {
    let mut text = String::new();
    for table in Table::ALL {
        let of_table = rules_in_table(rules, table, family);
        if !of_table.is_empty() {
            let _ = writeln!(text, "* {}", table.name()); // writing to a String cannot fail, here and below
            write_rules(&mut text, &of_table, rule_line);
            text.push_str("COMMIT\n");
        }
    }
    text
}

/// Returns the rules of one table and family, in program order.
pub fn rules_in_table(rules: &RuleSet, table: Table, family: RestoreFamily) -> Vec<&Rule> {
    let all = rules.rules.iter().filter(|_| family.is_among(rules.families));
    all.filter(|rule| rule.table == table && family.includes(rule.family)).collect()
}

/// Writes the chains and rules of one table.
pub fn write_rules(text: &mut String, rules: &[&Rule], line: fn(&Rule) -> String) {
    for chain in custom_chains(rules) {
        let _ = writeln!(text, "-N {chain}");
    }
    for rule in rules {
        let _ = writeln!(text, "{}", line(rule));
    }
}

/// Returns the chains to create: those that have rules, in the order of their first one, then those that are only jumped to.
pub fn custom_chains(rules: &[&Rule]) -> Vec<&'static str> {
    let filled = rules.iter().map(|rule| rule.chain);
    let entered = rules.iter().filter_map(|rule| match rule.action {
        Action::Jump(chain) => Some(chain),
        _ => None,
    });
    let mut chains = Vec::new();
    for chain in filled.chain(entered) {
        if chain::ALL.contains(&chain) && !chains.contains(&chain) {
            chains.push(chain);
        }
    }
    chains
}

/// Formats a rule as a line of the text.
pub fn rule_line(rule: &Rule) -> String {
    match rule.position {
        Position::Append => format!("-A {}{}", rule.chain, Spec(rule)),
        Position::Insert(at) => format!("-I {} {at}{}", rule.chain, Spec(rule)),
    }
}

/// Formats the conditions and the action of a rule.
pub fn rule_spec(rule: &Rule) -> String {
    Spec(rule).to_string().trim_start().to_owned()
}

struct Spec<'a>(&'a Rule);

impl fmt::Display for Spec<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(rule) = self;
        for condition in &rule.matches {
            write_match(f, condition)?;
        }
        let udp = rule.matches.contains(&Match::Protocol(Protocol::Udp));
        write_action(f, rule.action, udp)
    }
}

fn write_match(f: &mut fmt::Formatter<'_>, condition: &Match) -> fmt::Result {
    let not = |negated: &bool| if *negated { "! " } else { "" };
    match condition {
        Match::Protocol(Protocol::Tcp) => f.write_str(" -p tcp"),
        Match::Protocol(Protocol::Udp) => f.write_str(" -p udp"),
        Match::InInterface(name) => write!(f, " -i {name}"),
        Match::OutInterface(name) => write!(f, " -o {name}"),
        Match::InLoopback => f.write_str(" -i lo"),
        Match::OutLoopback => f.write_str(" -o lo"),
        Match::Source { net, negated } => write!(f, " {}-s {}", not(negated), Network(*net)),
        Match::Destination { net, negated } => write!(f, " {}-d {}", not(negated), Network(*net)),
        Match::DestinationPorts { ports, negated } => match ports.as_slice() {
            [port] => write!(f, " {}--dport {port}", not(negated)),
            ports => write!(f, " -m multiport {}--dports {}", not(negated), crate::ports::print(ports)),
        },
        Match::SourcePort(port) => write!(f, " --sport {port}"),
        Match::Uid { id, negated } => write!(f, " -m owner {}--uid-owner {id}", not(negated)),
        Match::Gid { group, negated } => write!(f, " -m owner {}--gid-owner {group}", not(negated)),
        Match::StateInvalid => f.write_str(" -m conntrack --ctstate INVALID"),
        Match::StateRelatedEstablished => f.write_str(" -m conntrack --ctstate RELATED,ESTABLISHED"),
        Match::Mark { mark, negated } => write!(f, " -m mark {}--mark {mark}", not(negated)),
        Match::ConnMark(mark) => write!(f, " -m connmark --mark {mark}"),
    }
}

fn write_action(f: &mut fmt::Formatter<'_>, action: Action, udp: bool) -> fmt::Result {
    f.write_str(" -j ")?;
    match action {
        Action::Jump(chain) => f.write_str(chain),
        Action::Return => f.write_str("RETURN"),
        Action::Accept => f.write_str("ACCEPT"),
        Action::Drop => f.write_str("DROP"),
        // The option has two spellings; Istio uses `--to-port` for UDP.
        Action::Redirect(port) => write!(f, "REDIRECT --to-port{} {port}", if udp { "" } else { "s" }),
        Action::Tproxy { port, mark } => write!(f, "TPROXY --tproxy-mark {mark}/0xffffffff --on-port {port}"),
        Action::SetMark(mark) => write!(f, "MARK --set-mark {mark}"),
        Action::SaveMark => f.write_str("CONNMARK --save-mark"),
        Action::RestoreMark => f.write_str("CONNMARK --restore-mark"),
        Action::Zone(zone) => write!(f, "CT --zone {zone}"),
    }
}

/// A network as `iptables-save` prints it. Unlike Rust, `inet_ntop(3)` writes the last 32 bits of `::7f00:35` as an IPv4 address.
struct Network(IpNet);

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            IpNet::V6(net) => match net.addr().segments() {
                [0, 0, 0, 0, 0, 0, high, low] if high != 0 => {
                    let embedded = Ipv4Addr::from_bits((u32::from(high) << 16) | u32::from(low));
                    write!(f, "::{embedded}/{}", net.prefix_len())
                }
                _ => net.fmt(f),
            },
            IpNet::V4(net) => net.fmt(f),
        }
    }
}
