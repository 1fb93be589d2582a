//! Chains in the output of `iptables-save`, ours and foreign.

use std::collections::{HashMap, HashSet};

use super::chains::{Base, Chain, Chains, Effect, Rule};
use super::plan::{effects, hook, priority};
use super::predicate::Predicate;
use crate::restore::parse::{self, Words};
use crate::ruleset::{Position, Table};

impl Chains {
    /// Parses the output of `iptables-save` or `ip6tables-save`, or the input of the programs that restore it. Unknown conditions and
    /// actions are kept as such. Tables that are not used for capture (`filter`, `security`) are left out.
    pub fn from_iptables_save(text: &str) -> Self {
        let parsed = parse::parse(text);
        let mut chains = Self::default();
        let mut indices = HashMap::new();
        let mut index_of = |chains: &mut Self, table: Table, name| {
            *indices.entry((table, name)).or_insert_with(|| chains.push_chain(table.name(), name))
        };
        for &(table, chain) in &parsed.chains {
            let index = index_of(&mut chains, table, chain);
            if let Some(found) = chains.chains.get_mut(index) {
                found.accepts = !parsed.dropping.contains(&(table, chain));
            }
        }
        let known: HashSet<_> = parsed.chains.iter().copied().collect();
        for line in &parsed.lines {
            let index = index_of(&mut chains, line.table, line.chain);
            let rule = rule(line.spec, |name| known.contains(&(line.table, name)));
            if let Some(chain) = chains.chains.get_mut(index) {
                match line.position {
                    Position::Append => chain.rules.push(rule),
                    Position::Insert(at) => chain.rules.insert(at.saturating_sub(1).min(chain.rules.len()), rule),
                }
            }
        }
        for index in 0..chains.chains.len() {
            let acts = |chain: &&Chain| !chain.rules.is_empty() || !chain.accepts;
            let Some(chain) = chains.chains.get(index).filter(acts) else { continue };
            let table = Table::ALL.into_iter().find(|table| table.name() == chain.table);
            if let Some((hook, table)) = hook(&chain.name).zip(table) {
                chains.add_base(Base { hook, priority: priority(table), nat: table == Table::Nat, chain: index });
            }
        }
        chains.infer_reasons()
    }
}

fn rule(spec: &str, is_chain: impl Fn(&str) -> bool) -> Rule {
    let mut words: Vec<&str> = Words(spec).collect();
    let target = words.iter().position(|&word| word == "-j" || word == "-g");
    let target = target.map(|at| words.split_off(at));
    Rule {
        conditions: conditions(&words),
        effects: target.map_or_else(Vec::new, |words| target_effects(&words, is_chain)),
        text: spec.to_owned(),
        reason: None,
    }
}

fn conditions(words: &[&str]) -> Vec<Predicate> {
    let (mut conditions, mut module, mut rest) = (Vec::new(), "", words);
    while let Some((&first, after)) = rest.split_first() {
        let (negated, option, after) = match (first, after.split_first()) {
            ("!", Some((&option, after))) => (true, option, after),
            _ => (false, first, after),
        };
        let length = after.iter().take_while(|word| !word.starts_with('-') && **word != "!").count();
        let (values, next) = after.split_at(length);
        rest = next;
        let value = values.first().copied().unwrap_or_default();
        match option {
            "-m" => module = value,
            "--comment" => {}
            _ if values.len() != 1 => conditions.push(unknown(option, values, negated)),
            _ => conditions.push(condition(option, value, module, negated)),
        }
    }
    conditions
}

fn condition(option: &str, value: &str, module: &str, negated: bool) -> Predicate {
    if let Some(planned) = parse::condition(option, value, module, negated) {
        return Predicate::Planned(planned);
    }
    let straight = parse::condition(option, value, module, false).map(Predicate::Planned);
    match straight.or_else(|| (option == "-p").then(|| transport(value)).flatten()) {
        Some(straight) if negated => Predicate::Not(Box::new(straight)),
        Some(straight) => straight,
        None => unknown(option, &[value], negated),
    }
}

/// Parses a protocol that plans do not use, by name or number.
fn transport(name: &str) -> Option<Predicate> {
    let number = match name {
        "icmp" => 1,
        "ipv6-icmp" => 58,
        number => number.parse().ok()?,
    };
    Some(Predicate::Transport(number))
}

fn unknown(option: &str, values: &[&str], negated: bool) -> Predicate {
    let words = [if negated { "! " } else { "" }, option, if values.is_empty() { "" } else { " " }, &values.join(" ")];
    Predicate::Unknown(words.concat())
}

fn target_effects(words: &[&str], is_chain: impl Fn(&str) -> bool) -> Vec<Effect> {
    match words {
        ["-g", chain] => vec![Effect::Goto((*chain).to_owned())],
        ["-j", chain] if is_chain(chain) => vec![Effect::Jump((*chain).to_owned())],
        ["-j", target @ ..] => match parse::action(target.iter().copied()) {
            Some(action) => effects(action),
            None => vec![Effect::Unknown(target.join(" "))],
        },
        _ => Vec::new(),
    }
}
