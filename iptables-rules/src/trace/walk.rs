//! Evaluates the chains for a packet.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::chains::{Base, Chains, Effect};
use super::packet::{ConntrackState, Hook, Owner, Packet, PacketOrigin};
use super::predicate::PacketView;
use super::result::{Disposition, RuleResult, RuleVisit, TableVisit, Trace};
use crate::names::LOOPBACK_INTERFACE;

/// Priority of connection tracking (`NF_IP_PRI_CONNTRACK`).
pub(crate) const CONNTRACK: i32 = -200;
/// Limit of nested jumps, above that of the kernel (`NFT_JUMP_STACK_SIZE`).
pub(crate) const MAX_JUMP_DEPTH: usize = 64;
/// Limit of rules that are evaluated for one packet: with two jumps in each chain, few rules are evaluated thousands of times.
const MAX_VISITS: usize = 200_000;

/// Continuation after a rule or a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    /// With the next rule of the calling chain.
    Next,
    /// With the next table.
    Done,
    /// Not at all: the packet is dropped.
    Dropped,
}

/// State of a trace.
struct Walk<'a> {
    chains: &'a Chains,
    /// Index of each chain by table and name.
    targets: HashMap<(&'a str, &'a str), usize>,
    visits: usize,
    packet: &'a Packet,
    in_interface: Option<&'a str>,
    out_interface: Option<&'a str>,
    owner: Option<Owner>,
    destination: IpAddr,
    destination_port: u16,
    mark: u32,
    connection_mark: u32,
    /// Whether connection tracking has seen the packet.
    tracked: bool,
    /// Conntrack zone that a rule has set.
    zone: Option<u16>,
    /// Port to which the connection is redirected.
    redirected: Option<u16>,
    /// Port of the transparent socket that the packet is assigned to.
    assigned: Option<u16>,
    tables: Vec<TableVisit>,
    decided_by: Option<(usize, usize)>,
    uncertain_rules: Vec<String>,
}

pub(super) fn walk(chains: &Chains, packet: &Packet) -> Trace {
    let mut targets = HashMap::with_capacity(chains.chains.len());
    for (index, chain) in chains.chains.iter().enumerate() {
        targets.entry((chain.table.as_str(), chain.name.as_str())).or_insert(index);
    }
    let mut walk = Walk {
        chains,
        targets,
        visits: 0,
        packet,
        in_interface: None,
        out_interface: None,
        owner: None,
        destination: packet.destination,
        destination_port: packet.destination_port,
        mark: packet.mark,
        connection_mark: packet.connection_mark,
        tracked: false,
        zone: None,
        redirected: None,
        assigned: None,
        tables: Vec::new(),
        decided_by: None,
        uncertain_rules: Vec::new(),
    };
    let disposition = walk.traverse();
    Trace {
        tables: walk.tables,
        disposition,
        decided_by: walk.decided_by,
        mark: walk.mark,
        connection_mark: walk.connection_mark,
        zone: walk.zone.unwrap_or(0),
        uncertain_rules: walk.uncertain_rules,
    }
}

impl<'a> Walk<'a> {
    fn traverse(&mut self) -> Disposition {
        let packet = self.packet;
        let mut leaves_by = None;
        match &packet.origin {
            PacketOrigin::Received { interface } => {
                self.in_interface = Some(interface);
                if self.run_hook(Hook::Prerouting) == Flow::Dropped {
                    return Disposition::Dropped;
                }
            }
            PacketOrigin::Sent { interface, owner } => {
                self.out_interface = Some(interface);
                self.owner = *owner;
                if self.run_hook(Hook::Output) == Flow::Dropped {
                    return Disposition::Dropped;
                }
                let out = self.route(interface);
                leaves_by = Some(out.to_owned());
                if out == LOOPBACK_INTERFACE {
                    (self.in_interface, self.out_interface, self.owner) = (Some(LOOPBACK_INTERFACE), None, None);
                    if self.run_hook(Hook::Prerouting) == Flow::Dropped {
                        return Disposition::Dropped;
                    }
                }
            }
        }
        match (self.assigned, self.redirected) {
            (Some(port), redirected) => Disposition::Tproxied { port, redirected },
            (None, Some(port)) => Disposition::Redirected { port },
            (None, None) => Disposition::Passes { interface: leaves_by },
        }
    }

    /// Returns the output interface after OUTPUT. A redirected packet goes to a loopback address; a new mark is routed again.
    fn route(&self, interface: &'a str) -> &'a str {
        let delivered = self.chains.local_delivery.is_some_and(|delivery| delivery.mark == self.mark);
        if self.redirected.is_some() || (self.mark != self.packet.mark && delivered) {
            return LOOPBACK_INTERFACE;
        }
        interface
    }

    fn run_hook(&mut self, hook: Hook) -> Flow {
        let chains = self.chains;
        for base in chains.bases.iter().filter(|base| base.hook == hook) {
            if base.priority > CONNTRACK {
                self.tracked = true;
            }
            if self.run_base_chain(base) == Flow::Dropped {
                return Flow::Dropped;
            }
        }
        self.tracked = true;
        Flow::Next
    }

    fn run_base_chain(&mut self, base: &Base) -> Flow {
        let Some(chain) = self.chains.chains.get(base.chain) else { return Flow::Next };
        let skip_reason = if base.nat { self.nat_skip_reason(base.hook) } else { None };
        let table = TableVisit { hook: base.hook, table: chain.table.clone(), skip_reason, rules: Vec::new() };
        self.tables.push(table);
        if skip_reason.is_some() {
            return Flow::Next;
        }
        match self.run_chain(base.chain, 0) {
            Flow::Next if !chain.accepts => Flow::Dropped,
            flow => flow,
        }
    }

    /// Returns why rules of address translation do not apply.
    fn nat_skip_reason(&self, hook: Hook) -> Option<&'static str> {
        match self.packet.state {
            ConntrackState::Established => return Some("the first packet of the connection decided"),
            ConntrackState::Invalid => return Some("invalid packets are not translated"),
            ConntrackState::New | ConntrackState::Related => {}
        }
        if self.redirected.is_some() {
            return Some("the connection has been redirected already");
        }
        let came_back = hook == Hook::Prerouting && matches!(self.packet.origin, PacketOrigin::Sent { .. });
        came_back.then_some("OUTPUT decided about this connection before it came back over lo")
    }

    fn run_chain(&mut self, index: usize, depth: usize) -> Flow {
        let chains = self.chains;
        let Some(chain) = chains.chains.get(index).filter(|_| depth < MAX_JUMP_DEPTH) else { return Flow::Next };
        for (number, rule) in (1..).zip(&chain.rules) {
            self.visits += 1;
            if self.visits > MAX_VISITS {
                if self.visits == MAX_VISITS + 1 {
                    self.uncertain_rules
                        .push(format!("all after the first {MAX_VISITS} rules, which are not evaluated"));
                }
                return Flow::Done;
            }
            let view = self.view();
            let failed = rule.conditions.iter().find(|condition| view.holds(condition) == Some(false));
            let unknown = rule.conditions.iter().find(|condition| view.holds(condition).is_none());
            let result = match (failed, unknown) {
                (Some(condition), _) => RuleResult::NoMatch(view.mismatch(condition)),
                (None, Some(condition)) => RuleResult::Unknown(view.mismatch(condition)),
                (None, None) => RuleResult::Match(rule.effects.clone()),
            };
            if matches!(result, RuleResult::Unknown(_)) {
                self.uncertain_rules.push(format!("rule {number} of chain {}: {}", chain.name, rule.text));
            }
            let matched = matches!(result, RuleResult::Match(_));
            self.record(RuleVisit {
                chain: chain.name.clone(),
                number,
                depth,
                rule: rule.text.clone(),
                reason: rule.reason,
                result,
            });
            if !matched {
                continue;
            }
            let here = self.last_visit();
            for effect in &rule.effects {
                if let Some(flow) = self.apply_effect(effect, index, depth, here) {
                    return flow;
                }
            }
        }
        Flow::Next
    }

    /// Applies an effect; `None` if evaluation of the chain continues.
    fn apply_effect(
        &mut self,
        effect: &Effect,
        index: usize,
        depth: usize,
        here: Option<(usize, usize)>,
    ) -> Option<Flow> {
        match effect {
            Effect::Jump(name) | Effect::Goto(name) => {
                let table = self.chains.chains.get(index).map_or("", |chain| &chain.table);
                let target = self.targets.get(&(table, name.as_str())).copied();
                let flow = target.map_or(Flow::Next, |target| self.run_chain(target, depth + 1));
                return (flow != Flow::Next || matches!(effect, Effect::Goto(_))).then_some(flow);
            }
            Effect::Return => {
                // An earlier redirection, or a decision in OUTPUT, is more relevant than a later return.
                let settled = self.assigned.or(self.redirected).is_some();
                let came_back = self.in_interface.is_some() && matches!(self.packet.origin, PacketOrigin::Sent { .. });
                if !(settled || came_back && self.decided_by.is_some()) {
                    self.decided_by = here;
                }
                return Some(Flow::Next);
            }
            Effect::Accept => return Some(Flow::Done),
            Effect::Drop => {
                self.decided_by = here;
                return Some(Flow::Dropped);
            }
            Effect::Redirect(port) => {
                self.decided_by = here;
                self.redirected = Some(*port);
                self.destination_port = *port;
                if self.out_interface.is_some() {
                    self.destination = match self.destination {
                        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
                    };
                }
                return Some(Flow::Done);
            }
            Effect::Tproxy(port) => {
                self.decided_by = here;
                self.assigned = Some(*port);
            }
            Effect::SetMark(mark) => self.mark = *mark,
            Effect::SaveMark => {
                if self.has_connection() {
                    self.connection_mark = self.mark;
                }
            }
            Effect::RestoreMark => {
                if self.has_connection() {
                    self.mark = self.connection_mark;
                }
            }
            Effect::Zone(zone) => {
                if !self.tracked {
                    self.zone.get_or_insert(*zone);
                }
            }
            Effect::Unknown(what) => self.uncertain_rules.push(what.clone()),
        }
        None
    }

    fn has_connection(&self) -> bool {
        self.tracked && self.packet.state != ConntrackState::Invalid
    }

    fn view(&self) -> PacketView<'a> {
        PacketView {
            in_interface: self.in_interface,
            out_interface: self.out_interface,
            owner: self.owner,
            transport: self.packet.transport,
            source: self.packet.source,
            source_port: self.packet.source_port,
            destination: self.destination,
            destination_port: self.destination_port,
            mark: self.mark,
            connection_mark: self.has_connection().then_some(self.connection_mark),
            state: self.tracked.then_some(self.packet.state),
        }
    }

    fn record(&mut self, visit: RuleVisit) {
        if let Some(table) = self.tables.last_mut() {
            table.rules.push(visit);
        }
    }

    fn last_visit(&self) -> Option<(usize, usize)> {
        let table = self.tables.len().checked_sub(1)?;
        Some((table, self.tables.get(table)?.rules.len().checked_sub(1)?))
    }
}
