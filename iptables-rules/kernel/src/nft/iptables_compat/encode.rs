//! Encodes a rule as iptables-nft does: with native expressions for protocol, interfaces and addresses, and with the structures of iptables'
//! modules (nft_compat) for everything else.
//!
//! Ports are encoded as `match tcp`, although newer versions use a native comparison: 1.8.7 would read that as a rule without a port, so
//! that a save and restore would break the pod. All versions since 1.8.7 print this form in the same way.
//!
//! Layouts: `include/uapi/linux/netfilter/xt_*.h`, `nf_nat.h`; numbers in host byte order unless they are `__be16`.

use netlink_packet_core::DefaultNla;
use netlink_packet_netfilter::nftables::{MetaKey, Verdict};

use crate::nft::attributes::Attributes;
use crate::nft::expr::{Encoder, NF_ACCEPT, NF_DROP};
use crate::nft::program::Test;
use iptables_rules::config::Group;
use iptables_rules::names::OWNER_COMMENT;
use iptables_rules::restore::RestoreFamily;
use iptables_rules::ruleset::{Action, Match, Protocol, Rule};

/// `enum nft_match_attributes` and `nft_target_attributes`, linux/netfilter/nf_tables_compat.h.
const NAME: u16 = 1;
const REVISION: u16 = 2;
const INFO: u16 = 3;
/// `NFTA_COUNTER_BYTES`, `NFTA_COUNTER_PACKETS`, linux/netfilter/nf_tables.h.
const COUNTER: [u16; 2] = [1, 2];
/// Alignment of structures (`XT_ALIGN`, linux/netfilter/x_tables.h).
const ALIGNMENT: usize = 8;
/// Length of a comment (`XT_MAX_COMMENT_LEN`, linux/netfilter/xt_comment.h).
const COMMENT: usize = 256;
/// Ports of one `multiport` (`XT_MULTI_PORTS`, linux/netfilter/xt_multiport.h).
const MULTIPORT: usize = 15;

/// Encodes the expressions of a rule, with our comment if it is `marked`. Also returns its transport protocol (`IPPROTO_*`; 0 for any), which
/// is a separate attribute.
///
/// # Errors
/// Returns what cannot be expressed.
pub(super) fn encode(rule: &Rule, family: RestoreFamily, marked: bool) -> Result<(Attributes, u32), String> {
    let mut encoder = Encoder::new();
    let protocol = rule.matches.iter().find_map(|condition| match condition {
        Match::Protocol(Protocol::Tcp) => Some(6),
        Match::Protocol(Protocol::Udp) => Some(17),
        _ => None,
    });
    // Conditions of the rule header come first, then modules.
    for condition in &rule.matches {
        head(&mut encoder, condition);
    }
    for condition in &rule.matches {
        if let Some((name, revision, info)) = module(condition, protocol)? {
            extension(&mut encoder, "match", name, revision, info);
        }
    }
    if marked {
        let mut comment = OWNER_COMMENT.as_bytes().to_vec();
        comment.resize(COMMENT, 0);
        extension(&mut encoder, "match", "comment", 0, comment);
    }
    let zero = COUNTER.map(|kind| DefaultNla::new(kind, vec![0; 8]));
    encoder.push("counter", &zero);
    match rule.action {
        Action::Jump(chain) => encoder.verdict(Verdict::Jump, Some(chain)),
        Action::Return => encoder.verdict(Verdict::Return, None),
        Action::Accept => encoder.verdict(Verdict::Other(NF_ACCEPT), None),
        Action::Drop => encoder.verdict(Verdict::Other(NF_DROP), None),
        _ => {
            let (name, revision, info) = target(rule.action, family);
            extension(&mut encoder, "target", name, revision, info);
        }
    }
    Ok((encoder.out, protocol.unwrap_or(0)))
}

fn head(encoder: &mut Encoder, condition: &Match) {
    let mut interface = |key, name: &str| {
        encoder.meta(key);
        encoder.compare(false, [name.as_bytes(), b"\0"].concat());
    };
    match condition {
        Match::InInterface(name) => interface(MetaKey::Iifname, name.as_str()),
        Match::OutInterface(name) => interface(MetaKey::Oifname, name.as_str()),
        Match::InLoopback => interface(MetaKey::Iifname, "lo"),
        Match::OutLoopback => interface(MetaKey::Oifname, "lo"),
        Match::Protocol(Protocol::Tcp) => encoder.test(&Test::Protocol(6), false),
        Match::Protocol(Protocol::Udp) => encoder.test(&Test::Protocol(17), false),
        // iptables does not write a condition for all addresses.
        Match::Source { net, negated: false } | Match::Destination { net, negated: false } if net.prefix_len() == 0 => {
        }
        Match::Source { net, negated } => encoder.test(&Test::Source(net.trunc()), *negated),
        Match::Destination { net, negated } => encoder.test(&Test::Destination(net.trunc()), *negated),
        _ => {}
    }
}

type Module = (&'static str, u32, Vec<u8>);

fn module(condition: &Match, protocol: Option<u32>) -> Result<Option<Module>, String> {
    let all = [0, u16::MAX];
    let module = match condition {
        Match::DestinationPorts { ports, negated } => match ports.as_slice() {
            &[port] => single_ports(protocol, all, [port; 2], *negated)?,
            ports => multiport(ports, *negated)?,
        },
        Match::SourcePort(port) => single_ports(protocol, [*port; 2], all, false)?,
        Match::Uid { id, negated } => owner(*id, 1, *negated),
        Match::Gid { group: Group::Id(id), negated } => owner(*id, 2, *negated),
        Match::Gid { group: Group::Name(name), .. } => {
            return Err(format!("group {name} is given by name; nf_tables supports ids only"));
        }
        Match::StateInvalid => conntrack(1),
        Match::StateRelatedEstablished => conntrack(2 | 4),
        Match::Mark { mark, negated } => mark_of("mark", *mark, *negated),
        Match::ConnMark(mark) => mark_of("connmark", *mark, false),
        _ => return Ok(None),
    };
    Ok(Some(module))
}

/// `struct xt_tcp`, `struct xt_udp`, which differ after the ports.
fn single_ports(
    protocol: Option<u32>,
    source: [u16; 2],
    destination: [u16; 2],
    destination_negated: bool,
) -> Result<Module, String> {
    let mut info: Vec<u8> = source.iter().chain(&destination).flat_map(|port| port.to_ne_bytes()).collect();
    let inverted = u8::from(destination_negated) << 1;
    match protocol {
        Some(6) => {
            info.extend([0, 0, 0, inverted]);
            Ok(("tcp", 0, info))
        }
        Some(17) => {
            info.push(inverted);
            Ok(("udp", 0, info))
        }
        _ => Err("ports without a transport protocol".to_owned()),
    }
}

/// `struct xt_multiport_v1`.
fn multiport(ports: &[u16], negated: bool) -> Result<Module, String> {
    const DESTINATION: u8 = 1;
    let count = u8::try_from(ports.len()).ok().filter(|&count| (1..=MULTIPORT).contains(&usize::from(count)));
    let count = count.ok_or_else(|| format!("{} ports in one rule; at most {MULTIPORT} are supported", ports.len()))?;
    let mut list = ports.to_vec();
    list.resize(MULTIPORT, 0);
    let mut info = vec![DESTINATION, count];
    info.extend(list.iter().flat_map(|port| port.to_ne_bytes()));
    info.extend([0; MULTIPORT]);
    info.push(u8::from(negated));
    Ok(("multiport", 1, info))
}

/// `struct xt_owner_match_info`: a range each of users and groups; `what` is 1 for users, 2 for groups.
fn owner(id: u32, what: u8, negated: bool) -> Module {
    let of = |kind: u8| if what == kind { id } else { 0 };
    let mut info: Vec<u8> = [of(1), of(1), of(2), of(2)].iter().flat_map(|id| id.to_ne_bytes()).collect();
    info.extend([what, if negated { what } else { 0 }]);
    ("owner", 1, info)
}

/// `struct xt_conntrack_mtinfo3` with the state only (`XT_CONNTRACK_STATE`).
fn conntrack(states: u16) -> Module {
    const MATCH_FLAGS: usize = 146;
    const STATE_MASK: usize = 150;
    let mut info = vec![0; 164];
    info[MATCH_FLAGS..MATCH_FLAGS + 2].copy_from_slice(&1_u16.to_ne_bytes());
    info[STATE_MASK..STATE_MASK + 2].copy_from_slice(&states.to_ne_bytes());
    ("conntrack", 3, info)
}

/// `struct xt_mark_mtinfo1`, `struct xt_connmark_mtinfo1`.
fn mark_of(name: &'static str, mark: u32, negated: bool) -> Module {
    let mut info = [mark.to_ne_bytes(), u32::MAX.to_ne_bytes()].concat();
    info.push(u8::from(negated));
    (name, 1, info)
}

fn target(action: Action, family: RestoreFamily) -> Module {
    let words = |words: &[u32]| -> Vec<u8> { words.iter().flat_map(|word| word.to_ne_bytes()).collect() };
    match action {
        // `struct nf_nat_range` and, for IPv4, `nf_nat_ipv4_multi_range_compat`; 2 is `NF_NAT_RANGE_PROTO_SPECIFIED`.
        Action::Redirect(port) => {
            let mut info = match family {
                RestoreFamily::V4 => words(&[1, 2, 0, 0]),
                RestoreFamily::V6 => [words(&[2]), vec![0; 32]].concat(),
            };
            info.extend([port.to_be_bytes(), port.to_be_bytes()].concat());
            ("REDIRECT", 0, info)
        }
        // `struct xt_tproxy_target_info_v1`: mask, mark, no address, port.
        Action::Tproxy { port, mark } => {
            let mut info = words(&[u32::MAX, mark, 0, 0, 0, 0]);
            info.extend(port.to_be_bytes());
            ("TPROXY", 1, info)
        }
        // `struct xt_mark_tginfo2`.
        Action::SetMark(mark) => ("MARK", 2, words(&[mark, u32::MAX])),
        // `struct xt_connmark_tginfo2`: mark, masks of both, no shift, and 1 to save or 2 to restore.
        Action::SaveMark => ("CONNMARK", 2, [words(&[0, u32::MAX, u32::MAX]), vec![0, 0, 1]].concat()),
        Action::RestoreMark => ("CONNMARK", 2, [words(&[0, u32::MAX, u32::MAX]), vec![0, 0, 2]].concat()),
        // `struct xt_ct_target_info_v1`.
        Action::Zone(zone) => {
            let mut info = vec![0, 0];
            info.extend(zone.to_ne_bytes());
            info.resize(72, 0);
            ("CT", 2, info)
        }
        Action::Jump(_) | Action::Return | Action::Accept | Action::Drop => ("", 0, Vec::new()),
    }
}

/// Appends a structure of a module.
fn extension(encoder: &mut Encoder, kind: &str, name: &str, revision: u32, mut info: Vec<u8>) {
    info.resize(info.len().next_multiple_of(ALIGNMENT), 0);
    encoder.push(
        kind,
        &[
            DefaultNla::new(NAME, [name.as_bytes(), b"\0"].concat()),
            DefaultNla::new(REVISION, revision.to_be_bytes().to_vec()),
            DefaultNla::new(INFO, info),
        ],
    );
}
