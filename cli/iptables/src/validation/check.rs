//! One test connection: who makes it, where it has to end, and whether it did.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};

use crate::identity::Identity;

/// Property that a connection verifies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// From the proxy to its own pod, which arrives as inbound traffic.
    Inbound,
    /// Out of the pod.
    Outbound,
    /// To a DNS server.
    Dns,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Tcp,
    Udp,
}

/// Required end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expected {
    /// At the listener on this port of the proxy.
    Arrives(u16),
    /// Anywhere but at a port of the proxy.
    NotCaptured,
}

/// One test connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Check {
    pub(super) direction: Direction,
    pub(super) what: &'static str,
    pub(super) user: Identity,
    pub(super) transport: Transport,
    pub(super) from: Option<IpAddr>,
    pub(super) to: SocketAddr,
    pub(super) expected: Expected,
}

/// End of a test connection.
#[derive(Debug)]
pub(super) enum ConnectionResult {
    /// At one of our listeners.
    Arrived {
        /// Port of the listener.
        port: u16,
        /// Port that the client connected to, as the listener sees it; unknown for datagrams.
        original: Option<u16>,
    },
    /// At a listener of another process.
    ArrivedElsewhere,
    Refused(io::Error),
    TimedOut,
    /// The connection cannot be made from here, so it proves nothing.
    NotTestable(String),
}

impl Check {
    /// Returns whether the check can only pass where there are rules.
    pub(super) fn needs_rules(&self) -> bool {
        matches!(self.expected, Expected::Arrives(_))
    }

    /// Describes how a result differs from the expectation; `None` if it does not.
    pub(super) fn mismatch(&self, result: &ConnectionResult) -> Option<String> {
        let should = match self.expected {
            Expected::Arrives(port) => format!("it should have arrived on port {port}"),
            Expected::NotCaptured => "it should not have been redirected".to_owned(),
        };
        let did = match (result, self.expected) {
            (ConnectionResult::Arrived { port, original: None }, Expected::Arrives(wanted)) if *port == wanted => {
                return None;
            }
            (ConnectionResult::Arrived { port, original: Some(original) }, Expected::Arrives(wanted))
                if *port == wanted =>
            {
                if *original == self.to.port() {
                    return None;
                }
                return Some(format!("it arrived on port {port}, but as a connection to port {original}"));
            }
            (ConnectionResult::Arrived { port, .. }, _) => format!("it arrived on port {port}"),
            (_, Expected::NotCaptured) => return None,
            (ConnectionResult::ArrivedElsewhere, _) => "another listener accepted it".to_owned(),
            (ConnectionResult::Refused(error), _) => format!("it failed ({error})"),
            (ConnectionResult::TimedOut, _) => "it timed out".to_owned(),
            (ConnectionResult::NotTestable(why), _) => format!("it cannot be tested ({why})"),
        };
        Some(format!("{did}; {should}"))
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direction = match self.direction {
            Direction::Inbound => "inbound",
            Direction::Outbound => "outbound",
            Direction::Dns => "DNS",
        };
        let family = if self.to.is_ipv4() { "IPv4" } else { "IPv6" };
        let transport = if self.transport == Transport::Tcp { "tcp" } else { "udp" };
        write!(f, "{direction}, {family}: {} ({}) to {}/{transport}", self.what, self.user, self.to)
    }
}
