//! Proptest strategies for configurations that can be planned, and for packets.
#![allow(clippy::unwrap_used, clippy::missing_panics_doc, reason = "for tests only")]

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::CaptureConfig;
use crate::config::{
    CidrSelection, DnsCapture, Group, GroupName, InterceptionMode, InterfaceName, Ipv6Policy, OwnerGroups,
    PortSelection,
};
use crate::names;
use crate::trace::{ConntrackState, Owner, Packet, PacketOrigin, Transport};

/// Configurations that [`plan`](crate::plan()) accepts. Group names exist on every machine.
pub fn config() -> impl Strategy<Value = CaptureConfig> {
    (owners_and_marks(), selections(), other_fields())
        .prop_map(|(owners, selections, others)| CaptureConfig {
            mode: owners.mode,
            proxy_port: owners.proxy_port,
            inbound_port: owners.inbound_port,
            tunnel_port: owners.tunnel_port,
            proxy_uids: owners.proxy_uids,
            proxy_gids: owners.proxy_gids,
            owner_groups: owners.owner_groups,
            tproxy_mark: owners.tproxy_mark,
            tproxy_route_table: owners.tproxy_route_table,
            inbound_ports: selections.inbound_ports,
            inbound_ports_exclude: selections.inbound_ports_exclude,
            outbound_cidrs: selections.outbound_cidrs,
            outbound_cidrs_exclude: selections.outbound_cidrs_exclude,
            outbound_ports: selections.outbound_ports,
            outbound_ports_exclude: selections.outbound_ports_exclude,
            ipv6: others.ipv6,
            exclude_interfaces: others.exclude_interfaces,
            reroute_interfaces: others.reroute_interfaces,
            dns: others.dns,
            drop_invalid: others.drop_invalid,
            loopback: others.loopback,
        })
        .boxed()
}

/// Networks of both families, with host bits.
pub fn net() -> impl Strategy<Value = IpNet> {
    let some = (any::<IpAddr>(), 0_u8..=128).prop_map(|(address, length)| {
        IpNet::new(address, if address.is_ipv4() { length % 33 } else { length }).unwrap()
    });
    let known = |text: &str| Just(text.parse().unwrap());
    prop_oneof![6 => some, 1 => known("127.0.0.0/8"), 1 => known("::1/128"), 1 => known("::127.0.0.53/128"), 1 => known("0.0.0.0/0")]
}

fn owners_and_marks() -> impl Strategy<Value = CaptureConfig> {
    let id = || prop_oneof![0..u32::MAX, Just(names::PROXY_ID)];
    let group = || {
        let name = proptest::sample::select(vec!["root", "daemon", "nogroup"]);
        prop_oneof![2 => id().prop_map(Group::Id), 1 => name.prop_map(|name| Group::Name(GroupName::new(name).unwrap()))]
    };
    let groups = prop_oneof![
        2 => vec(group(), 0..4).prop_map(OwnerGroups::AllBut),
        1 => vec(group(), 0..4).prop_map(OwnerGroups::Only),
    ];
    let mode = prop_oneof![
        4 => Just(InterceptionMode::Redirect),
        4 => Just(InterceptionMode::Tproxy),
        1 => Just(InterceptionMode::None),
    ];
    let mark = (1..=u32::MAX).prop_filter("reserved", |&mark| mark != names::TPROXY_OUTBOUND_MARK);
    let table = (1..=u32::MAX).prop_filter("reserved", |table| !(253..=255).contains(table));
    ((mode, 1..=u16::MAX, 1..=u16::MAX, any::<u16>()), (vec(id(), 0..3), vec(id(), 1..3), groups), (mark, table))
        .prop_map(
            |(
                (mode, proxy_port, inbound_port, tunnel_port),
                (proxy_uids, proxy_gids, owner_groups),
                (tproxy_mark, tproxy_route_table),
            )| CaptureConfig {
                mode,
                proxy_port,
                inbound_port,
                tunnel_port,
                proxy_uids,
                proxy_gids,
                owner_groups,
                tproxy_mark,
                tproxy_route_table,
                ..CaptureConfig::default()
            },
        )
}

/// Configurations without names of groups: the kernel stores ids, so rules with names always differ from it.
pub fn config_by_id() -> impl Strategy<Value = CaptureConfig> {
    config().prop_map(|mut config| {
        let (OwnerGroups::AllBut(groups) | OwnerGroups::Only(groups)) = &mut config.owner_groups;
        groups.retain(|group| matches!(group, Group::Id(_)));
        config
    })
}

fn selections() -> impl Strategy<Value = CaptureConfig> {
    let ports = || vec(any::<u16>(), 0..4);
    // Many networks of many rerouted interfaces have a chain of their own.
    let nets = || prop_oneof![3 => vec(net(), 0..4), 1 => vec(net(), 4..9)];
    (
        prop_oneof![Just(PortSelection::All), ports().prop_map(PortSelection::Only)],
        ports(),
        prop_oneof![Just(CidrSelection::All), nets().prop_map(CidrSelection::Only)],
        nets(),
        ports(),
        ports(),
    )
        .prop_map(
            |(
                inbound_ports,
                inbound_ports_exclude,
                outbound_cidrs,
                outbound_cidrs_exclude,
                outbound_ports,
                outbound_ports_exclude,
            )| {
                CaptureConfig {
                    inbound_ports,
                    inbound_ports_exclude,
                    outbound_cidrs,
                    outbound_cidrs_exclude,
                    outbound_ports,
                    outbound_ports_exclude,
                    ..CaptureConfig::default()
                }
            },
        )
}

fn other_fields() -> impl Strategy<Value = CaptureConfig> {
    let interfaces = || {
        let name = prop_oneof!["[a-zA-Z][a-zA-Z0-9_.-]{0,14}", Just("lo".to_owned())];
        let name = name.prop_map(|name| InterfaceName::new(&name).unwrap()).boxed();
        prop_oneof![3 => vec(name.clone(), 0..3), 1 => vec(name, 3..6)]
    };
    let dns = prop_oneof![
        2 => Just(DnsCapture::Off),
        1 => Just(DnsCapture::All),
        2 => vec(any::<IpAddr>(), 0..3).prop_map(DnsCapture::Servers),
    ];
    let loopback = (any::<[u8; 3]>(), 8_u8..=32)
        .prop_map(|([b, c, d], length)| Ipv4Net::new(Ipv4Addr::new(127, b, c, d), length).unwrap());
    let ipv6 = prop_oneof![3 => Just(Ipv6Policy::Capture), 1 => Just(Ipv6Policy::Leave), 1 => Just(Ipv6Policy::Auto)];
    (interfaces(), interfaces(), dns, any::<bool>(), loopback, ipv6).prop_map(
        |(exclude_interfaces, reroute_interfaces, dns, drop_invalid, loopback, ipv6)| CaptureConfig {
            ipv6,
            exclude_interfaces,
            reroute_interfaces,
            dns,
            drop_invalid,
            loopback,
            ..CaptureConfig::default()
        },
    )
}

/// Random packet fields; see [`AnyPacket::towards`].
#[derive(Debug, Clone)]
pub struct AnyPacket {
    sent: bool,
    loopback: bool,
    owner: Option<(u32, u32)>,
    transport: Transport,
    addresses: (IpAddr, IpAddr),
    ports: (u16, u16),
    marks: (u32, u32),
    state: ConntrackState,
    /// Chooses among the values of the configuration.
    aim: [u8; 8],
}

/// Packets with random fields.
pub fn packet() -> impl Strategy<Value = AnyPacket> {
    let transport = prop_oneof![4 => Just(Transport::Tcp), 3 => Just(Transport::Udp), 1 => Just(Transport::Other(1))];
    let state = prop_oneof![6 => Just(ConntrackState::New), 1 => Just(ConntrackState::Established), 1 => Just(ConntrackState::Related), 1 => Just(ConntrackState::Invalid)];
    let owner = proptest::option::weighted(0.9, (any::<u32>(), any::<u32>()));
    (
        (any::<bool>(), any::<bool>(), owner, transport),
        any::<(IpAddr, IpAddr)>(),
        any::<((u16, u16), (u32, u32))>(),
        state,
        any::<[u8; 8]>(),
    )
        .prop_map(|((sent, loopback, owner, transport), addresses, (ports, marks), state, aim)| AnyPacket {
            sent,
            loopback,
            owner,
            transport,
            addresses,
            ports,
            marks,
            state,
            aim,
        })
}

impl AnyPacket {
    /// Returns the packet with most fields taken from the configuration; random values would never match a rule.
    pub fn towards(&self, config: &CaptureConfig) -> Packet {
        fn pick<T: Clone>(from: &[T], by: u8, or: T) -> T {
            if by.is_multiple_of(4) || from.is_empty() { or } else { from[usize::from(by / 4) % from.len()].clone() }
        }
        let mut nets: Vec<IpAddr> = config.outbound_cidrs_exclude.iter().map(IpNet::addr).collect();
        if let CidrSelection::Only(included) = &config.outbound_cidrs {
            nets.extend(included.iter().map(IpNet::addr));
        }
        if let DnsCapture::Servers(servers) = &config.dns {
            nets.extend(servers);
        }
        nets.extend([
            IpAddr::from([127, 0, 0, 1]),
            config.loopback.addr().into(),
            IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]),
        ]);
        let destination = pick(&nets, self.aim[0], self.addresses.0);
        let same_family = |address: &IpAddr| address.is_ipv4() == destination.is_ipv4();
        let mut sources = vec![IpAddr::V4(names::address::PASSTHROUGH_V4), IpAddr::V6(names::address::PASSTHROUGH_V6)];
        sources.extend(&nets);
        sources.retain(same_family);
        let other = if destination.is_ipv4() {
            IpAddr::from([10, 0, 0, 2])
        } else {
            IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 2])
        };
        let mut ports = vec![53, 15053, config.tunnel_port, config.proxy_port];
        ports.extend(
            config.inbound_ports_exclude.iter().chain(&config.outbound_ports).chain(&config.outbound_ports_exclude),
        );
        if let PortSelection::Only(included) = &config.inbound_ports {
            ports.extend(included);
        }
        let (OwnerGroups::AllBut(groups) | OwnerGroups::Only(groups)) = &config.owner_groups;
        let gids = groups.iter().filter_map(|group| if let Group::Id(id) = group { Some(id) } else { None });
        let gids: Vec<u32> = gids.chain(&config.proxy_gids).copied().collect();
        let marks = [0, 0, config.tproxy_mark, names::TPROXY_OUTBOUND_MARK];
        let interfaces: Vec<String> =
            config.exclude_interfaces.iter().chain(&config.reroute_interfaces).map(ToString::to_string).collect();
        let interface = if self.loopback { "lo".to_owned() } else { pick(&interfaces, self.aim[1], "eth0".to_owned()) };
        let owner = self.owner.map(|(uid, gid)| Owner {
            uid: pick(&config.proxy_uids, self.aim[2], uid),
            gid: pick(&gids, self.aim[3], gid),
        });
        Packet {
            // nf_tables compares owners only where there is one; see `nft/lower.rs` in weir-kernel for the difference.
            origin: match owner {
                Some(_) if self.sent => PacketOrigin::Sent { interface, owner },
                _ => PacketOrigin::Received { interface },
            },
            transport: self.transport,
            source: pick(&sources, self.aim[4], other),
            source_port: pick(&ports, self.aim[5], self.ports.0),
            destination,
            destination_port: pick(&ports, self.aim[6], self.ports.1),
            mark: pick(&marks, self.aim[7], self.marks.0),
            connection_mark: if self.state == ConntrackState::New {
                0
            } else {
                pick(&marks, self.aim[7].rotate_left(3), self.marks.1)
            },
            state: self.state,
        }
    }
}
