//! The walk itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::chains::{Base, Chains, Effect};
use super::condition::View;
use super::{Entry, Fate, Hook, Owner, Packet, Stage, State, Step, Trace, Verdict};
use crate::names::LOOPBACK_INTERFACE;

/// Priority of connection tracking (`NF_IP_PRI_CONNTRACK`).
const CONNTRACK: i32 = -200;
/// More jumps than the kernel allows (`NFT_JUMP_STACK_SIZE`, and iptables follows no more than there are chains).
const DEPTH_AT_MOST: usize = 64;

/// Whether the rest of a chain, or of a table, is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    /// Go on with the next rule of the chain that called.
    Next,
    /// The table is done with.
    Done,
    /// The packet is no more.
    Dropped,
}

/// A packet on its way.
struct Walk<'a> {
    chains: &'a Chains,
    packet: &'a Packet,
    in_interface: Option<&'a str>,
    out_interface: Option<&'a str>,
    owner: Option<Owner>,
    destination: IpAddr,
    destination_port: u16,
    mark: u32,
    connection_mark: u32,
    /// Whether connection tracking has seen it.
    tracked: bool,
    /// Zone asked for so far.
    zone: Option<u16>,
    /// Port to which the connection is redirected.
    redirected: Option<u16>,
    /// Port to whose socket the packet is assigned.
    assigned: Option<u16>,
    stages: Vec<Stage>,
    decided_by: Option<(usize, usize)>,
    doubts: Vec<String>,
}

pub(super) fn walk(chains: &Chains, packet: &Packet) -> Trace {
    let mut walk = Walk {
        chains,
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
        stages: Vec::new(),
        decided_by: None,
        doubts: Vec::new(),
    };
    let fate = walk.all();
    Trace {
        stages: walk.stages,
        fate,
        decided_by: walk.decided_by,
        mark: walk.mark,
        connection_mark: walk.connection_mark,
        zone: walk.zone.unwrap_or(0),
        doubts: walk.doubts,
    }
}

impl<'a> Walk<'a> {
    fn all(&mut self) -> Fate {
        let packet = self.packet;
        let mut leaves_by = None;
        match &packet.entry {
            Entry::Arrives { interface } => {
                self.in_interface = Some(interface);
                if self.hook(Hook::Prerouting) == Flow::Dropped {
                    return Fate::Dropped;
                }
            }
            Entry::Sent { interface, owner } => {
                self.out_interface = Some(interface);
                self.owner = *owner;
                if self.hook(Hook::Output) == Flow::Dropped {
                    return Fate::Dropped;
                }
                let out = self.route(interface);
                leaves_by = Some(out.to_owned());
                if out == LOOPBACK_INTERFACE {
                    (self.in_interface, self.out_interface, self.owner) = (Some(LOOPBACK_INTERFACE), None, None);
                    if self.hook(Hook::Prerouting) == Flow::Dropped {
                        return Fate::Dropped;
                    }
                }
            }
        }
        match (self.assigned, self.redirected) {
            (Some(port), redirected) => Fate::Tproxied { port, redirected },
            (None, Some(port)) => Fate::Redirected { port },
            (None, None) => Fate::Passes { interface: leaves_by },
        }
    }

    /// Where a packet goes after OUTPUT. A translated destination is a loopback address; a new mark asks routing again.
    fn route(&self, interface: &'a str) -> &'a str {
        let delivered = self.chains.local_delivery.is_some_and(|delivery| delivery.mark == self.mark);
        if self.redirected.is_some() || (self.mark != self.packet.mark && delivered) {
            return LOOPBACK_INTERFACE;
        }
        interface
    }

    fn hook(&mut self, hook: Hook) -> Flow {
        let chains = self.chains;
        for base in chains.bases.iter().filter(|base| base.hook == hook) {
            if base.priority > CONNTRACK {
                self.tracked = true;
            }
            if self.enter(base) == Flow::Dropped {
                return Flow::Dropped;
            }
        }
        self.tracked = true;
        Flow::Next
    }

    fn enter(&mut self, base: &Base) -> Flow {
        let Some(chain) = self.chains.chains.get(base.chain) else { return Flow::Next };
        let skipped = if base.nat { self.past_translation(base.hook) } else { None };
        let stage = Stage { hook: base.hook, table: chain.table.clone(), skipped, steps: Vec::new() };
        self.stages.push(stage);
        if skipped.is_some() {
            return Flow::Next;
        }
        match self.chain(base.chain, 0) {
            Flow::Next if !chain.accepts => Flow::Dropped,
            flow => flow,
        }
    }

    /// Why rules of address translation are not looked at.
    fn past_translation(&self, hook: Hook) -> Option<&'static str> {
        match self.packet.state {
            State::Established => return Some("the first packet of the connection decided"),
            State::Invalid => return Some("packets of no connection are not translated"),
            State::New | State::Related => {}
        }
        if self.redirected.is_some() {
            return Some("the connection has been redirected already");
        }
        let came_back = hook == Hook::Prerouting && matches!(self.packet.entry, Entry::Sent { .. });
        came_back.then_some("OUTPUT decided about this connection before it came back by lo")
    }

    fn chain(&mut self, place: usize, depth: usize) -> Flow {
        let chains = self.chains;
        let Some(chain) = chains.chains.get(place).filter(|_| depth < DEPTH_AT_MOST) else { return Flow::Next };
        for (number, rule) in (1..).zip(&chain.rules) {
            let view = self.view();
            let refuted = rule.conditions.iter().find(|condition| view.meets(condition) == Some(false));
            let open = rule.conditions.iter().find(|condition| view.meets(condition).is_none());
            let verdict = match (refuted, open) {
                (Some(condition), _) => Verdict::NoMatch(view.objection(condition)),
                (None, Some(condition)) => Verdict::Unknown(view.objection(condition)),
                (None, None) => Verdict::Match(rule.effects.clone()),
            };
            if matches!(verdict, Verdict::Unknown(_)) {
                self.doubts.push(format!("rule {number} of chain {}: {}", chain.name, rule.text));
            }
            let matched = matches!(verdict, Verdict::Match(_));
            self.record(Step {
                chain: chain.name.clone(),
                number,
                depth,
                rule: rule.text.clone(),
                reason: rule.reason,
                verdict,
            });
            if !matched {
                continue;
            }
            let here = self.last_step();
            for effect in &rule.effects {
                match self.carry_out(effect, place, depth, here) {
                    None => {}
                    Some(Flow::Next) => return Flow::Next,
                    Some(flow) => return flow,
                }
            }
        }
        Flow::Next
    }

    /// Carries an effect out; `None` where the chain goes on.
    fn carry_out(&mut self, effect: &Effect, place: usize, depth: usize, here: Option<(usize, usize)>) -> Option<Flow> {
        let chains = self.chains;
        match effect {
            Effect::Jump(name) | Effect::Goto(name) => {
                let flow = chains.target(place, name).map_or(Flow::Next, |target| self.chain(target, depth + 1));
                return (flow != Flow::Next || matches!(effect, Effect::Goto(_))).then_some(flow);
            }
            Effect::Return => {
                // What happened to a packet, or in OUTPUT, says more than that nothing happened later.
                let settled = self.assigned.or(self.redirected).is_some();
                let came_back = self.in_interface.is_some() && matches!(self.packet.entry, Entry::Sent { .. });
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
            Effect::Unknown(what) => self.doubts.push(what.clone()),
        }
        None
    }

    fn has_connection(&self) -> bool {
        self.tracked && self.packet.state != State::Invalid
    }

    fn view(&self) -> View<'a> {
        View {
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

    fn record(&mut self, step: Step) {
        if let Some(stage) = self.stages.last_mut() {
            stage.steps.push(step);
        }
    }

    fn last_step(&self) -> Option<(usize, usize)> {
        let stage = self.stages.len().checked_sub(1)?;
        Some((stage, self.stages.get(stage)?.steps.len().checked_sub(1)?))
    }
}
