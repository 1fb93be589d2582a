//! Backend `iptables`: the restore text through `iptables-restore`, where nf_tables is missing. Acts on the network namespace of the
//! calling thread, which child processes inherit.
//!
//! Rules in built-in chains carry the comment [`OWNER`], so that ours can be told from foreign ones when they are replaced or removed;
//! apart from that the text is [`restore_text`](iptables_rules::restore::restore_text)'s. One call per family is atomic per table, no more; where one
//! fails, rules go that were not there before, and rules that took the place of older ones stay.
//! Which programs are run, and how that is found out, is in `programs.rs`.

use std::fmt::Write as _;

mod process;
mod programs;

use crate::nft::Applied;
use iptables_rules::RuleSet;
use iptables_rules::names::chain;
use iptables_rules::restore::parse::{self, Line, Text};
use iptables_rules::restore::{self, RestoreFamily, rule_line, write_rules};
use iptables_rules::ruleset::{Action, Families, Match, Rule, Table};
pub use process::RestoreError;
use programs::Programs;
pub use programs::Variant;

/// Comment of our rules in built-in chains.
pub const OWNER: &str = "weir";

/// Attempts of a change that somebody else's change or lock gets in the way of.
const ATTEMPTS: usize = 5;

/// Installs the rules of both families; nothing is sent for a family whose rules are in place, unless they are to be written `anew`.
///
/// # Errors
/// See [`RestoreError`]. A family that had no rules of ours has none then; another one has its old or its new ones: a pod of the mesh
/// is never without.
pub fn apply(rules: &RuleSet, variant: Option<Variant>, anew: bool) -> Result<Applied, RestoreError> {
    let programs = Programs::find(variant)?;
    // Families in which there was nothing of ours before they were touched: a call that fails may have done a table already.
    let mut created = Vec::new();
    let (mut sent, mut had_some) = (false, false);
    for family in RestoreFamily::ALL {
        match change_family(&programs, rules, family, anew, &mut created) {
            Ok(changed) => {
                had_some |= changed.had_some;
                sent |= changed.sent;
            }
            Err(error) => {
                for family in created {
                    // The first error says what is wrong; a second one would only hide it.
                    let _ = change_family(&programs, &RuleSet::default(), family, true, &mut Vec::new());
                }
                return Err(error);
            }
        }
    }
    Ok(match (sent, had_some) {
        (false, _) => Applied::Unchanged,
        (true, false) => Applied::Created,
        (true, true) => Applied::Replaced,
    })
}

/// What a change of one family met and did.
struct Changed {
    /// Whether there was anything of ours before.
    had_some: bool,
    /// Whether a text was sent.
    sent: bool,
}

/// Turns what one family has of ours into the rules, in one call. Somebody else's change or lock makes it look and try again.
fn change_family(
    programs: &Programs,
    rules: &RuleSet,
    family: RestoreFamily,
    anew: bool,
    created: &mut Vec<RestoreFamily>,
) -> Result<Changed, RestoreError> {
    let mut attempt = 1;
    loop {
        let Some(saved) = saved_for(programs, rules, family)? else {
            return Ok(Changed { had_some: false, sent: false });
        };
        let current = parse::parse(&saved);
        let had_some = current.lines.iter().any(is_ours) || own_chains(&current).next().is_some();
        let text = change(&current, rules, family);
        if text.is_empty() || (!anew && differences(&current, rules, family).is_empty()) {
            return Ok(Changed { had_some, sent: false });
        }
        if !had_some {
            created.push(family);
        }
        match programs.restore(family, text) {
            Ok(()) => return Ok(Changed { had_some, sent: true }),
            Err(error) if error.is_contention() && attempt < ATTEMPTS => attempt += 1,
            Err(error) => return Err(error),
        }
    }
}

/// Removes our rules and chains of both families; `false` if there were none.
///
/// # Errors
/// See [`RestoreError`].
pub fn remove(variant: Option<Variant>) -> Result<bool, RestoreError> {
    let none = RuleSet { families: Families::V4, ..RuleSet::default() };
    Ok(apply(&none, variant, false)? != Applied::Unchanged)
}

/// The variant that would be used: the one asked for, or the one that serves the namespace of the calling thread.
///
/// # Errors
/// [`RestoreError::NoPrograms`].
pub fn variant_found(wanted: Option<Variant>) -> Result<Variant, RestoreError> {
    Ok(Programs::find(wanted)?.variant())
}

/// Compares the kernel's rules with the expected ones: one line per difference, empty when they are equal.
///
/// A rule with the name of a group counts as different from the kernel's, which has the id.
///
/// # Errors
/// See [`RestoreError`].
pub fn verify(expected: &RuleSet, variant: Option<Variant>) -> Result<Vec<String>, RestoreError> {
    let programs = Programs::find(variant)?;
    let mut lines = Vec::new();
    for family in RestoreFamily::ALL {
        if let Some(saved) = saved_for(&programs, expected, family)? {
            lines.extend(differences(&parse::parse(&saved), expected, family));
        }
    }
    Ok(lines)
}

/// What a variant prints of the namespace of the calling thread. The legacy one makes tables of it that are not there yet.
///
/// # Errors
/// See [`RestoreError`].
pub fn saved(variant: Variant, family: RestoreFamily) -> Result<String, RestoreError> {
    Programs::find(Some(variant))?.save(family)
}

/// Compares a listing with the expected rules of its family: one line per difference.
pub fn differences_of(saved: &str, expected: &RuleSet, family: RestoreFamily) -> Vec<String> {
    differences(&parse::parse(saved), expected, family)
}

/// What the kernel has; `None` where IPv6 is not wanted and cannot be asked for, as on machines without it.
fn saved_for(programs: &Programs, rules: &RuleSet, family: RestoreFamily) -> Result<Option<String>, RestoreError> {
    match programs.save(family) {
        Err(RestoreError::Missing { .. } | RestoreError::Failed { .. })
            if family == RestoreFamily::V6 && rules.families == Families::V4 =>
        {
            Ok(None)
        }
        other => other.map(Some),
    }
}

/// Whether a rule in a built-in chain is ours: by the comment, or because it leads to one of our chains.
fn is_ours(line: &Line<'_>) -> bool {
    !chain::ALL.contains(&line.chain)
        && (line.has("--comment", |comment| comment == OWNER) || line.has("-j", |target| chain::ALL.contains(&target)))
}

fn own_chains<'t, 'a>(text: &'t Text<'a>) -> impl Iterator<Item = (Table, &'a str)> + 't {
    text.chains.iter().copied().filter(|(_, chain)| chain::ALL.contains(chain))
}

/// One line for each chain that is not as expected.
fn differences(current: &Text<'_>, rules: &RuleSet, family: RestoreFamily) -> Vec<String> {
    let mut lines = Vec::new();
    for table in Table::ALL {
        let wanted_chains = restore::own_chains(&restore::rules_of(rules, table, family));
        for name in [chain::PREROUTING, chain::BUILTIN_OUTPUT].into_iter().chain(chain::ALL) {
            let place = format!("{} {} {name}", family.tool(), table.name());
            let own = chain::ALL.contains(&name);
            if own && wanted_chains.contains(&name) != own_chains(current).any(|chain| chain == (table, name)) {
                lines.push(format!(
                    "{place}: {}",
                    if wanted_chains.contains(&name) { "is missing" } else { "is left over" }
                ));
                continue;
            }
            let wanted: Vec<_> = rules
                .chain_rules(table, name, family.any_address())
                .into_iter()
                .filter(|_| family.is_in(rules.families))
                .map(|rule| Some(canonical(&rule.matches, rule.action)))
                .collect();
            let found: Vec<_> = current
                .lines
                .iter()
                .filter(|line| line.table == table && line.chain == name)
                .filter(|line| own || is_ours(line))
                .map(|line| line.rule.as_ref().map(|rule| canonical(&rule.matches, rule.action)))
                .collect();
            if let Some(at) = (0..wanted.len().max(found.len())).find(|&at| wanted.get(at) != found.get(at)) {
                lines.push(format!("{place}: rule {} is not the planned one", at + 1));
            }
        }
    }
    lines
}

/// A rule in a form that does not depend on how it was spelled.
fn canonical(matches: &[Match], action: Action) -> (Vec<String>, Action) {
    let mut words: Vec<String> = matches
        .iter()
        .filter_map(|condition| {
            let condition = match condition.clone() {
                Match::Source { net, negated } => Match::Source { net: net.trunc(), negated },
                Match::Destination { net, negated } => Match::Destination { net: net.trunc(), negated },
                other => other,
            };
            let everything = matches!(condition,
                Match::Source { net, negated: false } | Match::Destination { net, negated: false } if net.prefix_len() == 0);
            (!everything).then(|| format!("{condition:?}"))
        })
        .collect();
    words.sort();
    (words, action)
}

/// Input of one restore call that takes away what there is of ours and adds what is planned.
fn change(current: &Text<'_>, rules: &RuleSet, family: RestoreFamily) -> String {
    let mut text = String::new();
    for table in Table::ALL {
        let wanted = restore::rules_of(rules, table, family);
        let mut section = String::new();
        // Writing to a String cannot fail. Jumps go first: a chain can be deleted only when nothing leads to it.
        for line in current.lines.iter().filter(|line| line.table == table && is_ours(line)) {
            let _ = writeln!(section, "-D {} {}", line.chain, line.spec);
        }
        for command in ["-F", "-X"] {
            for (_, name) in own_chains(current).filter(|(of, _)| *of == table) {
                let _ = writeln!(section, "{command} {name}");
            }
        }
        write_rules(&mut section, &wanted, line_with_owner);
        if !section.is_empty() {
            let _ = write!(text, "* {}\n{section}COMMIT\n", table.name());
        }
    }
    text
}

fn line_with_owner(rule: &Rule) -> String {
    let line = rule_line(rule);
    if chain::ALL.contains(&rule.chain) {
        return line;
    }
    line.replacen(" -j ", &format!(" -m comment --comment {OWNER} -j "), 1)
}

#[cfg(test)]
mod tests;
