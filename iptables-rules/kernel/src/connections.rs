//! New connections of a network namespace, as the kernel's connection tracking reports them. Nothing in the namespace is changed.
//!
//! The source of the replies tells what became of a connection: it is the destination, unless that was translated, as a redirection to the
//! proxy does. TPROXY translates nothing and leaves no trace here.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr as NetlinkAddr};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, setsockopt, sockopt};

/// `NFNLGRP_CONNTRACK_NEW`, linux/netfilter/nfnetlink.h.
const NEW_CONNECTIONS_GROUP: u32 = 1;
/// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_NEW`.
const NEW_CONNECTION: u16 = 1 << 8;
/// Receive buffer in bytes; the kernel doubles it.
const BUFFER: usize = 256 << 10;
/// Longest datagram: one message has less than a page.
const DATAGRAM: usize = 16 << 10;
/// Lengths of `nlmsghdr`, and of that with `nfgenmsg`.
const NETLINK_HEADER: usize = 16;
const HEADERS: usize = 20;
/// Attribute types, linux/netfilter/nfnetlink_conntrack.h.
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const ADDRESSES: u16 = 1;
const PROTOCOL: u16 = 2;
/// Flags of attribute types: `NLA_F_NESTED`, `NLA_F_NET_BYTEORDER`.
const TYPE: u16 = !(1 << 15 | 1 << 14);

/// A new connection of TCP or UDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewConnection {
    /// Transport protocol (`IPPROTO_TCP` or `IPPROTO_UDP`).
    pub protocol: u8,
    /// Address and port of the client.
    pub source: SocketAddr,
    /// Address and port that the client connects to.
    pub destination: SocketAddr,
    /// Source of the replies: the destination, or what it was translated to.
    pub reply_source: SocketAddr,
}

/// Reports the connections that begin after it was opened, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct ConnectionMonitor(Socket);

impl ConnectionMonitor {
    /// Subscribes.
    ///
    /// # Errors
    /// The kernel has no connection tracking events (`nf_conntrack_netlink`), or refuses.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        setsockopt(&socket, sockopt::RcvBuf, &BUFFER)?;
        socket.bind(&NetlinkAddr::new(0, 0))?;
        socket.add_membership(NEW_CONNECTIONS_GROUP)?;
        Ok(Self(socket))
    }

    /// Collects connections until the time is over, or `limit` have come. Returns whether some may be missing.
    ///
    /// # Errors
    /// The socket fails.
    pub fn collect(&self, time: Duration, limit: usize) -> io::Result<(Vec<NewConnection>, bool)> {
        let deadline = Instant::now() + time;
        let (mut found, mut is_truncated) = (Vec::new(), false);
        let mut buffer: Vec<u8> = Vec::with_capacity(DATAGRAM);
        while found.len() < limit {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok((found, is_truncated));
            }
            let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
            poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], timeout).map_err(io::Error::from)?;
            buffer.clear();
            match self.0.recv_from(&mut buffer, (MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC).bits()) {
                // Any process of the namespace with NET_ADMIN can send to the group.
                Ok((_, sender)) if sender.port_number() != 0 => {}
                Ok((length, _)) if length > DATAGRAM => is_truncated = true,
                Ok(_) => found.extend(parse(&buffer)),
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                // The kernel has dropped some.
                Err(error) if error.raw_os_error() == Some(nix::errno::Errno::ENOBUFS as i32) => is_truncated = true,
                Err(error) => return Err(error),
            }
        }
        Ok((found, true))
    }
}

/// Returns the connection of a message; `None` for other messages and protocols, and for what is malformed.
fn parse(datagram: &[u8]) -> Option<NewConnection> {
    let length = usize::try_from(u32::from_ne_bytes(datagram.get(..4)?.try_into().ok()?)).ok()?;
    let kind = u16::from_ne_bytes(datagram.get(4..6)?.try_into().ok()?);
    if kind != NEW_CONNECTION || length < HEADERS.max(NETLINK_HEADER) {
        return None;
    }
    let message = datagram.get(HEADERS..length)?;
    let [original, reply] = [ORIGINAL, REPLY].map(|kind| tuple(attribute(message, kind)?));
    let ((protocol, source, destination), (_, reply_source, _)) = (original?, reply?);
    Some(NewConnection { protocol, source, destination, reply_source })
}

/// Returns protocol, source and destination of a tuple.
fn tuple(tuple: &[u8]) -> Option<(u8, SocketAddr, SocketAddr)> {
    let (addresses, transport) = (attribute(tuple, ADDRESSES)?, attribute(tuple, PROTOCOL)?);
    // CTA_IP_V4_SRC, _DST, CTA_IP_V6_SRC, _DST.
    let address = |v4: u16, v6: u16| -> Option<IpAddr> {
        if let Some(bytes) = attribute(addresses, v4) {
            return Some(<[u8; 4]>::try_from(bytes).ok()?.into());
        }
        Some(<[u8; 16]>::try_from(attribute(addresses, v6)?).ok()?.into())
    };
    // CTA_PROTO_NUM, _SRC_PORT, _DST_PORT.
    let port = |kind: u16| Some(u16::from_be_bytes(attribute(transport, kind)?.try_into().ok()?));
    let protocol = *attribute(transport, 1)?.first()?;
    Some((protocol, (address(1, 3)?, port(2)?).into(), (address(2, 4)?, port(3)?).into()))
}

/// Returns the value of the first attribute of a type.
fn attribute(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & TYPE;
        let value = bytes.get(4..length)?;
        if kind == wanted {
            return Some(value);
        }
        // Attributes are aligned to four bytes.
        bytes = bytes.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;
    use std::thread;

    use super::*;
    use crate::testing::{in_namespace, nft, tool};

    #[test]
    fn redirected_and_other_connections_are_told_apart() {
        in_namespace(|| {
            tool("ip", &["link", "set", "lo", "up"], "");
            nft(
                "add table ip t; add chain ip t o { type nat hook output priority -100; }; add rule ip t o tcp dport 80 redirect to :15001",
            );
            let monitor = ConnectionMonitor::open().unwrap();
            // Nobody listens, which the kernel says at once.
            for port in [80, 81] {
                TcpStream::connect_timeout(&([127, 0, 0, 9], port).into(), Duration::from_secs(5)).unwrap_err();
            }
            let (found, is_truncated) = monitor.collect(Duration::from_secs(10), 2).unwrap();
            assert!(is_truncated, "there may be more than two");
            let replies: Vec<_> = found.iter().map(|one| (one.protocol, one.destination, one.reply_source)).collect();
            let [at_80, at_81] = [80, 81].map(|port| SocketAddr::from(([127, 0, 0, 9], port)));
            assert_eq!(replies, [(6, at_80, ([127, 0, 0, 1], 15001).into()), (6, at_81, at_81)]);
            let quiet = thread::scope(|scope| scope.spawn(|| monitor.collect(Duration::from_millis(1), 2)).join());
            assert_eq!(quiet.unwrap().unwrap(), (Vec::new(), false));
        });
    }

    #[test]
    fn malformed_messages_are_no_connections() {
        // As the kernel sent it: 10.9.9.1:32788 to 10.9.9.2:80, answered by 127.0.0.1:15001.
        let tuple = |kind: u16, from: [u8; 4], to: [u8; 4], ports: [u16; 2]| {
            let attribute = |kind: u16, value: &[u8]| {
                let length = u16::try_from(value.len() + 4).unwrap();
                let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
                bytes.extend(value);
                bytes.resize(bytes.len().next_multiple_of(4), 0);
                bytes
            };
            let addresses = [attribute(1, &from), attribute(2, &to)].concat();
            let transport =
                [attribute(1, &[6]), attribute(2, &ports[0].to_be_bytes()), attribute(3, &ports[1].to_be_bytes())]
                    .concat();
            attribute(
                kind | 1 << 15,
                &[attribute(1 | 1 << 15, &addresses), attribute(2 | 1 << 15, &transport)].concat(),
            )
        };
        let body = [
            tuple(ORIGINAL, [10, 9, 9, 1], [10, 9, 9, 2], [32788, 80]),
            tuple(REPLY, [127, 0, 0, 1], [10, 9, 9, 1], [15001, 32788]),
        ]
        .concat();
        let length = u32::try_from(HEADERS + body.len()).unwrap();
        let mut message = [&length.to_ne_bytes()[..], &NEW_CONNECTION.to_ne_bytes(), &[0; 14]].concat();
        message.extend(&body);
        let parsed = parse(&message).unwrap();
        assert_eq!(
            (parsed.destination, parsed.reply_source),
            (([10, 9, 9, 2], 80).into(), ([127, 0, 0, 1], 15001).into())
        );
        for end in 0..message.len() {
            assert_eq!(parse(&message[..end]), None, "{end}");
        }
        for at in 0..message.len() {
            let mut changed = message.clone();
            changed[at] ^= 0xff;
            // Whatever it means, it is read within its bounds.
            let _ = parse(&changed);
        }
    }
}
