//! Backend `iptables`: runs `iptables-restore`, for kernels without nf_tables. Acts on the network namespace of the calling thread, which
//! child processes inherit.
//!
//! Rules in built-in chains have the comment [`OWNER_COMMENT`], which identifies them when they are replaced or removed;
//! apart from that the text is that of [`restore_text`](restore::restore_text). A call is atomic per table only. If one fails, newly added
//! rules are removed, and rules that replaced older ones stay. `programs.rs` finds the programs.

use std::fmt::Write as _;

mod process;
mod programs;

use crate::outcome::ApplyOutcome;
use iptables_rules::RuleSet;
use iptables_rules::names::{OWNER_COMMENT, chain};
use iptables_rules::restore::parse::{self, Line, SavedText};
use iptables_rules::restore::{self, RestoreFamily, rule_line, write_rules};
use iptables_rules::ruleset::{Action, Families, Match, Rule, Table};
pub use process::IptablesError;
use programs::IptablesPrograms;
pub use programs::IptablesVariant;

/// Attempts at a change while other programs change the rules or hold the lock.
const ATTEMPTS: usize = 5;

/// Installs the rules of both families. A family whose rules are in place is left alone, unless `force` is set.
///
/// # Errors
/// See [`IptablesError`]. A family that had no rules of ours has none then; any other has its old or its new ones, so that a meshed pod is
/// never without rules.
pub fn apply(rules: &RuleSet, variant: Option<IptablesVariant>, force: bool) -> Result<ApplyOutcome, IptablesError> {
    let programs = IptablesPrograms::find(variant)?;
    // Families without rules of ours before this call. A failed call may have changed some of their tables.
    let mut created = Vec::new();
    let (mut sent, mut had_some) = (false, false);
    for family in RestoreFamily::ALL {
        match change_family(&programs, rules, family, force, &mut created) {
            Ok(changed) => {
                had_some |= changed.had_some;
                sent |= changed.sent;
            }
            Err(error) => {
                for family in created {
                    // The first error is the cause; an error of the cleanup would hide it.
                    let _ = change_family(&programs, &RuleSet::default(), family, true, &mut Vec::new());
                }
                return Err(error);
            }
        }
    }
    Ok(match (sent, had_some) {
        (false, _) => ApplyOutcome::Unchanged,
        (true, false) => ApplyOutcome::Created,
        (true, true) => ApplyOutcome::Replaced,
    })
}

/// Result of a change of one family.
struct FamilyChange {
    /// Whether there were rules or chains of ours before.
    had_some: bool,
    /// Whether a text was sent.
    sent: bool,
}

/// Replaces our rules of one family in one call. Retries when another program changes the rules or holds the lock.
fn change_family(
    programs: &IptablesPrograms,
    rules: &RuleSet,
    family: RestoreFamily,
    force: bool,
    created: &mut Vec<RestoreFamily>,
) -> Result<FamilyChange, IptablesError> {
    let mut attempt = 1;
    loop {
        let Some(saved) = saved_for(programs, rules, family)? else {
            return Ok(FamilyChange { had_some: false, sent: false });
        };
        let current = parse::parse(&saved);
        let had_some = current.lines.iter().any(is_ours) || own_chains(&current).next().is_some();
        let text = replacement_text(&current, rules, family);
        if text.is_empty() || (!force && differences(&current, rules, family).is_empty()) {
            return Ok(FamilyChange { had_some, sent: false });
        }
        if !had_some {
            created.push(family);
        }
        match programs.restore(family, text) {
            Ok(()) => return Ok(FamilyChange { had_some, sent: true }),
            Err(error) if error.is_contention() && attempt < ATTEMPTS => attempt += 1,
            Err(error) => return Err(error),
        }
    }
}

/// Removes our rules and chains of both families; `false` if there were none.
pub fn remove(variant: Option<IptablesVariant>) -> Result<bool, IptablesError> {
    let none = RuleSet { families: Families::V4, ..RuleSet::default() };
    Ok(apply(&none, variant, false)? != ApplyOutcome::Unchanged)
}

/// Returns the wanted variant, or the one that fits the namespace of the calling thread.
pub fn detect_variant(wanted: Option<IptablesVariant>) -> Result<IptablesVariant, IptablesError> {
    Ok(IptablesPrograms::find(wanted)?.variant())
}

/// Compares the rules in the kernel with the expected ones: one line per difference. A rule with the name of a group always differs, as the
/// kernel stores the id.
pub fn verify(expected: &RuleSet, variant: Option<IptablesVariant>) -> Result<Vec<String>, IptablesError> {
    let programs = IptablesPrograms::find(variant)?;
    let mut lines = Vec::new();
    for family in RestoreFamily::ALL {
        if let Some(saved) = saved_for(&programs, expected, family)? {
            lines.extend(differences(&parse::parse(&saved), expected, family));
        }
    }
    Ok(lines)
}

/// Returns the output of the save program of a variant. The legacy program creates missing tables.
pub fn save(variant: IptablesVariant, family: RestoreFamily) -> Result<String, IptablesError> {
    IptablesPrograms::find(Some(variant))?.save(family)
}

/// Compares the output of a save program with the expected rules of its family: one line per difference.
pub fn compare_saved(saved: &str, expected: &RuleSet, family: RestoreFamily) -> Vec<String> {
    differences(&parse::parse(saved), expected, family)
}

/// Returns the output of the save program; `None` if IPv6 is neither wanted nor available.
fn saved_for(
    programs: &IptablesPrograms,
    rules: &RuleSet,
    family: RestoreFamily,
) -> Result<Option<String>, IptablesError> {
    match programs.save(family) {
        Err(IptablesError::Missing { .. } | IptablesError::Failed { .. })
            if family == RestoreFamily::V6 && rules.families == Families::V4 =>
        {
            Ok(None)
        }
        other => other.map(Some),
    }
}

/// Returns whether a rule in a built-in chain is ours: it has our comment, or jumps to one of our chains.
fn is_ours(line: &Line<'_>) -> bool {
    !chain::ALL.contains(&line.chain)
        && (line.has("--comment", |comment| comment == OWNER_COMMENT)
            || line.has("-j", |target| chain::ALL.contains(&target)))
}

fn own_chains<'t, 'a>(text: &'t SavedText<'a>) -> impl Iterator<Item = (Table, &'a str)> + 't {
    text.chains.iter().copied().filter(|(_, chain)| chain::ALL.contains(chain))
}

/// Returns one line for each chain that differs.
fn differences(current: &SavedText<'_>, rules: &RuleSet, family: RestoreFamily) -> Vec<String> {
    let mut lines = Vec::new();
    for table in Table::ALL {
        let wanted_chains = restore::custom_chains(&restore::rules_in_table(rules, table, family));
        for name in [chain::PREROUTING, chain::BUILTIN_OUTPUT].into_iter().chain(chain::ALL) {
            let place = format!("{} {} {name}", family.tool(), table.name());
            let own = chain::ALL.contains(&name);
            if own && wanted_chains.contains(&name) != own_chains(current).any(|chain| chain == (table, name)) {
                lines.push(format!(
                    "{place}: {}",
                    if wanted_chains.contains(&name) { "is missing" } else { "is stale" }
                ));
                continue;
            }
            let wanted: Vec<_> = rules
                .chain_rules(table, name, family.any_address())
                .into_iter()
                .filter(|_| family.is_among(rules.families))
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
                lines.push(format!("{place}: rule {} differs", at + 1));
            }
        }
    }
    lines
}

/// Returns a rule in a form that does not depend on its spelling.
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

/// Formats the input of a restore call that removes our current rules and adds the planned ones.
fn replacement_text(current: &SavedText<'_>, rules: &RuleSet, family: RestoreFamily) -> String {
    let mut text = String::new();
    for table in Table::ALL {
        let wanted = restore::rules_in_table(rules, table, family);
        let mut section = String::new();
        // Writing to a String cannot fail. Jumps are deleted first, as a chain cannot be deleted while rules jump to it.
        for line in current.lines.iter().filter(|line| line.table == table && is_ours(line)) {
            let _ = writeln!(section, "-D {} {}", line.chain, line.spec);
        }
        for command in ["-F", "-X"] {
            for (_, name) in own_chains(current).filter(|(of, _)| *of == table) {
                let _ = writeln!(section, "{command} {name}");
            }
        }
        write_rules(&mut section, &wanted, line_with_comment);
        if !section.is_empty() {
            let _ = write!(text, "* {}\n{section}COMMIT\n", table.name());
        }
    }
    text
}

fn line_with_comment(rule: &Rule) -> String {
    let line = rule_line(rule);
    if chain::ALL.contains(&rule.chain) {
        return line;
    }
    line.replacen(" -j ", &format!(" -m comment --comment {OWNER_COMMENT} -j "), 1)
}

#[cfg(test)]
mod tests;
