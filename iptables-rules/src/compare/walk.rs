//! Sends all packets of a family and direction through the chains at once: the tracer's walk, with sets of packets instead of one.

mod groups;

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use super::diagram::{Set, TooLarge};
use super::fate::Fate;
use super::space::{Changed, Dimension, SeenInterface, Space, Stage, Value};
use crate::names::LOOPBACK_INTERFACE;
use crate::trace::{Base, CONNTRACK, Chain, Chains, Effect, Hook, MAX_JUMP_DEPTH};

/// Limit of rules that are evaluated, each for all packets that reach it with equal changes.
const MAX_STEPS: usize = 200_000;

/// Direction of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// Received by the pod: through PREROUTING.
    Inbound,
    /// Sent by the pod: through OUTPUT, and PREROUTING if it comes back over `lo`.
    Outbound,
}

/// Packets by what rules have changed.
type Flow = BTreeMap<Changed, Set>;

/// Packets after a chain or a rule.
#[derive(Debug, Default)]
struct Flows {
    /// Continue behind the rule that called the chain.
    next: Flow,
    /// Continue with the next table.
    done: Flow,
}

/// Fates of all packets.
#[derive(Debug, Default)]
pub(super) struct Fates {
    pub(super) known: BTreeMap<Fate, Set>,
    /// Packets that reach a rule that cannot be evaluated, by its place.
    pub(super) unknown: BTreeMap<String, Set>,
}

struct Walk<'a, 'b> {
    chains: &'a Chains,
    space: &'a mut Space<'b>,
    targets: HashMap<(&'a str, &'a str), usize>,
    /// Chains that change nothing on packets that return from them.
    keeps: HashMap<usize, bool>,
    /// Results of chains since the start of the base chain.
    memo: HashMap<(usize, Changed, Set), Rc<Flows>>,
    steps: usize,
    fates: Fates,
}

/// Returns the fate of every packet.
///
/// # Errors
/// The chains exceed a limit.
pub(super) fn walk(chains: &Chains, space: &mut Space<'_>, direction: Direction) -> Result<Fates, TooLarge> {
    let mut targets = HashMap::with_capacity(chains.chains.len());
    for (index, chain) in chains.chains.iter().enumerate() {
        targets.entry((chain.table.as_str(), chain.name.as_str())).or_insert(index);
    }
    let (keeps, memo, fates) = (HashMap::new(), HashMap::new(), Fates::default());
    let mut walk = Walk { chains, space, targets, keeps, memo, steps: 0, fates };
    walk.traverse(direction)?;
    Ok(walk.fates)
}

impl<'a> Walk<'a, '_> {
    fn traverse(&mut self, direction: Direction) -> Result<(), TooLarge> {
        let unchanged = Changed {
            mark: Value::Mark,
            connection_mark: Value::ConnectionMark,
            redirected: None,
            to_loopback: false,
            assigned: None,
            zone: None,
        };
        let all = Flow::from([(unchanged, Set::ALL)]);
        let (none, initial) = (SeenInterface::None, SeenInterface::Initial);
        if direction == Direction::Inbound {
            let stage = Stage { input: initial, output: none, has_owner: false, tracked: false };
            let flow = self.run_hook(Hook::Prerouting, stage, all, true)?;
            return self.end(flow, false);
        }
        let stage = Stage { input: none, output: initial, has_owner: true, tracked: false };
        let mut leaving = self.run_hook(Hook::Output, stage, all, true)?;
        let mut back = Flow::new();
        for (changed, set) in &mut leaving {
            let by_lo = self.routed_to_lo(changed)?;
            let returning = self.space.diagram.and(*set, by_lo)?;
            *set = self.space.diagram.minus(*set, by_lo)?;
            self.add(&mut back, *changed, returning)?;
        }
        self.end(leaving, false)?;
        let stage = Stage { input: SeenInterface::Loopback, output: none, has_owner: false, tracked: true };
        // OUTPUT has decided about the translation of these connections.
        let back = self.run_hook(Hook::Prerouting, stage, back, false)?;
        self.end(back, true)
    }

    /// Returns the packets that leave by `lo`: redirected ones, those whose new mark is delivered locally, and those that did before.
    fn routed_to_lo(&mut self, changed: &Changed) -> Result<Set, TooLarge> {
        if changed.redirected.is_some() {
            return Ok(Set::ALL);
        }
        let lo = self.space.names.interfaces.iter().position(|name| name == LOOPBACK_INTERFACE);
        let lo = self.space.value(Dimension::Interface, lo.unwrap_or_default() as u128)?;
        let Some(delivery) = self.chains.local_delivery else { return Ok(lo) };
        let delivered = self.space.is(changed.mark, delivery.mark)?;
        let before = self.space.is(Value::Mark, delivery.mark)?;
        let rerouted = self.space.diagram.minus(delivered, before)?;
        self.space.diagram.or(lo, rerouted)
    }

    fn end(&mut self, flow: Flow, over_lo: bool) -> Result<(), TooLarge> {
        for (changed, set) in flow {
            self.settle(Fate::of(&changed, over_lo), set)?;
        }
        Ok(())
    }

    fn settle(&mut self, fate: Fate, set: Set) -> Result<(), TooLarge> {
        let known = self.fates.known.entry(fate).or_insert(Set::EMPTY);
        *known = self.space.diagram.or(*known, set)?;
        Ok(())
    }

    fn give_up(&mut self, place: String, set: Set) -> Result<(), TooLarge> {
        let known = self.fates.unknown.entry(place).or_insert(Set::EMPTY);
        *known = self.space.diagram.or(*known, set)?;
        Ok(())
    }

    fn add(&mut self, flow: &mut Flow, changed: Changed, set: Set) -> Result<(), TooLarge> {
        if set != Set::EMPTY {
            let known = flow.entry(changed).or_insert(Set::EMPTY);
            *known = self.space.diagram.or(*known, set)?;
        }
        Ok(())
    }

    fn run_hook(&mut self, hook: Hook, mut stage: Stage, mut flow: Flow, translates: bool) -> Result<Flow, TooLarge> {
        let chains = self.chains;
        for base in chains.bases.iter().filter(|base| base.hook == hook) {
            stage.tracked |= base.priority > CONNTRACK;
            if translates || !base.nat {
                flow = self.run_base_chain(base, stage, flow)?;
            }
        }
        Ok(flow)
    }

    fn run_base_chain(&mut self, base: &Base, stage: Stage, flow: Flow) -> Result<Flow, TooLarge> {
        let Some(chain) = self.chains.chains.get(base.chain) else { return Ok(flow) };
        self.memo.clear();
        let mut after = Flow::new();
        for (changed, set) in flow {
            // Only the first packet of a connection is translated, and only once.
            let concerned = match (base.nat, changed.redirected) {
                (false, _) => Set::ALL,
                (true, Some(_)) => Set::EMPTY,
                (true, None) => self.space.ranges(Dimension::State, &[(0, 1)])?,
            };
            let skips = self.space.diagram.minus(set, concerned)?;
            self.add(&mut after, changed, skips)?;
            let enters = self.space.diagram.and(set, concerned)?;
            if enters == Set::EMPTY {
                continue;
            }
            let flows = self.run_chain(base.chain, 0, stage, changed, enters)?;
            for (changed, set) in &flows.next {
                if chain.accepts {
                    self.add(&mut after, *changed, *set)?;
                } else {
                    self.settle(Fate::DROPPED, *set)?;
                }
            }
            for (changed, set) in &flows.done {
                self.add(&mut after, *changed, *set)?;
            }
        }
        Ok(after)
    }

    fn run_chain(
        &mut self,
        index: usize,
        depth: usize,
        stage: Stage,
        changed: Changed,
        set: Set,
    ) -> Result<Rc<Flows>, TooLarge> {
        if let Some(known) = self.memo.get(&(index, changed, set)) {
            return Ok(Rc::clone(known));
        }
        let mut flows = Flows::default();
        let chains = self.chains;
        let Some(chain) = chains.chains.get(index) else { return Err(TooLarge) };
        if depth >= MAX_JUMP_DEPTH {
            self.give_up(format!("chain {}: jumps nest deeper than {MAX_JUMP_DEPTH}", chain.name), set)?;
            return Ok(Rc::new(flows));
        }
        let mut current = Flow::from([(changed, set)]);
        let mut at = 0;
        while let Some(rule) = chain.rules.get(at).filter(|_| !current.is_empty()) {
            let count = self.group_length(chain, &chain.rules[at..]);
            let mut behind = Flow::new();
            for (changed, set) in current {
                let hits = self.hits(chain, (at, count), stage, &changed, set)?;
                let missed = self.space.diagram.minus(set, hits.reached)?;
                self.add(&mut behind, changed, missed)?;
                if hits.matched != Set::EMPTY {
                    let place = (chain, at, depth);
                    let passed =
                        self.apply_effects(&rule.effects, place, stage, (changed, hits.matched), &mut flows)?;
                    for (changed, set) in passed {
                        self.add(&mut behind, changed, set)?;
                    }
                }
            }
            current = behind;
            at += count;
        }
        for (changed, set) in current {
            self.add(&mut flows.next, changed, set)?;
        }
        let flows = Rc::new(flows);
        self.memo.insert((index, changed, set), Rc::clone(&flows));
        Ok(flows)
    }

    /// Returns the packets that match one of `count` rules from `at` on.
    fn hits(
        &mut self,
        chain: &Chain,
        (at, count): (usize, usize),
        stage: Stage,
        changed: &Changed,
        set: Set,
    ) -> Result<Hits, TooLarge> {
        let mut hits = Hits { matched: Set::EMPTY, reached: Set::EMPTY };
        for (number, rule) in chain.rules.iter().enumerate().skip(at).take(count) {
            self.steps += 1;
            if self.steps > MAX_STEPS {
                return Err(TooLarge);
            }
            let (mut holds, mut unknown) = (Set::ALL, false);
            // From the last variables up, which keeps intermediate sets small.
            for condition in rule.conditions.iter().rev() {
                match self.space.condition(condition, stage, changed)? {
                    Some(condition) => holds = self.space.diagram.and(holds, condition)?,
                    None => unknown = true,
                }
            }
            if unknown {
                let uncertain = self.space.diagram.and(set, holds)?;
                hits.reached = uncertain;
                if uncertain != Set::EMPTY {
                    self.give_up(format!("rule {} of chain {}: {}", number + 1, chain.name, rule.text), uncertain)?;
                }
                return Ok(hits);
            }
            hits.matched = self.space.diagram.or(hits.matched, holds)?;
        }
        hits.matched = self.space.diagram.and(set, hits.matched)?;
        hits.reached = hits.matched;
        Ok(hits)
    }

    /// Applies the effects of a rule to the packets that match it, and returns those that continue with the next rule.
    fn apply_effects(
        &mut self,
        effects: &'a [Effect],
        (chain, at, depth): (&'a Chain, usize, usize),
        stage: Stage,
        (changed, set): (Changed, Set),
        flows: &mut Flows,
    ) -> Result<Flow, TooLarge> {
        let mut current = Flow::from([(changed, set)]);
        for effect in effects {
            let mut behind = Flow::new();
            for (mut changed, set) in current {
                match effect {
                    Effect::Jump(name) | Effect::Goto(name) => {
                        let returned = match self.targets.get(&(chain.table.as_str(), name.as_str())).copied() {
                            Some(target) => self.run_chain(target, depth + 1, stage, changed, set)?,
                            None => Rc::new(Flows { next: Flow::from([(changed, set)]), done: Flow::new() }),
                        };
                        let next = if matches!(effect, Effect::Jump(_)) { &mut behind } else { &mut flows.next };
                        for (changed, set) in &returned.next {
                            self.add(next, *changed, *set)?;
                        }
                        for (changed, set) in &returned.done {
                            self.add(&mut flows.done, *changed, *set)?;
                        }
                    }
                    Effect::Return => self.add(&mut flows.next, changed, set)?,
                    Effect::Accept => self.add(&mut flows.done, changed, set)?,
                    Effect::Drop => self.settle(Fate::DROPPED, set)?,
                    Effect::Redirect(port) => {
                        changed.redirected = Some(*port);
                        changed.to_loopback |= stage.output != SeenInterface::None;
                        self.add(&mut flows.done, changed, set)?;
                    }
                    Effect::Unknown(what) => {
                        let place = format!("rule {} of chain {}: {what}", at + 1, chain.name);
                        self.give_up(place, set)?;
                    }
                    change => self.change(change, stage, changed, set, &mut behind)?,
                }
            }
            current = behind;
        }
        Ok(current)
    }

    /// Changes fields of packets.
    fn change(
        &mut self,
        effect: &Effect,
        stage: Stage,
        before: Changed,
        set: Set,
        behind: &mut Flow,
    ) -> Result<(), TooLarge> {
        let mut after = before;
        let mut concerned = Set::ALL;
        match effect {
            Effect::Tproxy(port) => after.assigned = Some(*port),
            Effect::SetMark(mark) => after.mark = Value::Number(*mark),
            Effect::Zone(zone) if !stage.tracked => after.zone = before.zone.or(Some(*zone)),
            Effect::SaveMark | Effect::RestoreMark => {
                concerned = self.space.connected(stage)?;
                match effect {
                    Effect::SaveMark => after.connection_mark = before.mark,
                    _ => after.mark = before.connection_mark,
                }
            }
            _ => {}
        }
        let unchanged = self.space.diagram.minus(set, concerned)?;
        self.add(behind, before, unchanged)?;
        let changed = self.space.diagram.and(set, concerned)?;
        self.add(behind, after, changed)
    }
}

/// Packets at a group of rules.
struct Hits {
    matched: Set,
    /// Those that match, or for which that is unknown.
    reached: Set,
}
