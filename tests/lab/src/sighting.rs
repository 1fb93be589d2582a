//! What a listener saw of a connection, as one line of text.

use std::fmt;
use std::net::{IpAddr, SocketAddr, SocketAddrV6, TcpStream};
use std::str::FromStr;

use socket2::SockRef;

/// What a listener saw of a connection.
///
/// As text: `port=15006 local=10.0.0.2:15006 original_dst=10.0.0.2:8080 peer=10.0.0.1:40000`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sighting {
    /// Port of the listener that took the connection.
    pub port: u16,
    /// Address at which it arrived, after any redirection; TPROXY keeps the original one here.
    pub local: SocketAddr,
    /// Where the client wanted to go, as connection tracking remembers it; `None` where it knows nothing of the connection.
    pub original_dst: Option<SocketAddr>,
    /// Where the connection came from.
    pub peer: SocketAddr,
}

impl Sighting {
    /// Looks at an accepted connection whose listener has the port of its local address.
    ///
    /// # Errors
    /// When the connection is gone already.
    pub fn of(stream: &TcpStream) -> std::io::Result<Self> {
        let local = canonical(stream.local_addr()?);
        Ok(Self { port: local.port(), local, original_dst: original_dst(stream), peer: canonical(stream.peer_addr()?) })
    }
}

/// The destination before redirection: `SO_ORIGINAL_DST` of the family *of the packets*. A dual-stack socket that was called over IPv4
/// answers to `SOL_IP` only (`linux/netfilter_ipv4.h`, `linux/netfilter_ipv6/ip6_tables.h`).
pub fn original_dst(stream: &TcpStream) -> Option<SocketAddr> {
    let socket = SockRef::from(stream);
    let over_v4 = stream.local_addr().is_ok_and(|local| canonical(local).is_ipv4());
    let answer = if over_v4 { socket.original_dst_v4() } else { socket.original_dst_v6() };
    answer.ok().and_then(|address| address.as_socket()).map(canonical)
}

/// An address without what a comparison must not depend on: IPv4-mapped form, flow label, scope.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    match (address.ip().to_canonical(), address) {
        (IpAddr::V6(ip), _) => SocketAddrV6::new(ip, address.port(), 0, 0).into(),
        (ip @ IpAddr::V4(_), _) => SocketAddr::new(ip, address.port()),
    }
}

impl fmt::Display for Sighting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "port={} local={} original_dst=", self.port, self.local)?;
        match self.original_dst {
            Some(address) => write!(f, "{address}")?,
            None => f.write_str("none")?,
        }
        write!(f, " peer={}", self.peer)
    }
}

/// A line that is no [`Sighting`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' does not tell what a listener saw")]
pub struct NotASighting(String);

impl FromStr for Sighting {
    type Err = NotASighting;

    fn from_str(line: &str) -> Result<Self, NotASighting> {
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
        parse().ok_or_else(|| NotASighting(line.chars().take(200).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_back_what_it_writes() {
        for line in [
            "port=15006 local=10.0.0.2:15006 original_dst=10.0.0.2:8080 peer=10.0.0.1:40000",
            "port=8080 local=[fd00::2]:8080 original_dst=none peer=[fd00::1]:40000",
        ] {
            assert_eq!(line.parse::<Sighting>().unwrap().to_string(), line);
        }
    }

    #[test]
    fn refuses_other_lines() {
        assert!("HTTP/1.1 200 OK".parse::<Sighting>().is_err());
        assert!("port=1 local=x original_dst=none peer=y".parse::<Sighting>().is_err());
    }

    #[test]
    fn mapped_addresses_are_ipv4() {
        assert_eq!(canonical("[::ffff:10.0.0.1]:80".parse().unwrap()), "10.0.0.1:80".parse().unwrap());
    }
}
