//! Plans the rules for a [`CaptureConfig`]. This is the only place that knows the capture logic.
//!
//! Rules are in the order in which Istio's own program issues them, so that the text of a plan can be compared with Istio's line by
//! line. Where that order affects packets, a comment says so.

use crate::config::InterceptionMode;
use crate::names::{address, chain};
use crate::ruleset::{Action, Families, LocalDelivery, Match, Routing, RuleReason, Table};
use crate::{CaptureConfig, RuleSet};

mod builder;
mod check;
mod dns;
mod inbound;
mod outbound;
mod tproxy;

use builder::{RuleBuilder, captures_inbound, host, in_interface, out_interface, tcp, to_port};
pub use check::{UnsupportedSetting, max_rule_count};

/// Pairs of a rerouted interface and a network that get a rule each, as in Istio; more of them go through [`chain::REROUTE`].
pub const MAX_PRODUCT: usize = 16;

/// Plans the rules for a pod.
///
/// A plan does not depend on the backend, except for names of groups: iptables resolves them in the group file that it sees, the
/// nf_tables backend rejects them.
///
/// # Errors
/// Returns every unsupported setting; no setting is ever ignored silently.
pub fn plan(config: &CaptureConfig) -> Result<RuleSet, Vec<UnsupportedSetting>> {
    check::check(config)?;
    let families = if config.ipv6.is_captured() { Families::V4AndV6 } else { Families::V4 };
    if config.mode == InterceptionMode::None {
        return Ok(RuleSet { families, ..RuleSet::default() });
    }
    let mut builder = RuleBuilder::new(config, families);
    builder.exclude_interfaces();
    builder.exempt_rerouted_interfaces();
    builder.drop_invalid();
    builder.redirect_chains();
    builder.inbound();
    builder.outbound();
    if config.mode == InterceptionMode::Tproxy {
        builder.tproxy_marks();
    }
    Ok(RuleSet { rules: builder.rules, families, routing: routing(config) })
}

fn routing(config: &CaptureConfig) -> Routing {
    let lo_addresses = if config.ipv6.is_captured() { vec![host(address::PASSTHROUGH_V6)] } else { Vec::new() };
    // Only captured inbound packets get the mark.
    let local_delivery = (config.mode == InterceptionMode::Tproxy && captures_inbound(config))
        .then_some(LocalDelivery { mark: config.tproxy_mark, table: config.tproxy_route_table });
    Routing { lo_addresses, local_delivery }
}

impl RuleBuilder<'_> {
    fn exclude_interfaces(&mut self) {
        let tables: &[Table] = match self.config.mode {
            InterceptionMode::Tproxy => &[Table::Nat, Table::Mangle],
            _ => &[Table::Nat],
        };
        for name in &self.config.exclude_interfaces {
            for &table in tables {
                self.append(
                    table,
                    chain::PREROUTING,
                    [in_interface(name)],
                    Action::Return,
                    RuleReason::ExcludedInterface,
                );
                self.append(
                    table,
                    chain::BUILTIN_OUTPUT,
                    [out_interface(name)],
                    Action::Return,
                    RuleReason::ExcludedInterface,
                );
            }
        }
    }

    fn exempt_rerouted_interfaces(&mut self) {
        for name in &self.config.reroute_interfaces {
            self.insert(
                Table::Nat,
                (chain::PREROUTING, 1),
                [in_interface(name)],
                Action::Return,
                RuleReason::ReroutedInterface,
            );
        }
    }

    fn drop_invalid(&mut self) {
        if !self.config.drop_invalid {
            return;
        }
        self.append(
            Table::Mangle,
            chain::PREROUTING,
            [Match::StateInvalid],
            Action::Jump(chain::DROP),
            RuleReason::DropInvalid,
        );
        self.append(Table::Mangle, chain::DROP, [], Action::Drop, RuleReason::DropInvalid);
    }

    fn redirect_chains(&mut self) {
        self.append(
            Table::Nat,
            chain::INBOUND,
            [tcp(), to_port(self.config.tunnel_port)],
            Action::Return,
            RuleReason::Tunnel,
        );
        let outbound = Action::Redirect(self.config.proxy_port);
        self.append(Table::Nat, chain::REDIRECT, [tcp()], outbound, RuleReason::Redirect);
        let inbound = Action::Redirect(self.config.inbound_port);
        self.append(Table::Nat, chain::IN_REDIRECT, [tcp()], inbound, RuleReason::Redirect);
    }
}

#[cfg(test)]
mod tests;
