//! Packet and connection marks of TPROXY mode: they keep a connection with the proxy, and identify the proxy's own traffic over `lo`.

use super::builder::{RuleBuilder, from, not_to, tcp};
use crate::names::{TPROXY_OUTBOUND_MARK, chain};
use crate::ruleset::{Action, Family, Match, Position, RuleReason, Table};

impl RuleBuilder<'_> {
    pub(super) fn tproxy_marks(&mut self) {
        let mark = self.config.tproxy_mark;
        let marked = || Match::Mark { mark, negated: false };
        let mangle = |builder: &mut Self, chain, matches: Vec<Match>, action| {
            builder.append(Table::Mangle, chain, matches, action, RuleReason::Tproxy);
        };
        // The mark is saved with the connection. Replies get it back, so that they are delivered to the proxy.
        mangle(self, chain::PREROUTING, vec![tcp(), marked()], Action::SaveMark);
        mangle(self, chain::BUILTIN_OUTPUT, vec![tcp(), Match::OutLoopback, marked()], Action::Return);
        for owner in self.proxy_owners() {
            self.append_each(
                Table::Mangle,
                chain::BUILTIN_OUTPUT,
                |own| [not_to(own.loopback), tcp(), Match::OutLoopback, owner.clone()],
                Action::SetMark(TPROXY_OUTBOUND_MARK),
                RuleReason::Tproxy,
            );
        }
        mangle(self, chain::BUILTIN_OUTPUT, vec![tcp(), Match::ConnMark(mark)], Action::RestoreMark);
        // Above the excluded ports: marked replies, connections of the proxy to the application, and packets on lo that the proxy did not
        // send are not captured again.
        self.tproxy_bypass(1, Family::Any, vec![tcp(), marked()]);
        for own in self.own.clone() {
            self.tproxy_bypass(2, own.family, vec![tcp(), from(own.passthrough), Match::InLoopback]);
        }
        let not_from_proxy = Match::Mark { mark: TPROXY_OUTBOUND_MARK, negated: true };
        self.tproxy_bypass(3, Family::Any, vec![tcp(), Match::InLoopback, not_from_proxy]);
    }

    fn tproxy_bypass(&mut self, at: usize, family: Family, matches: Vec<Match>) {
        let position = Position::Insert(at);
        self.push(Table::Mangle, chain::INBOUND, position, family, matches, Action::Return, RuleReason::Tproxy);
    }
}
