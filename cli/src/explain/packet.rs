//! Builds a packet from the options of the command line.

mod reader;

use std::net::IpAddr;

use clap::{Args, ValueEnum};
use iptables_rules::CaptureConfig;
use iptables_rules::names;
use iptables_rules::trace::{Owner, Packet, PacketOrigin};

use reader::PacketReader;

/// Options for a packet.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Packet")]
pub(crate) struct PacketArgs {
    /// Sender of the packet [default: app]
    #[arg(long, value_enum, value_name = "SENDER")]
    from: Option<Sender>,

    #[arg(
        long,
        value_name = "DESTINATION",
        help = "Destination: ADDRESS:PORT or [ADDRESS]:PORT, followed by /udp for UDP; with --from outside, PORT is enough"
    )]
    to: Option<String>,

    /// Source: ADDRESS or ADDRESS:PORT
    #[arg(long, value_name = "ADDRESS")]
    source: Option<String>,

    /// User that owns the sending socket
    #[arg(long, value_name = "UID")]
    uid: Option<String>,

    /// Group that owns the sending socket [default: the id of the user]
    #[arg(long, value_name = "GID")]
    gid: Option<String>,

    /// Interface on which a packet from outside arrives [default: eth0]
    #[arg(long, value_name = "INTERFACE")]
    in_interface: Option<String>,

    /// Interface on which a packet of the pod leaves [default: lo to addresses of the pod, eth0 to others]
    #[arg(long, value_name = "INTERFACE")]
    out_interface: Option<String>,

    /// Address of the pod; repeat for the second family
    #[arg(long, value_name = "ADDRESS")]
    pod_ip: Vec<String>,

    /// Mark of the packet (SO_MARK), decimal or 0x...
    #[arg(long, value_name = "MARK")]
    mark: Option<String>,

    /// Mark of its connection, decimal or 0x...
    #[arg(long, value_name = "MARK")]
    connection_mark: Option<String>,

    /// State in connection tracking [default: new, the packet that decides about a connection]
    #[arg(long, value_enum, value_name = "STATE")]
    state: Option<Tracked>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Sender {
    /// The application in the pod
    #[default]
    App,
    /// The proxy in the pod
    Proxy,
    /// A client outside of the pod
    Outside,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Tracked {
    /// The first packet of a connection
    New,
    /// A packet of a known connection
    Established,
    /// The first packet of a connection that another one announced
    Related,
    /// A packet that belongs to no connection
    Invalid,
}

/// Facts about a pod that complete a packet.
#[derive(Debug, Clone)]
pub(crate) struct PodIdentity {
    pub(crate) proxy: Owner,
    /// Users and groups that the rules treat as the proxy.
    pub(crate) proxy_ids: Vec<u32>,
    /// Addresses of the pod; empty if unknown.
    pub(crate) addresses: Vec<IpAddr>,
}

impl PodIdentity {
    pub(crate) fn of(config: &CaptureConfig) -> Self {
        let first = |ids: &[u32]| ids.first().copied();
        let uid = first(&config.proxy_uids).or(first(&config.proxy_gids)).unwrap_or(names::PROXY_ID);
        Self {
            proxy: Owner { uid, gid: first(&config.proxy_gids).unwrap_or(uid) },
            proxy_ids: [config.proxy_uids.as_slice(), &config.proxy_gids].concat(),
            addresses: Vec::new(),
        }
    }
}

/// A packet, with the assumptions that completed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PacketQuery {
    pub(crate) packet: Packet,
    pub(crate) sender: Sender,
    /// One clause each.
    pub(crate) assumptions: Vec<String>,
}

impl PacketQuery {
    /// Returns a query of a complete packet.
    pub(crate) fn of(packet: Packet) -> Self {
        let proxy = |owner: &Owner| [owner.uid, owner.gid].contains(&names::PROXY_ID);
        let sender = match &packet.origin {
            PacketOrigin::Received { .. } => Sender::Outside,
            PacketOrigin::Sent { owner: Some(owner), .. } if proxy(owner) => Sender::Proxy,
            PacketOrigin::Sent { .. } => Sender::App,
        };
        Self { packet, sender, assumptions: Vec::new() }
    }
}

impl PacketArgs {
    /// Returns whether any of the options is set.
    pub(crate) fn is_given(&self) -> bool {
        let texts = [
            &self.to,
            &self.source,
            &self.uid,
            &self.gid,
            &self.in_interface,
            &self.out_interface,
            &self.mark,
            &self.connection_mark,
        ];
        self.from.is_some()
            || self.state.is_some()
            || !self.pod_ip.is_empty()
            || texts.iter().any(|text| text.is_some())
    }

    /// Builds the packet, completed with facts about the pod; `None` without options.
    ///
    /// # Errors
    /// Every invalid option.
    pub(crate) fn query(&self, pod: &PodIdentity) -> Result<Option<PacketQuery>, Vec<String>> {
        if !self.is_given() {
            return Ok(None);
        }
        PacketReader::new(self, pod).read().map(Some)
    }
}
