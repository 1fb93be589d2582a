//! Formats a [`Program`] in the syntax of `nft -f`.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};

use super::program::{ChainDef, Elements, Expr, Hook, IpFamily, Program, RuleDef, SetDef, TABLE, TableDef, Test};

/// `NFT_TABLE_F_DORMANT`, linux/netfilter/nf_tables.h.
const DORMANT: u32 = 1;
/// `IPPROTO_TCP`, `IPPROTO_UDP`.
const TCP: u8 = 6;
const UDP: u8 = 17;

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, table) in self.tables.iter().enumerate() {
            if n > 0 {
                writeln!(f)?;
            }
            write!(f, "{table}")?;
        }
        Ok(())
    }
}

impl fmt::Display for TableDef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "table {} {TABLE} {{", self.family.name())?;
        if self.flags & DORMANT != 0 {
            writeln!(f, "\tflags dormant")?;
        }
        let mut first = true;
        for set in &self.sets {
            if !std::mem::take(&mut first) {
                writeln!(f)?;
            }
            write!(f, "{set}")?;
        }
        for chain in &self.chains {
            if !std::mem::take(&mut first) {
                writeln!(f)?;
            }
            write!(f, "{chain}")?;
        }
        writeln!(f, "}}")
    }
}

impl fmt::Display for SetDef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\tset {} {{", self.name)?;
        match &self.elements {
            Elements::V4(_) => writeln!(f, "\t\ttype ipv4_addr\n\t\tflags interval")?,
            Elements::V6(_) => writeln!(f, "\t\ttype ipv6_addr\n\t\tflags interval")?,
            Elements::Ports(_) => writeln!(f, "\t\ttype inet_service")?,
            Elements::Other(what) => writeln!(f, "\t\t# {what}")?,
        }
        if !self.elements.is_empty() {
            writeln!(f, "\t\telements = {{ {} }}", self.elements)?;
        }
        writeln!(f, "\t}}")
    }
}

impl fmt::Display for Elements {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::V4(ranges) => list(f, ranges, |f, &(first, last)| v4_range(f, first, last)),
            Self::V6(ranges) => list(f, ranges, |f, &(first, last)| v6_range(f, first, last)),
            Self::Ports(ports) => list(f, ports, |f, port| write!(f, "{port}")),
            Self::Other(what) => f.write_str(what),
        }
    }
}

impl fmt::Display for ChainDef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\tchain {} {{", self.name)?;
        if let Some(hook) = &self.hook {
            writeln!(f, "\t\t{hook}")?;
        }
        for rule in &self.rules {
            writeln!(f, "\t\t{rule}")?;
        }
        writeln!(f, "\t}}")
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let point = match self.number {
            0 => "prerouting",
            1 => "input",
            2 => "forward",
            3 => "output",
            4 => "postrouting",
            _ => "ingress",
        };
        let policy = if self.accepts { "accept" } else { "drop" };
        write!(f, "type {} hook {point} priority {}; policy {policy};", self.kind, self.priority)
    }
}

impl fmt::Display for RuleDef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Leaves out tests that an address or a port implies: nft adds them, and leaves them out of its listings, too.
        let tests =
            |wanted: fn(&Test) -> bool| self.exprs.iter().any(|e| matches!(e, Expr::Test { test, .. } if wanted(test)));
        let has_address = tests(|t| matches!(t, Test::Source(_) | Test::Destination(_) | Test::DestinationIn(..)));
        let has_port =
            tests(|t| matches!(t, Test::SourcePort(_) | Test::DestinationPort(_) | Test::DestinationPortIn(_)));
        let protocol = self.exprs.iter().find_map(|e| match e {
            Expr::Test { test: Test::Protocol(TCP), negated: false } => Some("tcp"),
            Expr::Test { test: Test::Protocol(UDP), negated: false } => Some("udp"),
            _ => None,
        });
        let mut first = true;
        for expr in &self.exprs {
            match expr {
                Expr::Test { test: Test::Family(_), negated: false } if has_address => continue,
                Expr::Test { test: Test::Protocol(_), negated: false } if has_port && protocol.is_some() => continue,
                _ => {}
            }
            if !std::mem::take(&mut first) {
                f.write_str(" ")?;
            }
            write_expr(f, expr, protocol.unwrap_or("th"))?;
        }
        Ok(())
    }
}

fn write_expr(f: &mut fmt::Formatter<'_>, expr: &Expr, transport: &str) -> fmt::Result {
    match expr {
        Expr::Test { test, negated } => write_test(f, test, if *negated { "!= " } else { "" }, transport),
        Expr::Jump(chain) => write!(f, "jump {chain}"),
        Expr::Goto(chain) => write!(f, "goto {chain}"),
        Expr::Return => f.write_str("return"),
        Expr::Accept => f.write_str("accept"),
        Expr::Drop => f.write_str("drop"),
        Expr::Redirect(port) => write!(f, "redirect to :{port}"),
        Expr::Tproxy { family: None, port } => write!(f, "tproxy to :{port}"),
        Expr::Tproxy { family: Some(IpFamily::V4), port } => write!(f, "tproxy ip to :{port}"),
        Expr::Tproxy { family: Some(IpFamily::V6), port } => write!(f, "tproxy ip6 to :{port}"),
        Expr::SetMark(mark) => write!(f, "meta mark set {mark}"),
        Expr::SaveMark => f.write_str("ct mark set meta mark"),
        Expr::RestoreMark => f.write_str("meta mark set ct mark"),
        Expr::SetZone(zone) => write!(f, "ct zone set {zone}"),
        Expr::Other(names) => write!(f, "[{names}]"),
    }
}

fn write_test(f: &mut fmt::Formatter<'_>, test: &Test, not: &str, transport: &str) -> fmt::Result {
    match test {
        Test::Family(IpFamily::V4) => write!(f, "meta nfproto {not}ipv4"),
        Test::Family(IpFamily::V6) => write!(f, "meta nfproto {not}ipv6"),
        Test::InIndex(index) => write!(f, "iif {not}{}", Index(*index)),
        Test::OutIndex(index) => write!(f, "oif {not}{}", Index(*index)),
        Test::InName(name) => write!(f, "iifname {not}\"{name}\""),
        Test::OutName(name) => write!(f, "oifname {not}\"{name}\""),
        Test::Source(net) => write!(f, "{} saddr {not}{}", keyword(net), Network(*net)),
        Test::Destination(net) => write!(f, "{} daddr {not}{}", keyword(net), Network(*net)),
        Test::DestinationIn(IpFamily::V4, set) => write!(f, "ip daddr {not}@{set}"),
        Test::DestinationIn(IpFamily::V6, set) => write!(f, "ip6 daddr {not}@{set}"),
        Test::Protocol(TCP) => write!(f, "meta l4proto {not}tcp"),
        Test::Protocol(UDP) => write!(f, "meta l4proto {not}udp"),
        Test::Protocol(number) => write!(f, "meta l4proto {not}{number}"),
        Test::SourcePort(port) => write!(f, "{transport} sport {not}{port}"),
        Test::DestinationPort(port) => write!(f, "{transport} dport {not}{port}"),
        Test::DestinationPortIn(set) => write!(f, "{transport} dport {not}@{set}"),
        Test::ConnectionState(bits) => {
            write!(f, "ct state {not}")?;
            let names = [(1, "invalid"), (2, "established"), (4, "related"), (8, "new"), (64, "untracked")];
            let set: Vec<&str> = names.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, name)| *name).collect();
            f.write_str(&set.join(","))
        }
        Test::Mark(mark) => write!(f, "meta mark {not}{mark}"),
        Test::ConnectionMark(mark) => write!(f, "ct mark {not}{mark}"),
        Test::Uid(id) => write!(f, "meta skuid {not}{id}"),
        Test::Gid(id) => write!(f, "meta skgid {not}{id}"),
    }
}

/// Index of an interface; `lo` is number 1 in every network namespace (net/core/dev.c).
struct Index(u32);

impl fmt::Display for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            1 => f.write_str("\"lo\""),
            other => write!(f, "{other}"),
        }
    }
}

/// A network, a single address without its prefix length.
struct Network(IpNet);

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.prefix_len() == self.0.max_prefix_len() {
            write!(f, "{}", self.0.addr())
        } else {
            write!(f, "{}", self.0)
        }
    }
}

fn keyword(net: &IpNet) -> &'static str {
    match net {
        IpNet::V4(_) => "ip",
        IpNet::V6(_) => "ip6",
    }
}

fn list<T>(
    f: &mut fmt::Formatter<'_>,
    items: &[T],
    mut one: impl FnMut(&mut fmt::Formatter<'_>, &T) -> fmt::Result,
) -> fmt::Result {
    for (n, item) in items.iter().enumerate() {
        if n > 0 {
            f.write_str(", ")?;
        }
        one(f, item)?;
    }
    Ok(())
}

fn v4_range(f: &mut fmt::Formatter<'_>, first: Ipv4Addr, last: Ipv4Addr) -> fmt::Result {
    let mut nets = Ipv4Subnets::new(first, last, 0);
    match (nets.next(), nets.next()) {
        (Some(net), None) => write!(f, "{}", Network(net.into())),
        _ => write!(f, "{first}-{last}"),
    }
}

fn v6_range(f: &mut fmt::Formatter<'_>, first: Ipv6Addr, last: Ipv6Addr) -> fmt::Result {
    let mut nets = Ipv6Subnets::new(first, last, 0);
    match (nets.next(), nets.next()) {
        (Some(net), None) => write!(f, "{}", Network(net.into())),
        _ => write!(f, "{first}-{last}"),
    }
}
