//! TCP segments that no socket would send.

use std::net::{IpAddr, SocketAddr};

/// Flags of a segment (RFC 9293, 3.1).
pub const FIN: u8 = 0x01;
/// See [`FIN`].
pub const RST: u8 = 0x04;
/// See [`FIN`].
pub const ACK: u8 = 0x10;

/// Length of a TCP header without options, in bytes (RFC 9293, 3.1).
const HEADER: usize = 20;

/// A segment without data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Source.
    pub from: SocketAddr,
    /// Destination.
    pub to: SocketAddr,
    /// TCP flags.
    pub flags: u8,
}

impl Segment {
    /// Encodes the TCP header, as a raw socket sends it.
    ///
    /// # Panics
    /// Never: the sum is folded to 16 bits.
    pub fn bytes(&self) -> Vec<u8> {
        let mut header = vec![0; HEADER];
        header[..2].copy_from_slice(&self.from.port().to_be_bytes());
        header[2..4].copy_from_slice(&self.to.port().to_be_bytes());
        header[4..8].copy_from_slice(&1000_u32.to_be_bytes()); // sequence number, any
        header[12] = 5 << 4; // length in words
        header[13] = self.flags;
        header[14..16].copy_from_slice(&1024_u16.to_be_bytes()); // window
        let octets = |ip: IpAddr| match ip {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        // Pseudo header: addresses, protocol 6, length (RFC 9293, 3.1; RFC 8200, 8.1).
        let summed = [octets(self.from.ip()), octets(self.to.ip()), vec![0, 6, 0, 20], header.clone()].concat();
        let sum: u32 = summed.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        let folded = (sum & 0xffff) + (sum >> 16);
        let folded = (folded & 0xffff) + (folded >> 16);
        header[16..18].copy_from_slice(&(!u16::try_from(folded).unwrap_or(0)).to_be_bytes());
        header
    }

    /// Returns the ports and flags of a packet that a raw socket has received. Over IPv4 it has its IP header, whose length in words is
    /// in the low half of its first byte (raw(7)).
    pub fn parse_ports(packet: &[u8], v4: bool) -> Option<(u16, u16, u8)> {
        let start = if v4 { usize::from(packet.first()? & 0x0f) * 4 } else { 0 };
        let tcp = packet.get(start..).filter(|tcp| tcp.len() >= HEADER)?;
        Some((u16::from_be_bytes([tcp[0], tcp[1]]), u16::from_be_bytes([tcp[2], tcp[3]]), tcp[13]))
    }
}
