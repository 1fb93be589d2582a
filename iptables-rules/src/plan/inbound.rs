//! Sends connections to the pod to the inbound port of the proxy, except excluded ones.

use super::builder::{RuleBuilder, captures_inbound, not_to, tcp, to_port};
use crate::config::{InterceptionMode, PortSelection};
use crate::names::chain;
use crate::ruleset::{Action, Match, RuleReason, Table};

impl RuleBuilder<'_> {
    pub(super) fn inbound(&mut self) {
        if !captures_inbound(self.config) {
            return;
        }
        let tproxy = self.config.mode == InterceptionMode::Tproxy;
        let table = if tproxy { Table::Mangle } else { Table::Nat };
        if tproxy {
            self.tproxy_chains();
        }
        self.append(table, chain::PREROUTING, [tcp()], Action::Jump(chain::INBOUND), RuleReason::Hook);
        let config = self.config;
        match &config.inbound_ports {
            PortSelection::All => {
                for &port in &config.inbound_ports_exclude {
                    self.append(
                        table,
                        chain::INBOUND,
                        [tcp(), to_port(port)],
                        Action::Return,
                        RuleReason::ExcludedInboundPort,
                    );
                }
                self.capture_inbound(&[tcp()], RuleReason::Inbound);
            }
            PortSelection::Only(ports) => {
                for &port in ports {
                    self.capture_inbound(&[tcp(), to_port(port)], RuleReason::InboundPort);
                }
            }
        }
    }

    fn capture_inbound(&mut self, matches: &[Match], reason: RuleReason) {
        if self.config.mode != InterceptionMode::Tproxy {
            self.append(Table::Nat, chain::INBOUND, matches, Action::Jump(chain::IN_REDIRECT), reason);
            return;
        }
        // Packets of a known connection are only marked: they have a socket of the proxy already.
        let mut known = matches.to_vec();
        known.push(Match::StateRelatedEstablished);
        self.append(Table::Mangle, chain::INBOUND, known, Action::Jump(chain::DIVERT), reason);
        self.append(Table::Mangle, chain::INBOUND, matches, Action::Jump(chain::TPROXY), reason);
    }

    fn tproxy_chains(&mut self) {
        let mark = self.config.tproxy_mark;
        self.append(Table::Mangle, chain::DIVERT, [], Action::SetMark(mark), RuleReason::Tproxy);
        self.append(Table::Mangle, chain::DIVERT, [], Action::Accept, RuleReason::Tproxy);
        self.append_each(
            Table::Mangle,
            chain::TPROXY,
            |own| [not_to(own.loopback), tcp()],
            Action::Tproxy { port: self.config.inbound_port, mark },
            RuleReason::Tproxy,
        );
    }
}
