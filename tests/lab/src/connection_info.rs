//! Addresses of a connection as its listener sees them, in one line of text.

use std::fmt;
use std::net::{IpAddr, SocketAddr, SocketAddrV6, TcpStream};
use std::str::FromStr;

use socket2::SockRef;

/// Addresses of a connection as its listener sees them.
///
/// As text: `port=15006 local=10.0.0.2:15006 original_dst=10.0.0.2:8080 peer=10.0.0.1:40000`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionInfo {
    /// Port of the listener that took the connection.
    pub port: u16,
    /// Local address after any redirection; with TPROXY, the original destination.
    pub local: SocketAddr,
    /// Original destination from connection tracking; `None` if the connection is not tracked.
    pub original_dst: Option<SocketAddr>,
    /// Address of the client.
    pub peer: SocketAddr,
}

impl ConnectionInfo {
    /// Reads the addresses of an accepted connection.
    pub fn from_stream(stream: &TcpStream) -> std::io::Result<Self> {
        let local = canonical(stream.local_addr()?);
        Ok(Self { port: local.port(), local, original_dst: original_dst(stream), peer: canonical(stream.peer_addr()?) })
    }
}

/// Returns the destination before redirection: `SO_ORIGINAL_DST` of the family *of the packets*. For an IPv4 connection, a dual-stack socket
/// supports `SOL_IP` only (`linux/netfilter_ipv4.h`, `linux/netfilter_ipv6/ip6_tables.h`).
pub fn original_dst(stream: &TcpStream) -> Option<SocketAddr> {
    let socket = SockRef::from(stream);
    let over_v4 = stream.local_addr().is_ok_and(|local| canonical(local).is_ipv4());
    let answer = if over_v4 { socket.original_dst_v4() } else { socket.original_dst_v6() };
    answer.ok().and_then(|address| address.as_socket()).map(canonical)
}

/// Returns an address in comparable form: not IPv4-mapped, without flow label and scope.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    match (address.ip().to_canonical(), address) {
        (IpAddr::V6(ip), _) => SocketAddrV6::new(ip, address.port(), 0, 0).into(),
        (ip @ IpAddr::V4(_), _) => SocketAddr::new(ip, address.port()),
    }
}

impl fmt::Display for ConnectionInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "port={} local={} original_dst=", self.port, self.local)?;
        match self.original_dst {
            Some(address) => write!(f, "{address}")?,
            None => f.write_str("none")?,
        }
        write!(f, " peer={}", self.peer)
    }
}

/// Error returned for a line that is not a [`ConnectionInfo`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid connection info '{0}'")]
pub struct ParseConnectionInfoError(String);

impl FromStr for ConnectionInfo {
    type Err = ParseConnectionInfoError;

    fn from_str(line: &str) -> Result<Self, ParseConnectionInfoError> {
        fn field<'a>(line: &'a str, name: &str) -> Option<&'a str> {
            line.split_whitespace().find_map(|part| part.strip_prefix(name)?.strip_prefix('='))
        }
        let parse = || {
            Some(Self {
                port: field(line, "port")?.parse().ok()?,
                local: field(line, "local")?.parse().ok()?,
                original_dst: match field(line, "original_dst")? {
                    "none" => None,
                    address => Some(address.parse().ok()?),
                },
                peer: field(line, "peer")?.parse().ok()?,
            })
        };
        parse().ok_or_else(|| ParseConnectionInfoError(line.chars().take(200).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_what_it_formats() {
        for line in [
            "port=15006 local=10.0.0.2:15006 original_dst=10.0.0.2:8080 peer=10.0.0.1:40000",
            "port=8080 local=[fd00::2]:8080 original_dst=none peer=[fd00::1]:40000",
        ] {
            assert_eq!(line.parse::<ConnectionInfo>().unwrap().to_string(), line);
        }
    }

    #[test]
    fn rejects_other_lines() {
        assert!("HTTP/1.1 200 OK".parse::<ConnectionInfo>().is_err());
        assert!("port=1 local=x original_dst=none peer=y".parse::<ConnectionInfo>().is_err());
    }

    #[test]
    fn mapped_addresses_are_ipv4() {
        assert_eq!(canonical("[::ffff:10.0.0.1]:80".parse().unwrap()), "10.0.0.1:80".parse().unwrap());
    }
}
