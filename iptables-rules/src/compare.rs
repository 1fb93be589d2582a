//! Decides whether two sets of rules treat every packet alike, and finds the packets that they treat differently; decides assertions about one set.
//!
//! ```text
//! RuleSet, nf_tables, iptables-save ─▶ Chains ──walk.rs──▶ fate of every packet, as sets ──┐
//!                                      (both)   (space.rs)  (diagram.rs)                    ├─▶ sets with different fates ─class.rs─▶ classes
//!                                                ────────▶ of the other one ───────────────┘    (fate.rs)
//! ```
//!
//! The comparison is exact: it covers all packets of the kind that [`Chains::trace`] traces (direction, interface, family, protocol,
//! addresses, ports, owner, marks, conntrack state), by the same rules, and never samples. A condition or an action that the tracer cannot
//! evaluate makes the packets that reach it [`Equivalence::Unknown`].

pub mod assertion;
mod class;
mod diagram;
mod fate;
mod space;
#[cfg(test)]
mod tests;
mod walk;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use self::class::PacketClass;
pub use self::fate::{Fate, FateAction};
pub use self::space::Dimension;
pub use self::walk::Direction;

use self::class::classes_of;
use self::diagram::{Set, TooLarge};
use self::space::{NO_OWNER, Names, Space};
use crate::RuleSet;
use crate::restore::RestoreFamily;
use crate::trace::Chains;

/// Classes that are listed for one change, family and direction.
const MAX_CLASSES: usize = 64;
const TOO_LARGE: &str = "the rules are too large to compare";

/// Result of a comparison.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Equivalence {
    /// Every packet has the same fate.
    Equal,
    /// Some packets have different fates.
    Different(Differences),
    /// No packet is known to have different fates, but some packets reach rules that cannot be evaluated; the places of these, or the
    /// limit that was exceeded.
    Unknown(Vec<String>),
}

/// Packets with different fates.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Differences {
    /// All pairs of different fates, each once.
    pub changes: Vec<Change>,
    /// Places of rules that cannot be evaluated: packets that reach them may differ as well.
    pub unknown: Vec<String>,
}

/// Packets that have one fate by the first rules, and another one by the second.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Fate by the first rules.
    pub before: Fate,
    /// Fate by the second rules.
    pub after: Fate,
    /// The packets, as disjoint classes; at least one.
    pub classes: Vec<PacketClass>,
    /// Whether there are more classes than those that are listed.
    pub is_truncated: bool,
}

/// Compares two planned rule sets.
pub fn compare(a: &RuleSet, b: &RuleSet) -> Equivalence {
    let chains = |rules: &RuleSet| RestoreFamily::ALL.map(|family| Chains::from_rule_set(rules, family.any_address()));
    compare_chains(&chains(a), &chains(b), &RestoreFamily::ALL)
}

/// Compares chains for packets of these families. Both arrays have the chains of IPv4 and of IPv6, in this order.
pub fn compare_chains(a: &[Chains; 2], b: &[Chains; 2], families: &[RestoreFamily]) -> Equivalence {
    compare_with_limit(a, b, families, MAX_CLASSES)
}

fn compare_with_limit(a: &[Chains; 2], b: &[Chains; 2], families: &[RestoreFamily], limit: usize) -> Equivalence {
    let names = Arc::new(Names::of(a.iter().chain(b)));
    let mut comparison = Comparison { names, limit, changes: BTreeMap::new(), unknown: Vec::new() };
    for ((a, b), family) in a.iter().zip(b).zip(RestoreFamily::ALL) {
        for direction in [Direction::Inbound, Direction::Outbound] {
            if families.contains(&family) && comparison.compare(a, b, family, direction).is_err() {
                comparison.unknown.push(TOO_LARGE.to_owned());
            }
        }
    }
    comparison.result()
}

struct Comparison {
    names: Arc<Names>,
    /// Limit of classes of one change, family and direction.
    limit: usize,
    changes: BTreeMap<(Fate, Fate), Change>,
    unknown: Vec<String>,
}

impl Comparison {
    fn compare(&mut self, a: &Chains, b: &Chains, family: RestoreFamily, direction: Direction) -> Result<(), TooLarge> {
        let names = Arc::clone(&self.names);
        let mut space = Space::new(family, &names)?;
        let (before, after) = (walk::walk(a, &mut space, direction)?, walk::walk(b, &mut space, direction)?);
        self.unknown.extend(before.unknown.into_keys().chain(after.unknown.into_keys()));
        let exists = existing(&mut space)?;
        for (old, from) in &before.known {
            for (new, to) in &after.known {
                if old == new {
                    continue;
                }
                let moved = space.diagram.and(*from, *to)?;
                if moved == Set::EMPTY {
                    continue;
                }
                let difference = old.difference(new, &mut space)?;
                for (set, marks_differ) in [(difference.always, false), (difference.if_marks_differ, true)] {
                    let set = space.diagram.and(moved, set)?;
                    let (certain, uncertain) = certain(set, &mut space)?;
                    if space.diagram.and(uncertain, exists)? != Set::EMPTY {
                        let groups = names.groups.iter();
                        self.unknown.extend(groups.map(|name| format!("--gid-owner {name}: a name, not a group id")));
                    }
                    // Impossible packets are left out of the classes one by one, so that classes stay simple.
                    if space.diagram.and(certain, exists)? != Set::EMPTY {
                        self.add((*old, *new), certain, &space, direction, marks_differ);
                    }
                }
            }
        }
        Ok(())
    }

    fn add(&mut self, fates: (Fate, Fate), set: Set, space: &Space<'_>, direction: Direction, marks_differ: bool) {
        let (found, is_truncated) = classes_of(set, space, &self.names, direction, marks_differ, self.limit);
        if !found.is_empty() {
            let (before, after) = fates;
            let change = self.changes.entry(fates).or_insert_with(|| Change {
                before,
                after,
                classes: Vec::new(),
                is_truncated: false,
            });
            change.classes.extend(found);
            change.is_truncated |= is_truncated;
        }
    }

    fn result(mut self) -> Equivalence {
        self.unknown.sort();
        self.unknown.dedup();
        match (self.changes.is_empty(), self.unknown.is_empty()) {
            (true, true) => Equivalence::Equal,
            (true, false) => Equivalence::Unknown(self.unknown),
            (false, _) => Equivalence::Different(Differences {
                changes: self.changes.into_values().collect(),
                unknown: self.unknown,
            }),
        }
    }
}

/// Splits a set into the packets that are in it whoever is in the groups that are known by name, and those for which that decides.
fn certain(set: Set, space: &mut Space<'_>) -> Result<(Set, Set), TooLarge> {
    let first_group = space.groups_offset();
    let certain = if space.names.groups.is_empty() { set } else { space.diagram.for_all_from(set, first_group)? };
    let uncertain = space.diagram.minus(set, certain)?;
    Ok((certain, uncertain))
}

/// Returns the packets that exist: connections are new with mark 0 only, and a socket has a user and a group.
fn existing(space: &mut Space<'_>) -> Result<Set, TooLarge> {
    let new = space.value(Dimension::State, 0)?;
    let unmarked = space.value(Dimension::ConnectionMark, 0)?;
    let impossible = space.diagram.minus(new, unmarked)?;
    let uid = space.ranges(Dimension::Uid, &[(0, NO_OWNER - 1)])?;
    let gid = space.ranges(Dimension::Gid, &[(0, NO_OWNER - 1)])?;
    let only_user = space.diagram.minus(uid, gid)?;
    let only_group = space.diagram.minus(gid, uid)?;
    let half = space.diagram.or(only_user, only_group)?;
    let impossible = space.diagram.or(impossible, half)?;
    space.diagram.complement(impossible)
}
