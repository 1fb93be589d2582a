//! From a [`RuleSet`] to a [`Program`]: which tables, chains and sets there are, and what each rule tests.
//!
//! Chain names are Istio's. One `inet` table holds what iptables keeps in three tables, so chains of `mangle` and `raw` carry the
//! table as a prefix (`mangle-ISTIO_INBOUND`, `raw-ISTIO_OUTPUT_DNS`); those of `nat` are bare. Base chains are called after table
//! and hook (`nat-output`), and exist only where they have rules.
//!
//! Two differences to iptables remain. `! --uid-owner` holds for packets that have no socket file, `meta skuid !=` does not; only
//! packets that the kernel itself sends over `lo` can tell. And TPROXY drops a packet for which nobody listens, while nft's `tproxy`
//! lets it pass; a second rule with the same tests drops it here too.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::NftError;
use super::lists::{self, Slot};
use super::program::{ChainDef, Expr, Hook, IpFamily, Name, Program, RuleDef, SetDef, TableDef, TableFamily, Test};
use iptables_rules::RuleSet;
use iptables_rules::config::Group;
use iptables_rules::ruleset::{Action, Families, Family, Match, Protocol, Reason, Rule, Table};

/// `lo` is the first interface of every network namespace.
const LO_INDEX: u32 = 1;

/// How the rules are spread over tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// One table `inet weir`.
    Inet,
    /// `ip weir` and `ip6 weir`: NAT chains in `inet` tables came with Linux 5.2.
    PerFamily,
}

impl Layout {
    /// The layout for a kernel release as `uname` gives it.
    pub(super) fn of_release(release: &str) -> Self {
        let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse::<u32>().unwrap_or(0));
        let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        if version < (5, 2) { Self::PerFamily } else { Self::Inet }
    }
}

/// Lowers a rule set; an empty one gives a program without tables.
///
/// # Errors
/// [`NftError::Unsupported`] with everything that cannot be expressed.
pub(super) fn lower(rules: &RuleSet, layout: Layout) -> Result<Program, NftError> {
    if rules.is_empty() {
        return Ok(Program::default());
    }
    let both = rules.families == Families::V4AndV6;
    let views: &[(TableFamily, View)] = match (layout, both) {
        (Layout::Inet, true) => &[(TableFamily::Inet, View::Both)],
        (Layout::Inet, false) => &[(TableFamily::Inet, View::One(IpFamily::V4))],
        (Layout::PerFamily, true) => {
            &[(TableFamily::Ip, View::One(IpFamily::V4)), (TableFamily::Ip6, View::One(IpFamily::V6))]
        }
        (Layout::PerFamily, false) => &[(TableFamily::Ip, View::One(IpFamily::V4))],
    };
    let mut problems = Vec::new();
    let tables = views
        .iter()
        .map(|&(family, view)| Lowering { rules, family, view, sets: Vec::new(), problems: &mut problems }.table())
        .collect();
    problems.sort();
    problems.dedup();
    if problems.is_empty() {
        Ok(Program { tables }.in_order())
    } else {
        Err(NftError::Unsupported(problems.join("; ")))
    }
}

/// Which packets a table sees rules for.
#[derive(Debug, Clone, Copy)]
enum View {
    Both,
    One(IpFamily),
}

struct Lowering<'a> {
    rules: &'a RuleSet,
    family: TableFamily,
    view: View,
    sets: Vec<SetDef>,
    problems: &'a mut Vec<String>,
}

/// Packets by family.
#[derive(Debug, Clone, Copy)]
enum Packets {
    All,
    Of(IpFamily),
    None,
}

/// Rules of one run that differ in their list element only.
struct Bundle {
    /// Family of the packets, where it matters.
    family: Option<IpFamily>,
    tests: Vec<Expr>,
    slot: Slot,
    reason: Reason,
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

    /// Chains of an iptables table: those that have rules, and those that are only jumped to.
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
        // Neighbours with the same action give the same verdict in any order, so a run of them may be sorted into bundles.
        let mut run: (Option<Action>, Vec<Bundle>) = (None, Vec::new());
        for (scope, rule) in ordered(self.rules, self.view, table, chain) {
            if run.0 != Some(rule.action) {
                self.finish_run(table, &mut run, &mut lowered);
                run.0 = Some(rule.action);
            }
            let family = match (self.view, packets(scope, rule)) {
                (_, Packets::None) => continue,
                (View::One(seen), Packets::Of(family)) if seen != family => continue,
                (View::One(seen), Packets::All) if gated => Some(seen),
                (_, Packets::All) => None,
                (_, Packets::Of(family)) => Some(family),
            };
            match self.bundle(rule, family) {
                Ok(bundle) => add_to_run(&mut run.1, bundle),
                Err(problem) => self.problems.push(problem),
            }
        }
        self.finish_run(table, &mut run, &mut lowered);
        lowered
    }

    fn bundle(&self, rule: &Rule, family: Option<IpFamily>) -> Result<Bundle, String> {
        let mut tests: Vec<Expr> = Vec::with_capacity(rule.matches.len() + 3);
        if let (TableFamily::Inet, Some(family)) = (self.family, family) {
            tests.push(Test::Family(family).into());
        }
        let mut slot = Slot::None;
        for condition in &rule.matches {
            match condition {
                Match::Destination { net, negated: false } if slot.is_none() => slot = Slot::Nets(vec![net.trunc()]),
                _ => lower_match(condition, &mut tests).map_err(|problem| in_rule(rule, &problem))?,
            }
        }
        // One dimension at most becomes a list; with a network as list, a list of ports has to be a single port.
        for condition in &rule.matches {
            if let Match::DestinationPorts { ports, negated: false } = condition {
                match (&slot, ports.as_slice()) {
                    (_, []) => return Err(in_rule(rule, "an empty list of ports")),
                    (Slot::None, ports) => slot = Slot::Ports(ports.to_vec()),
                    (_, &[port]) => tests.push(Test::DestinationPort(port).into()),
                    _ => return Err(in_rule(rule, "a list of ports together with a network")),
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
        Ok(Bundle { family, tests, slot, reason: rule.reason })
    }

    fn finish_run(&mut self, table: Table, run: &mut (Option<Action>, Vec<Bundle>), lowered: &mut Vec<RuleDef>) {
        let Some(action) = run.0.take() else { return };
        for Bundle { family, tests, slot, reason } in run.1.drain(..) {
            if lists::is_list(&slot) {
                let stem = lists::stem(reason, &slot, transport(&tests));
                let (set, test) = lists::set(&self.sets, &stem, slot);
                self.sets.push(set);
                push_rules(lowered, table, &tests, family, Some(test), action);
                continue;
            }
            let each: Vec<Option<Test>> = match slot {
                Slot::None => vec![None],
                Slot::Nets(nets) => nets.into_iter().map(|net| Some(Test::Destination(net))).collect(),
                Slot::Ports(ports) => ports.into_iter().map(|port| Some(Test::DestinationPort(port))).collect(),
            };
            for test in each {
                push_rules(lowered, table, &tests, family, test, action);
            }
        }
    }
}

/// The rules of a chain in one order that agrees with what either family meets.
fn ordered<'a>(rules: &'a RuleSet, view: View, table: Table, chain: &str) -> Vec<(Option<IpFamily>, &'a Rule)> {
    let of = |family| {
        let packet = match family {
            IpFamily::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpFamily::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        rules.chain_rules(table, chain, packet)
    };
    match view {
        View::One(family) => of(family).into_iter().map(|rule| (None, rule)).collect(),
        View::Both => merge(&of(IpFamily::V4), &of(IpFamily::V6)),
    }
}

/// Adds a rule to the bundle it belongs to, or opens a new one. The newest bundles are tried first: lists come in one piece.
fn add_to_run(run: &mut Vec<Bundle>, bundle: Bundle) {
    let same = run.iter_mut().rev().find(|other| other.tests == bundle.tests && other.slot.is_like(&bundle.slot));
    match same {
        Some(other) => {
            other.slot.append(bundle.slot);
            other.reason = bundle.reason;
        }
        None => run.push(bundle),
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
        Expr::Test { test, .. } => test.rank(),
        _ => u8::MAX,
    });
    let unserved = matches!(action, Action::Tproxy { .. }).then(|| {
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
    lowered.extend(unserved);
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
                return Err("an empty list of ports".to_owned());
            }
            tests.extend(ports.iter().map(|&port| Expr::Test { test: Test::DestinationPort(port), negated: true }));
            return Ok(());
        }
        Match::SourcePort(port) => (Test::SourcePort(*port), false),
        Match::Uid { id, negated } => (Test::Uid(*id), *negated),
        Match::Gid { group: Group::Id(id), negated } => (Test::Gid(*id), *negated),
        Match::Gid { group: Group::Name(name), .. } => {
            return Err(format!("group {name} is given by name; nf_tables knows numbers only"));
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
    format!("a rule of chain {} in table {}: {problem}", rule.chain, rule.table.name())
}

/// The transport protocol that the tests ask for.
fn transport(tests: &[Expr]) -> Option<u8> {
    tests.iter().find_map(|expr| match expr {
        Expr::Test { test: Test::Protocol(number), negated: false } => Some(*number),
        _ => None,
    })
}

/// The packets that can match a rule in this place.
fn packets(scope: Option<IpFamily>, rule: &Rule) -> Packets {
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
    scope.into_iter().chain(of_rule).chain(of_addresses).fold(Packets::All, |seen, family| match seen {
        Packets::All => Packets::Of(family),
        Packets::Of(other) if other == family => seen,
        _ => Packets::None,
    })
}

/// One sequence from what each family meets. Inserts count positions per family, so rules of both may stand in another order there;
/// such a rule is split in two.
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

/// Where packets enter a built-in chain: the priorities of iptables (`NF_IP_PRI_*`, linux/netfilter_ipv4.h).
pub(super) fn hook(table: Table, chain: &str) -> Option<Hook> {
    let number = match chain {
        "PREROUTING" => 0,
        "OUTPUT" => 3,
        _ => return None,
    };
    let (kind, priority) = match (table, number) {
        (Table::Raw, _) => ("filter", -300),
        (Table::Mangle, 3) => ("route", -150), // a new mark asks for a new route, as in iptables
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
