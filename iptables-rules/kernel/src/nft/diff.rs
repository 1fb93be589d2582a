//! Compares two [`Program`]s.

use super::program::{ChainDef, Elements, Program, TABLE, TableDef};

/// Differences that are described, of one chain and in all; the others are counted.
const MAX_CHAIN_LINES: usize = 50;
const MAX_LINES: usize = 200;

/// Returns one line for each difference, up to a limit.
pub(super) fn differences(expected: &Program, found: &Program) -> Vec<String> {
    let mut lines = Vec::new();
    for table in &expected.tables {
        match found.tables.iter().find(|other| other.family == table.family) {
            Some(other) => tables(table, other, &mut lines),
            None => lines.push(format!("table {} {TABLE} is missing", table.family.name())),
        }
    }
    for other in found.tables.iter().filter(|other| expected.tables.iter().all(|table| table.family != other.family)) {
        lines.push(format!("table {} {TABLE} is unexpected", other.family.name()));
    }
    let more = lines.len().saturating_sub(MAX_LINES);
    if more > 0 {
        lines.truncate(MAX_LINES);
        lines.push(format!("and {more} more differences"));
    }
    lines
}

fn tables(expected: &TableDef, found: &TableDef, lines: &mut Vec<String>) {
    let name = expected.family.name();
    if expected.flags != found.flags {
        lines.push(format!("table {name} {TABLE} has flags {:#x} instead of {:#x}", found.flags, expected.flags));
    }
    for set in &expected.sets {
        match found.sets.iter().find(|other| other.name == set.name) {
            None => lines.push(format!("set {} is missing", set.name)),
            Some(other) if other.elements != set.elements => {
                lines.push(elements(&set.name, &set.elements, &other.elements));
            }
            Some(_) => {}
        }
    }
    for other in found.sets.iter().filter(|other| expected.sets.iter().all(|set| set.name != other.name)) {
        lines.push(format!("set {} is unexpected", other.name));
    }
    for chain in &expected.chains {
        match found.chains.iter().find(|other| other.name == chain.name) {
            Some(other) => chains(chain, other, lines),
            None => lines.push(format!("chain {} is missing", chain.name)),
        }
    }
    for other in found.chains.iter().filter(|other| expected.chains.iter().all(|chain| chain.name != other.name)) {
        lines.push(format!("chain {} is unexpected", other.name));
    }
}

fn chains(expected: &ChainDef, found: &ChainDef, lines: &mut Vec<String>) {
    let name = &expected.name;
    if expected.hook != found.hook {
        let words =
            |chain: &ChainDef| chain.hook.as_ref().map_or_else(|| "no hook".to_owned(), |hook| format!("\"{hook}\""));
        lines.push(format!("chain {name} has {} instead of {}", words(found), words(expected)));
    }
    // Skips equal heads and tails, so that an additional rule does not make all following rules differ.
    let head = expected.rules.iter().zip(&found.rules).take_while(|(a, b)| a == b).count();
    let (expected, found) = (&expected.rules[head..], &found.rules[head..]);
    let tail = expected.iter().rev().zip(found.iter().rev()).take_while(|(a, b)| a == b).count();
    let (expected, found) = (&expected[..expected.len() - tail], &found[..found.len() - tail]);
    let count = expected.len().max(found.len());
    for n in 0..count.min(MAX_CHAIN_LINES) {
        let number = head + n + 1;
        lines.push(match (expected.get(n), found.get(n)) {
            (Some(a), Some(b)) => format!("rule {number} of chain {name} differs: expected \"{a}\", found \"{b}\""),
            (Some(a), None) => format!("rule {number} of chain {name} is missing: \"{a}\""),
            (None, Some(b)) => format!("rule {number} of chain {name} is unexpected: \"{b}\""),
            (None, None) => continue,
        });
    }
    if count > MAX_CHAIN_LINES {
        lines.push(format!("and {} more rules of chain {name} differ", count - MAX_CHAIN_LINES));
    }
}

fn elements(name: &str, expected: &Elements, found: &Elements) -> String {
    /// Returns up to five elements that are only in `a`, and their number.
    fn some<T: Ord + Clone>(a: &[T], b: &[T], wrap: fn(Vec<T>) -> Elements) -> (String, usize) {
        let only: Vec<T> = a.iter().filter(|item| b.binary_search(item).is_err()).cloned().collect();
        let count = only.len();
        (wrap(only.into_iter().take(5).collect()).to_string(), count)
    }
    let (missing, extra) = match (expected, found) {
        (Elements::V4(a), Elements::V4(b)) => (some(a, b, Elements::V4), some(b, a, Elements::V4)),
        (Elements::V6(a), Elements::V6(b)) => (some(a, b, Elements::V6), some(b, a, Elements::V6)),
        (Elements::Ports(a), Elements::Ports(b)) => (some(a, b, Elements::Ports), some(b, a, Elements::Ports)),
        (_, other) => return format!("set {name} holds {other} instead of the expected elements"),
    };
    let mut line = format!("set {name} differs");
    for (word, (text, count)) in [("missing", missing), ("unexpected", extra)] {
        if count > 0 {
            let more = if count > 5 { ", ..." } else { "" };
            line.extend(["; ", &count.to_string(), " ", word, ": ", &text, more]);
        }
    }
    line
}
