//! Addresses to listen on, as flags name them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// `[HOST]:PORT` as Go programs write it. The host is an IP address; without one, all addresses of both families.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListenAddr {
    host: Option<IpAddr>,
    port: u16,
}

impl ListenAddr {
    /// Returns this port on all addresses.
    pub const fn any(port: u16) -> Self {
        Self { host: None, port }
    }

    /// Returns the addresses to try in turn: without a host the dual-stack one first, then IPv4 alone, for kernels without IPv6.
    pub fn candidates(self) -> Vec<SocketAddr> {
        match self.host {
            Some(host) => vec![SocketAddr::new(host, self.port)],
            None => vec![(Ipv6Addr::UNSPECIFIED, self.port).into(), (Ipv4Addr::UNSPECIFIED, self.port).into()],
        }
    }
}

impl From<SocketAddr> for ListenAddr {
    fn from(addr: SocketAddr) -> Self {
        Self { host: Some(addr.ip()), port: addr.port() }
    }
}

impl FromStr for ListenAddr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(port) = text.strip_prefix(':') {
            return port.parse().map(Self::any).map_err(|_| format!("{port:?} is not a valid port (0-65535)"));
        }
        let addr: SocketAddr = text
            .parse()
            .map_err(|_| "expected [HOST]:PORT with an IP address as host, such as :15017 or 127.0.0.1:15017")?;
        Ok(Self { host: Some(addr.ip()), port: addr.port() })
    }
}

impl std::fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.host {
            Some(host) => SocketAddr::new(host, self.port).fmt(f),
            None => write!(f, ":{}", self.port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_addresses_with_and_without_host() {
        for (text, first) in [
            (":443", "[::]:443"),
            ("127.0.0.1:0", "127.0.0.1:0"),
            ("[::1]:15017", "[::1]:15017"),
            ("0.0.0.0:1", "0.0.0.0:1"),
        ] {
            let addr: ListenAddr = text.parse().unwrap();
            assert_eq!(addr.candidates()[0].to_string(), first);
            assert_eq!(addr.to_string(), text);
        }
        for text in ["", "443", ":", ":99999", "example.org:1", "1.2.3.4"] {
            assert!(text.parse::<ListenAddr>().is_err(), "{text:?}");
        }
    }
}
