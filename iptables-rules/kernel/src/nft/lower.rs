//! Lowers a [`RuleSet`] to a [`Program`].
//!
//! Chain names are Istio's. One `inet` table contains the rules of three tables of iptables, so chains of `mangle` and `raw` have the table
//! as prefix (`mangle-ISTIO_INBOUND`, `raw-ISTIO_OUTPUT_DNS`). Base chains are named after table and hook (`nat-output`), and exist only
//! where they have rules.
//!
//! There are two differences to iptables. `! --uid-owner` matches packets without a socket, `meta skuid !=` does not; this affects only
//! packets that the kernel itself sends over `lo`. And TPROXY drops a packet without a listener, nft's `tproxy` lets it pass; here a second
//! rule with the same tests drops it.

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::error::NftError;
use super::lists::{self, ListKind, ListMatch};
use super::program::{ChainDef, Expr, Hook, IpFamily, Name, Program, RuleDef, SetDef, TableDef, TableFamily, Test};
use iptables_rules::RuleSet;
use iptables_rules::config::Group;
use iptables_rules::ruleset::{Action, Families, Family, Match, Protocol, Rule, RuleReason, Table};

/// `lo` is the first interface of every network namespace.
const LO_INDEX: u32 = 1;

/// Distribution of the rules over tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TableLayout {
    /// One table `inet weir`, for Linux 5.2 and newer.
    Inet,
    /// Tables `ip weir` and `ip6 weir`, for kernels without NAT chains in `inet` tables.
    PerFamily,
}

impl TableLayout {
    /// Returns the layout for the running kernel; that of a recent one where its release is unknown.
    pub(super) fn of_running_kernel() -> Self {
        nix::sys::utsname::uname().map_or(Self::Inet, |names| Self::of_release(&names.release().to_string_lossy()))
    }

    /// Returns the layout for a kernel release as `uname` gives it.
    pub(super) fn of_release(release: &str) -> Self {
        let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse::<u32>().unwrap_or(0));
        let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        if version < (5, 2) { Self::PerFamily } else { Self::Inet }
    }
}

/// Lowers a rule set; an empty one gives an empty program.
///
/// # Errors
/// Returns [`NftError::Unsupported`], which names everything that nf_tables cannot express.
pub(super) fn lower(rules: &RuleSet, layout: TableLayout) -> Result<Program, NftError> {
    if rules.is_empty() {
        return Ok(Program::default());
    }
    let both = rules.families == Families::V4AndV6;
    let scopes: &[(TableFamily, FamilyScope)] = match (layout, both) {
        (TableLayout::Inet, true) => &[(TableFamily::Inet, FamilyScope::Both)],
        (TableLayout::Inet, false) => &[(TableFamily::Inet, FamilyScope::One(IpFamily::V4))],
        (TableLayout::PerFamily, true) => {
            &[(TableFamily::Ip, FamilyScope::One(IpFamily::V4)), (TableFamily::Ip6, FamilyScope::One(IpFamily::V6))]
        }
        (TableLayout::PerFamily, false) => &[(TableFamily::Ip, FamilyScope::One(IpFamily::V4))],
    };
    let mut problems = Vec::new();
    let tables = scopes
        .iter()
        .map(|&(family, scope)| Lowering { rules, family, scope, sets: Vec::new(), problems: &mut problems }.table())
        .collect();
    problems.sort();
    problems.dedup();
    if problems.is_empty() { Ok(Program { tables }.sorted()) } else { Err(NftError::Unsupported(problems.join("; "))) }
}

/// Families that have rules in a table.
#[derive(Debug, Clone, Copy)]
enum FamilyScope {
    Both,
    One(IpFamily),
}

struct Lowering<'a> {
    rules: &'a RuleSet,
    family: TableFamily,
    scope: FamilyScope,
    sets: Vec<SetDef>,
    problems: &'a mut Vec<String>,
}

/// Families of the packets that can match a rule.
#[derive(Debug, Clone, Copy)]
enum PacketFamilies {
    All,
    Of(IpFamily),
    None,
}

/// Rules of one run that differ in one element only, which may become a set.
struct RuleGroup {
    /// Family of the packets, if it matters.
    family: Option<IpFamily>,
    tests: Vec<Expr>,
    list: ListMatch,
    reason: RuleReason,
}

/// Neighbouring rules with the same action.
#[derive(Default)]
struct Run {
    action: Option<Action>,
    groups: Vec<RuleGroup>,
    /// Index of the group of a kind of list, by its tests.
    indices: HashMap<ListKind, HashMap<Vec<Expr>, usize>>,
}

impl Run {
    /// Adds a rule to the group with the same tests, or as a new group.
    fn add(&mut self, group: RuleGroup) {
        let Some(kind) = group.list.kind() else { return self.groups.push(group) };
        let indices = self.indices.entry(kind).or_default();
        if let Some(other) = indices.get(&group.tests).and_then(|&at| self.groups.get_mut(at)) {
            other.list.append(group.list);
            other.reason = group.reason;
        } else {
            indices.insert(group.tests.clone(), self.groups.len());
            self.groups.push(group);
        }
    }
}

impl Lowering<'_> {
    fn table(mut self) -> TableDef {
        let mut chains = Vec::new();
        for table in [Table::Raw, Table::Mangle, Table::Nat] {
            for name in self.chains(table) {
                let hook = hook(table, name);
                let rules = self.chain(table, name);
                if hook.is_none() && !is_custom(name) {
                    self.problems
                        .push(format!("chain {name} of table {}: not one of PREROUTING and OUTPUT", table.name()));
                }
                if hook.is_none() || !rules.is_empty() {
                    chains.push(ChainDef { name: chain_name(table, name), hook, rules });
                }
            }
        }
        TableDef { family: self.family, flags: 0, sets: self.sets, chains }
    }

    /// Returns the chains of an iptables table: those that have rules, and those that are only jumped to.
    fn chains(&self, table: Table) -> Vec<&'static str> {
        let of_table = || self.rules.rules.iter().filter(|rule| rule.table == table);
        let mut names = Vec::new();
        let mut add = |name| {
            if !names.contains(&name) {
                names.push(name);
            }
        };
        for rule in of_table() {
            add(rule.chain);
            if let Action::Jump(target) = rule.action {
                add(target);
            }
        }
        names
    }

    fn chain(&mut self, table: Table, chain: &'static str) -> Vec<RuleDef> {
        let gated = self.family == TableFamily::Inet && !is_custom(chain);
        let mut lowered = Vec::new();
        // Neighbours with the same action give the same verdict in any order, so a run of them can be grouped.
        let mut run = Run::default();
        for (scope, rule) in ordered(self.rules, self.scope, table, chain) {
            if run.action != Some(rule.action) {
                self.finish_run(table, std::mem::take(&mut run), &mut lowered);
                run.action = Some(rule.action);
            }
            let family = match (self.scope, packets(scope, rule)) {
                (_, PacketFamilies::None) => continue,
                (FamilyScope::One(seen), PacketFamilies::Of(family)) if seen != family => continue,
                (FamilyScope::One(seen), PacketFamilies::All) if gated => Some(seen),
                (_, PacketFamilies::All) => None,
                (_, PacketFamilies::Of(family)) => Some(family),
            };
            match self.rule_group(rule, family) {
                Ok(group) => run.add(group),
                Err(problem) => self.problems.push(problem),
            }
        }
        self.finish_run(table, run, &mut lowered);
        lowered
    }

    fn rule_group(&self, rule: &Rule, family: Option<IpFamily>) -> Result<RuleGroup, String> {
        let mut tests: Vec<Expr> = Vec::with_capacity(rule.matches.len() + 3);
        if let (TableFamily::Inet, Some(family)) = (self.family, family) {
            tests.push(Test::Family(family).into());
        }
        let mut list = ListMatch::None;
        for condition in &rule.matches {
            match condition {
                Match::Destination { net, negated: false } if list.is_none() => {
                    list = ListMatch::Nets(vec![net.trunc()]);
                }
                _ => lower_match(condition, &mut tests).map_err(|problem| in_rule(rule, &problem))?,
            }
        }
        // Only one dimension becomes a list: next to a list of networks only a single port is possible.
        for condition in &rule.matches {
            if let Match::DestinationPorts { ports, negated: false } = condition {
                match (&list, ports.as_slice()) {
                    (_, []) => return Err(in_rule(rule, "empty list of ports")),
                    (ListMatch::None, ports) => list = ListMatch::Ports(ports.to_vec()),
                    (_, &[port]) => tests.push(Test::DestinationPort(port).into()),
                    _ => return Err(in_rule(rule, "list of ports together with a network")),
                }
            }
        }
        let has_protocol = rule.matches.iter().any(|m| matches!(m, Match::Protocol(_)));
        let wants_protocol = matches!(rule.action, Action::Redirect(_) | Action::Tproxy { .. })
            || rule.matches.iter().any(|m| matches!(m, Match::DestinationPorts { .. } | Match::SourcePort(_)));
        if wants_protocol && !has_protocol {
            return Err(in_rule(rule, "ports without a transport protocol"));
        }
        let family = match self.family {
            TableFamily::Inet => family,
            TableFamily::Ip => Some(IpFamily::V4),
            TableFamily::Ip6 => Some(IpFamily::V6),
        };
        Ok(RuleGroup { family, tests, list, reason: rule.reason })
    }

    fn finish_run(&mut self, table: Table, run: Run, lowered: &mut Vec<RuleDef>) {
        let Some(action) = run.action else { return };
        for RuleGroup { family, tests, list, reason } in run.groups {
            if lists::needs_set(&list) {
                let stem = lists::set_name(reason, &list, transport(&tests));
                let (set, test) = lists::build_set(&self.sets, &stem, list);
                self.sets.push(set);
                push_rules(lowered, table, &tests, family, Some(test), action);
                continue;
            }
            let each: Vec<Option<Test>> = match list {
                ListMatch::None => vec![None],
                ListMatch::Nets(nets) => nets.into_iter().map(|net| Some(Test::Destination(net))).collect(),
                ListMatch::Ports(ports) => ports.into_iter().map(|port| Some(Test::DestinationPort(port))).collect(),
            };
            for test in each {
                push_rules(lowered, table, &tests, family, test, action);
            }
        }
    }
}

/// Returns the rules of a chain in an order that is correct for both families.
fn ordered<'a>(rules: &'a RuleSet, scope: FamilyScope, table: Table, chain: &str) -> Vec<(Option<IpFamily>, &'a Rule)> {
    let of = |family| {
        let packet = match family {
            IpFamily::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpFamily::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        rules.chain_rules(table, chain, packet)
    };
    match scope {
        FamilyScope::One(family) => of(family).into_iter().map(|rule| (None, rule)).collect(),
        FamilyScope::Both => merge(&of(IpFamily::V4), &of(IpFamily::V6)),
    }
}

fn push_rules(
    lowered: &mut Vec<RuleDef>,
    table: Table,
    tests: &[Expr],
    family: Option<IpFamily>,
    listed: Option<Test>,
    action: Action,
) {
    let mut exprs: Vec<Expr> = Vec::with_capacity(tests.len() + 4);
    exprs.extend_from_slice(tests);
    exprs.extend(listed.map(Expr::from));
    exprs.sort_by_key(|expr| match expr {
        Expr::Test { test, .. } => test.order(),
        _ => u8::MAX,
    });
    let without_listener = matches!(action, Action::Tproxy { .. }).then(|| {
        let mut exprs = exprs.clone();
        exprs.push(Expr::Drop);
        RuleDef { exprs }
    });
    match action {
        Action::Jump(target) => exprs.push(Expr::Jump(chain_name(table, target))),
        Action::Return => exprs.push(Expr::Return),
        Action::Accept => exprs.push(Expr::Accept),
        Action::Drop => exprs.push(Expr::Drop),
        Action::Redirect(port) => exprs.push(Expr::Redirect(port)),
        Action::Tproxy { port, mark } => {
            exprs.extend([Expr::Tproxy { family, port }, Expr::SetMark(mark), Expr::Accept]);
        }
        Action::SetMark(mark) => exprs.push(Expr::SetMark(mark)),
        Action::SaveMark => exprs.push(Expr::SaveMark),
        Action::RestoreMark => exprs.push(Expr::RestoreMark),
        Action::Zone(zone) => exprs.push(Expr::SetZone(zone)),
    }
    lowered.push(RuleDef { exprs });
    lowered.extend(without_listener);
}

fn lower_match(condition: &Match, tests: &mut Vec<Expr>) -> Result<(), String> {
    let (test, negated) = match condition {
        Match::Protocol(Protocol::Tcp) => (Test::Protocol(6), false),
        Match::Protocol(Protocol::Udp) => (Test::Protocol(17), false),
        Match::InInterface(name) => (Test::InName(name.as_str().to_owned().into()), false),
        Match::OutInterface(name) => (Test::OutName(name.as_str().to_owned().into()), false),
        Match::InLoopback => (Test::InIndex(LO_INDEX), false),
        Match::OutLoopback => (Test::OutIndex(LO_INDEX), false),
        Match::Source { net, negated } => (Test::Source(net.trunc()), *negated),
        Match::Destination { net, negated } => (Test::Destination(net.trunc()), *negated),
        Match::DestinationPorts { negated: false, .. } => return Ok(()), // a list, see the caller
        Match::DestinationPorts { ports, negated: true } => {
            if ports.is_empty() {
                return Err("empty list of ports".to_owned());
            }
            tests.extend(ports.iter().map(|&port| Expr::Test { test: Test::DestinationPort(port), negated: true }));
            return Ok(());
        }
        Match::SourcePort(port) => (Test::SourcePort(*port), false),
        Match::Uid { id, negated } => (Test::Uid(*id), *negated),
        Match::Gid { group: Group::Id(id), negated } => (Test::Gid(*id), *negated),
        Match::Gid { group: Group::Name(name), .. } => {
            return Err(format!("group {name} is given by name; nf_tables supports ids only"));
        }
        Match::StateInvalid => (Test::ConnectionState(1), false),
        Match::StateRelatedEstablished => (Test::ConnectionState(2 | 4), false),
        Match::Mark { mark, negated } => (Test::Mark(*mark), *negated),
        Match::ConnMark(mark) => (Test::ConnectionMark(*mark), false),
    };
    tests.push(Expr::Test { test, negated });
    Ok(())
}

fn in_rule(rule: &Rule, problem: &str) -> String {
    format!("rule of chain {} in table {}: {problem}", rule.chain, rule.table.name())
}

/// Returns the transport protocol that the tests require.
fn transport(tests: &[Expr]) -> Option<u8> {
    tests.iter().find_map(|expr| match expr {
        Expr::Test { test: Test::Protocol(number), negated: false } => Some(*number),
        _ => None,
    })
}

/// Returns the families of the packets that can match a rule in this scope.
fn packets(scope: Option<IpFamily>, rule: &Rule) -> PacketFamilies {
    let of_rule = match rule.family {
        Family::Any => None,
        Family::V4 => Some(IpFamily::V4),
        Family::V6 => Some(IpFamily::V6),
    };
    let of_addresses = rule.matches.iter().filter_map(|condition| match condition {
        Match::Source { net, .. } | Match::Destination { net, .. } => Some(match net {
            IpNet::V4(_) => IpFamily::V4,
            IpNet::V6(_) => IpFamily::V6,
        }),
        _ => None,
    });
    scope.into_iter().chain(of_rule).chain(of_addresses).fold(PacketFamilies::All, |seen, family| match seen {
        PacketFamilies::All => PacketFamilies::Of(family),
        PacketFamilies::Of(other) if other == family => seen,
        _ => PacketFamilies::None,
    })
}

/// Merges the rules of both families into one sequence. Inserts count per family, so rules for both families can be in a different order in
/// each; such a rule becomes two.
fn merge<'a>(v4: &[&'a Rule], v6: &[&'a Rule]) -> Vec<(Option<IpFamily>, &'a Rule)> {
    let (mut v4, mut v6) = (v4.iter().copied().peekable(), v6.iter().copied().peekable());
    let mut merged = Vec::new();
    while v4.peek().is_some() || v6.peek().is_some() {
        merged.extend(
            std::iter::from_fn(|| v4.next_if(|rule| rule.family == Family::V4)).map(|rule| (Some(IpFamily::V4), rule)),
        );
        merged.extend(
            std::iter::from_fn(|| v6.next_if(|rule| rule.family == Family::V6)).map(|rule| (Some(IpFamily::V6), rule)),
        );
        match (v4.next(), v6.next()) {
            (Some(a), Some(b)) if std::ptr::eq(a, b) => merged.push((None, a)),
            (a, b) => {
                merged.extend(a.map(|rule| (Some(IpFamily::V4), rule)));
                merged.extend(b.map(|rule| (Some(IpFamily::V6), rule)));
            }
        }
    }
    merged
}

fn is_custom(chain: &str) -> bool {
    !matches!(chain, "PREROUTING" | "INPUT" | "FORWARD" | "OUTPUT" | "POSTROUTING")
}

/// Returns the hook of a built-in chain, with the priority of iptables (`NF_IP_PRI_*`, linux/netfilter_ipv4.h).
pub(super) fn hook(table: Table, chain: &str) -> Option<Hook> {
    let number = match chain {
        "PREROUTING" => 0,
        "OUTPUT" => 3,
        _ => return None,
    };
    let (kind, priority) = match (table, number) {
        (Table::Raw, _) => ("filter", -300),
        (Table::Mangle, 3) => ("route", -150), // routes again after a change of the mark
        (Table::Mangle, _) => ("filter", -150),
        (Table::Nat, _) => ("nat", -100),
    };
    Some(Hook { kind: kind.into(), number, priority, accepts: true })
}

fn chain_name(table: Table, chain: &'static str) -> Name {
    match (table, chain) {
        (Table::Nat, "PREROUTING") => Cow::Borrowed("nat-prerouting"),
        (Table::Nat, "OUTPUT") => Cow::Borrowed("nat-output"),
        (Table::Nat, chain) => Cow::Borrowed(chain),
        (Table::Mangle | Table::Raw, chain) if !is_custom(chain) => {
            Cow::Owned(format!("{}-{}", table.name(), chain.to_ascii_lowercase()))
        }
        (Table::Mangle | Table::Raw, chain) => Cow::Owned(format!("{}-{chain}", table.name())),
    }
}
