//! Parses rules from the text that we write, and from the output of `iptables-save`.
//!
//! The two spell the same rule differently (`--set-mark 1337` and `--set-xmark 0x539/0xffffffff`), so rules are compared as values.
//! Only rules that [`crate::plan()`] can produce are parsed; every other rule is foreign.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::config::{Group, InterfaceName};
use crate::names::{self, chain};
use crate::ruleset::{Action, Match, Position, Protocol, Table};

/// A line that appends or inserts a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line<'a> {
    /// Table of the section.
    pub table: Table,
    /// Chain, ours or foreign.
    pub chain: &'a str,
    /// Position of the rule in the chain.
    pub position: Position,
    /// SavedText of the rule, without its chain.
    pub spec: &'a str,
    /// The parsed rule; `None` for a foreign one.
    pub rule: Option<Parsed>,
}

/// Conditions and action of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed {
    /// Conditions in the order of the text.
    pub matches: Vec<Match>,
    /// Action on the packet.
    pub action: Action,
}

impl Line<'_> {
    /// Returns whether `word` is followed by a word for which `next` holds.
    pub fn has(&self, word: &str, next: impl Fn(&str) -> bool) -> bool {
        let mut after = Words(self.spec).skip_while(|&found| found != word).skip(1);
        after.next().is_some_and(next)
    }
}

/// A parsed text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SavedText<'a> {
    /// Chains that exist or are created, including built-in ones.
    pub chains: Vec<(Table, &'a str)>,
    /// Built-in chains whose policy is to drop.
    pub dropping: Vec<(Table, &'a str)>,
    /// Rules in the order of the text.
    pub lines: Vec<Line<'a>>,
    /// Lines about our tables that are neither of these, nor comments.
    pub strays: Vec<&'a str>,
}

/// Parses a text. Tables that we do not use are skipped.
pub fn parse(text: &str) -> SavedText<'_> {
    let mut parsed = SavedText::default();
    let mut table = None;
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('*') {
            table = Table::ALL.into_iter().find(|table| table.name() == name.trim());
        }
        let Some(table) = table else { continue };
        // Counters (`iptables-save -c`).
        let counted = line.strip_prefix('[').and_then(|rest| rest.split_once("] "));
        let line = counted.map_or(line, |(_, rule)| rule);
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        let (first, spec) = rest.split_once(' ').unwrap_or((rest, ""));
        match word {
            "-N" => parsed.chains.push((table, first)),
            "-A" => parsed.lines.push(rule_line(table, first, Position::Append, spec)),
            "-I" => {
                let (number, after) = spec.split_once(' ').unwrap_or((spec, ""));
                let (at, spec) = number.parse().map_or((1, spec), |at| (at, after));
                parsed.lines.push(rule_line(table, first, Position::Insert(at), spec));
            }
            "" | "COMMIT" => {}
            _ => match word.strip_prefix(':') {
                Some(chain) => {
                    parsed.chains.push((table, chain));
                    parsed.dropping.extend((first == "DROP").then_some((table, chain)));
                }
                None if word.starts_with(['#', '*']) => {}
                None => parsed.strays.push(line),
            },
        }
    }
    parsed
}

fn rule_line<'a>(table: Table, chain: &'a str, position: Position, spec: &'a str) -> Line<'a> {
    Line { table, chain, position, spec, rule: rule(spec) }
}

/// Iterator over the words of a rule; a quoted word may contain spaces.
pub struct Words<'a>(pub &'a str);

impl<'a> Iterator for Words<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let text = self.0.trim_start();
        if text.is_empty() {
            return None;
        }
        let (word, rest) = match text.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => text.split_once(' ').unwrap_or((text, "")),
        };
        self.0 = rest;
        Some(word)
    }
}

fn rule(spec: &str) -> Option<Parsed> {
    let mut words = Words(spec);
    let (mut matches, mut module, mut negated) = (Vec::new(), "", false);
    loop {
        let word = words.next()?;
        let inverted = std::mem::take(&mut negated);
        match word {
            "!" => negated = true,
            "-m" => module = words.next()?,
            "--comment" => _ = words.next()?,
            "-j" => {
                let action = action(words)?;
                return (!inverted).then_some(Parsed { matches, action });
            }
            option => matches.push(condition(option, words.next()?, module, inverted)?),
        }
    }
}

/// Parses a condition from its option and the last `-m` module; `None` for one that plans do not use.
pub fn condition(option: &str, value: &str, module: &str, negated: bool) -> Option<Match> {
    let plain = |condition: Match| (!negated).then_some(condition);
    match option {
        "-p" if value == "tcp" => plain(Match::Protocol(Protocol::Tcp)),
        "-p" if value == "udp" => plain(Match::Protocol(Protocol::Udp)),
        "-i" if value == names::LOOPBACK_INTERFACE => plain(Match::InLoopback),
        "-o" if value == names::LOOPBACK_INTERFACE => plain(Match::OutLoopback),
        "-i" => plain(Match::InInterface(InterfaceName::new(value).ok()?)),
        "-o" => plain(Match::OutInterface(InterfaceName::new(value).ok()?)),
        "-s" => Some(Match::Source { net: net(value)?, negated }),
        "-d" => Some(Match::Destination { net: net(value)?, negated }),
        "--dport" => Some(Match::DestinationPorts { ports: vec![value.parse().ok()?], negated }),
        "--dports" => {
            let ports: Result<_, _> = value.split(',').map(str::parse).collect();
            Some(Match::DestinationPorts { ports: ports.ok()?, negated })
        }
        "--sport" => plain(Match::SourcePort(value.parse().ok()?)),
        "--uid-owner" => Some(Match::Uid { id: value.parse().ok()?, negated }),
        "--gid-owner" => Some(Match::Gid { group: Group::parse(value).ok()?, negated }),
        "--ctstate" if value == "INVALID" => plain(Match::StateInvalid),
        "--ctstate" if value == "RELATED,ESTABLISHED" => plain(Match::StateRelatedEstablished),
        "--mark" if module == "connmark" => plain(Match::ConnMark(number(value)?)),
        "--mark" => Some(Match::Mark { mark: number(value)?, negated }),
        _ => None,
    }
}

/// Parses an action from the words after `-j`; `None` for one that plans do not use.
pub fn action<'a>(mut words: impl Iterator<Item = &'a str>) -> Option<Action> {
    let target = words.next()?;
    let options: Vec<&str> = words.collect();
    let action = match (target, options.as_slice()) {
        ("RETURN", []) => Action::Return,
        ("ACCEPT", []) => Action::Accept,
        ("DROP", []) => Action::Drop,
        ("REDIRECT", ["--to-port" | "--to-ports", port]) => Action::Redirect(port.parse().ok()?),
        ("TPROXY", ["--tproxy-mark", mark, "--on-port", port]) => {
            Action::Tproxy { port: port.parse().ok()?, mark: masked(mark)? }
        }
        ("TPROXY", ["--on-port", port, "--on-ip", address, "--tproxy-mark", mark]) => {
            address.parse::<IpAddr>().ok().filter(IpAddr::is_unspecified)?;
            Action::Tproxy { port: port.parse().ok()?, mark: masked(mark)? }
        }
        ("MARK", ["--set-mark", mark]) => Action::SetMark(number(mark)?),
        ("MARK", ["--set-xmark", mark]) => Action::SetMark(masked(mark)?),
        ("CONNMARK", ["--save-mark", masks @ ..]) if whole(masks) => Action::SaveMark,
        ("CONNMARK", ["--restore-mark", masks @ ..]) if whole(masks) => Action::RestoreMark,
        ("CT", ["--zone", zone]) => Action::Zone(zone.parse().ok()?),
        (chain, []) => Action::Jump(chain::ALL.into_iter().find(|&known| known == chain)?),
        _ => return None,
    };
    Some(action)
}

/// Parses a network; some writers omit the prefix length of a single address.
fn net(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

/// Parses a decimal number, or a hexadecimal one after `0x`.
fn number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// Parses a mark whose mask has all bits set.
fn masked(text: &str) -> Option<u32> {
    let (value, mask) = text.split_once('/')?;
    if number(mask)? == u32::MAX { number(value) } else { None }
}

/// Returns whether there are no masks, or masks with all bits set.
fn whole(options: &[&str]) -> bool {
    options.is_empty() || options == ["--nfmask", "0xffffffff", "--ctmask", "0xffffffff"]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::restore::{RestoreFamily, restore_text};
    use crate::ruleset::Family;

    #[test]
    fn foreign_rules_are_not_parsed() {
        for spec in [
            "-p icmp -j RETURN",
            "-j MASQUERADE",
            "-p tcp -m tcp --dport 80:90 -j RETURN",
            "-j MARK --set-xmark 0x1/0xff",
            "-m comment --comment \"no end -j RETURN",
            "-p tcp",
            "! -j RETURN",
            "",
        ] {
            assert_eq!(rule(spec), None, "{spec}");
        }
    }

    #[test]
    fn parses_comments_with_and_without_quotes() {
        let has = |spec, comment: &str| {
            let line = rule_line(Table::Nat, "PREROUTING", Position::Append, spec);
            assert_eq!(line.rule, rule("-j RETURN"), "a comment is not a condition");
            line.has("--comment", |found| found == comment)
        };
        assert!(has("-m comment --comment weir -j RETURN", "weir"));
        assert!(has("-m comment --comment \"two words\" -j RETURN", "two words"));
        assert!(!has("-m comment --comment \"not weir\" -j RETURN", "weir"));
        assert!(!has("-j RETURN", "weir"));
    }

    proptest! {
        #[test]
        fn parses_back_every_planned_rule(config in crate::arbitrary::config()) {
            let rules = crate::plan(&config).unwrap();
            for (family, other) in [(RestoreFamily::V4, Family::V6), (RestoreFamily::V6, Family::V4)] {
                if family == RestoreFamily::V6 && rules.families == crate::ruleset::Families::V4 {
                    prop_assert_eq!(restore_text(&rules, family), "");
                    continue;
                }
                let text = restore_text(&rules, family);
                let mut planned: Vec<_> = rules.rules.iter().filter(|rule| rule.family != other).collect();
                planned.sort_by_key(|rule| rule.table); // the text goes table by table
                let read = parse(&text).lines;
                prop_assert_eq!(read.len(), planned.len());
                for (line, rule) in read.iter().zip(planned) {
                    prop_assert_eq!((line.table, line.chain, line.position), (rule.table, rule.chain, rule.position));
                    let parsed = line.rule.clone().unwrap();
                    prop_assert_eq!((&parsed.matches, parsed.action), (&rule.matches, rule.action), "{}", line.spec);
                }
            }
        }

        #[test]
        fn never_panics(text in any::<String>(), words in "[*:]nat\n-[AIN] [A-Z]{1,3} [-!a-z0-9\" /.,]{0,40}") {
            parse(&text);
            parse(&words);
        }
    }
}
