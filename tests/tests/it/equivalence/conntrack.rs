//! Reads and flushes the connection tracking of a namespace.

use std::collections::HashMap;
use std::fs;
use std::net::{IpAddr, SocketAddr};

use iptables_rules::trace::Transport;
use netlink_sys::{Socket, protocols::NETLINK_NETFILTER};

/// One connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Original destination.
    pub(crate) destination: SocketAddr,
    /// Source of replies, which differs from the destination where that was translated.
    pub(crate) reply_source: SocketAddr,
    pub(crate) zone: u16,
    pub(crate) mark: u32,
}

/// Returns the connections of the calling thread's namespace by protocol and source.
pub(crate) fn entries() -> HashMap<(&'static str, SocketAddr), Entry> {
    let text = fs::read_to_string("/proc/thread-self/net/nf_conntrack").unwrap_or_default();
    text.lines().filter_map(entry).collect()
}

/// Parses `ipv4 2 udp 17 29 src=A dst=B sport=1 dport=2 [UNREPLIED] src=B dst=A sport=2 dport=1 mark=0 zone=2 use=2`
fn entry(line: &str) -> Option<((&'static str, SocketAddr), Entry)> {
    let transport = match line.split_whitespace().nth(2)? {
        "tcp" => "tcp",
        "udp" => "udp",
        _ => return None,
    };
    let all = |key: &str| -> Vec<&str> {
        line.split_whitespace().filter_map(|word| word.strip_prefix(key)?.strip_prefix('=')).collect()
    };
    let end = |address: &str, port: &str, at: usize| -> Option<SocketAddr> {
        let address: IpAddr = all(address).get(at)?.parse().ok()?;
        Some((address, all(port).get(at)?.parse().ok()?).into())
    };
    let number = |key: &str| all(key).first().and_then(|text| text.parse().ok()).unwrap_or(0);
    Some((
        (transport, end("src", "sport", 0)?),
        Entry {
            destination: end("dst", "dport", 0)?,
            reply_source: end("src", "sport", 1)?,
            zone: u16::try_from(number("zone")).ok()?,
            mark: number("mark"),
        },
    ))
}

/// Returns the name of a protocol in the list.
pub(crate) fn name(transport: Transport) -> &'static str {
    if transport == Transport::Udp { "udp" } else { "tcp" }
}

/// Removes every connection of the calling thread's namespace: `IPCTNL_MSG_CT_DELETE` without a tuple
/// (linux/netfilter/nfnetlink_conntrack.h).
pub(crate) fn flush() {
    let mut message = Vec::new();
    message.extend(20_u32.to_ne_bytes());
    message.extend((1_u16 << 8 | 2).to_ne_bytes()); // NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_DELETE
    message.extend(5_u16.to_ne_bytes()); // NLM_F_REQUEST, NLM_F_ACK
    message.extend([0; 12]); // sequence, port; family, version, resource
    let socket = Socket::new(NETLINK_NETFILTER).unwrap();
    socket.send(&message, 0).unwrap();
    let response = socket.recv_from_full().unwrap().0;
    assert_eq!(response.get(16..20), Some(&[0; 4][..]), "cannot flush connection tracking");
}
