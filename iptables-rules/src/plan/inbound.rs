//! Connections to the pod: to the inbound port of the proxy, but for those the user excluded.

use super::{Program, captures_inbound, not_to, tcp, to_port};
use crate::config::{InterceptionMode, PortSelection};
use crate::names::chain;
use crate::ruleset::{Action, Match, Reason, Table};

impl Program<'_> {
    pub(super) fn inbound(&mut self) {
        if !captures_inbound(self.config) {
            return;
        }
        let tproxy = self.config.mode == InterceptionMode::Tproxy;
        let table = if tproxy { Table::Mangle } else { Table::Nat };
        if tproxy {
            self.tproxy_chains();
        }
        self.append(table, chain::PREROUTING, [tcp()], Action::Jump(chain::INBOUND), Reason::Hook);
        let config = self.config;
        match &config.inbound_ports {
            PortSelection::All => {
                for &port in &config.inbound_ports_exclude {
                    self.append(
                        table,
                        chain::INBOUND,
                        [tcp(), to_port(port)],
                        Action::Return,
                        Reason::ExcludedInboundPort,
                    );
                }
                self.capture_inbound(&[tcp()], Reason::Inbound);
            }
            PortSelection::Only(ports) => {
                for &port in ports {
                    self.capture_inbound(&[tcp(), to_port(port)], Reason::InboundPort);
                }
            }
        }
    }

    fn capture_inbound(&mut self, matches: &[Match], reason: Reason) {
        if self.config.mode != InterceptionMode::Tproxy {
            self.append(Table::Nat, chain::INBOUND, matches, Action::Jump(chain::IN_REDIRECT), reason);
            return;
        }
        // A known connection is only marked: its socket is the proxy's already.
        let mut known = matches.to_vec();
        known.push(Match::StateRelatedEstablished);
        self.append(Table::Mangle, chain::INBOUND, known, Action::Jump(chain::DIVERT), reason);
        self.append(Table::Mangle, chain::INBOUND, matches, Action::Jump(chain::TPROXY), reason);
    }

    fn tproxy_chains(&mut self) {
        let mark = self.config.tproxy_mark;
        self.append(Table::Mangle, chain::DIVERT, [], Action::SetMark(mark), Reason::Tproxy);
        self.append(Table::Mangle, chain::DIVERT, [], Action::Accept, Reason::Tproxy);
        self.append_each(
            Table::Mangle,
            chain::TPROXY,
            |own| [not_to(own.loopback), tcp()],
            Action::Tproxy { port: self.config.inbound_port, mark },
            Reason::Tproxy,
        );
    }
}
