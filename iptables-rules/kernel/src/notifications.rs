//! Notifications of the kernel about changes in a network namespace, so that nobody has to poll it.
//!
//! A socket belongs to the namespace of the thread that opened it, and keeps that namespace alive until it is closed. Its receive buffer is
//! small: whoever changes things in the namespace fills it, the kernel drops the rest without waking anybody, and the overrun counts as a
//! change. Legacy tables of iptables (x_tables) send no notifications.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use netlink_packet_netfilter::nftables::{GenAttribute, NfTablesMessage};
use netlink_packet_netfilter::{NetfilterMessage, NetfilterMessageInner};
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::{MsgFlags, setsockopt, sockopt};

use crate::netlink::{messages, object};

/// `NFNLGRP_NFTABLES`, linux/netfilter/nfnetlink.h.
const NFTABLES_GROUP: u32 = 7;
/// `RTNLGRP_LINK`, `_IPV4_IFADDR`, `_IPV4_ROUTE`, `_IPV4_RULE`, `_IPV6_IFADDR`, `_IPV6_ROUTE`, `_IPV6_RULE`, linux/rtnetlink.h.
const ROUTING_GROUPS: [u32; 7] = [1, 5, 7, 8, 9, 11, 19];
/// Receive buffers in bytes; the kernel doubles them. A buffer takes memory only while it holds messages.
const NFTABLES_BUFFER: usize = 32 << 10;
const ROUTING_BUFFER: usize = 8 << 10;
/// Most datagrams that one call reads: another writer may add them as fast as they are read.
const MAX_DATAGRAMS: usize = 256;
/// Longest datagram that is decoded; notifications have less than a page, unless an object of somebody else is larger.
const DATAGRAM: usize = 16 << 10;
/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWGEN`, the end of every transaction.
const NEW_GENERATION: u16 = 10 << 8 | 15;
/// `RTM_NEWROUTE` and `NLM_F_REPLACE`. A route that replaces no other takes nothing away; routers announce such routes all the time.
const NEW_ROUTE: u16 = 24;
const REPLACE: u16 = 0x100;

/// A socket that receives notifications about the namespace in which it was opened. It never blocks.
#[derive(Debug)]
pub struct NotificationSocket {
    socket: Socket,
    is_change: fn(u16, u16, &[u8], Option<u32>) -> bool,
}

/// Notifications that were read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drained {
    /// Whether something may have changed: true as well if notifications were lost or cannot be read.
    pub changed: bool,
    /// Whether the socket is empty. Otherwise the limit of one call was reached, and the next call reads on.
    pub empty: bool,
}

impl NotificationSocket {
    /// Subscribes to transactions of nf_tables.
    pub fn nftables() -> io::Result<Self> {
        Self::open(NETLINK_NETFILTER, &[NFTABLES_GROUP], NFTABLES_BUFFER, is_new_generation)
    }

    /// Subscribes to changes of links, addresses, routes and routing rules.
    pub fn routing() -> io::Result<Self> {
        Self::open(NETLINK_ROUTE, &ROUTING_GROUPS, ROUTING_BUFFER, |kind, flags, _, _| {
            kind != NEW_ROUTE || flags & REPLACE != 0
        })
    }

    fn open(
        protocol: isize,
        groups: &[u32],
        buffer: usize,
        is_change: fn(u16, u16, &[u8], Option<u32>) -> bool,
    ) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.set_non_blocking(true)?;
        setsockopt(&socket, sockopt::RcvBuf, &buffer)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        for group in groups {
            socket.add_membership(*group)?;
        }
        Ok(Self { socket, is_change })
    }

    /// Reads and drops what is queued, within a bound. Transactions of nf_tables up to the generation `seen` are no changes.
    pub fn drain(&self, seen: Option<u32>) -> Drained {
        let mut buffer: Vec<u8> = Vec::with_capacity(DATAGRAM);
        let flags = (MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC).bits();
        let mut changed = false;
        for _ in 0..MAX_DATAGRAMS {
            buffer.clear();
            match self.socket.recv_from(&mut buffer, flags) {
                // Any process of the namespace with NET_ADMIN can send to the group.
                Ok((_, sender)) if sender.port_number() != 0 => {}
                Ok((length, _)) if length > DATAGRAM => changed = true,
                Ok(_) => {
                    let read = messages(&buffer, |header, bytes| {
                        changed |= (self.is_change)(header.message_type(), header.flags(), bytes, seen);
                        Ok(())
                    });
                    changed |= read.is_err();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Drained { changed, empty: true },
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // ENOBUFS: some were lost. Whatever else it is, a look tells more.
                Err(_) => changed = true,
            }
        }
        Drained { changed, empty: false }
    }
}

impl AsRawFd for NotificationSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// Returns whether a message ends a transaction that is later than `seen`.
fn is_new_generation(kind: u16, _flags: u16, message: &[u8], seen: Option<u32>) -> bool {
    if kind != NEW_GENERATION {
        return false;
    }
    let decoded = object::<NetfilterMessage>(message).ok().flatten();
    let id = decoded.and_then(|message| match message.inner {
        NetfilterMessageInner::NfTables(NfTablesMessage::NewGen(generation)) => {
            generation.attributes.iter().find_map(|attribute| match attribute {
                GenAttribute::Id(id) => Some(*id),
                _ => None,
            })
        }
        _ => None,
    });
    // The number wraps around.
    seen.zip(id).is_none_or(|(seen, id)| seen.wrapping_sub(id) > u32::MAX / 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nft;
    use crate::testing::{in_namespace, nft as run_nft, tool};

    const QUIET: Drained = Drained { changed: false, empty: true };
    const CHANGED: Drained = Drained { changed: true, empty: true };

    #[test]
    fn transactions_are_notified_and_told_from_seen_ones() {
        in_namespace(|| {
            let socket = NotificationSocket::nftables().unwrap();
            assert_eq!(socket.drain(None), QUIET);
            run_nft("add table inet other");
            let seen = nft::generation().unwrap();
            assert_eq!(socket.drain(None), CHANGED);
            assert_eq!(socket.drain(None), QUIET, "read once");
            run_nft("add chain inet other a");
            assert_eq!(socket.drain(Some(seen)), CHANGED);
            run_nft("delete table inet other");
            let seen = nft::generation().unwrap();
            assert_eq!(socket.drain(Some(seen)), QUIET);
        });
    }

    #[test]
    fn changes_of_addresses_rules_and_replaced_routes_are_notified() {
        in_namespace(|| {
            tool("ip", &["link", "set", "lo", "up"], "");
            let socket = NotificationSocket::routing().unwrap();
            for (command, expected) in [
                ("addr add 10.9.9.9/32 dev lo", CHANGED),
                ("addr del 10.9.9.9/32 dev lo", CHANGED),
                ("rule add fwmark 7 lookup 7", CHANGED),
                ("rule del fwmark 7 lookup 7", CHANGED),
                ("route add local 10.8.0.0/16 dev lo table 7", QUIET),
                ("route replace unreachable 10.8.0.0/16 table 7", CHANGED),
                ("route del unreachable 10.8.0.0/16 table 7", CHANGED),
                ("link add v0 type veth peer v1", CHANGED),
            ] {
                socket.drain(None);
                tool("ip", &command.split(' ').collect::<Vec<_>>(), "");
                assert_eq!(socket.drain(None), expected, "{command}");
            }
        });
    }

    #[test]
    fn lost_notifications_are_a_change() {
        in_namespace(|| {
            let socket = NotificationSocket::nftables().unwrap();
            run_nft("add table inet other");
            for number in 0..400 {
                run_nft(&format!("add chain inet other c{number}"));
            }
            let seen = nft::generation().unwrap();
            assert_eq!(socket.drain(Some(seen)), CHANGED);
            assert_eq!(socket.drain(Some(seen)), QUIET);
        });
    }
}
