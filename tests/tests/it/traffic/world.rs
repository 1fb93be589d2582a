//! The namespaces of [`weir_tests::topology`] with listeners: the application as uid 2000 and the proxy as uid 1337 in the pod, services
//! at the peer.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use weir_lab::{ConnectionInfo, Dial, LabError, Netns, TcpEcho, User};
pub(crate) use weir_tests::topology::Ip;
use weir_tests::topology::Namespaces;

/// Ports of the application in the pod.
const APP: [u16; 3] = [8080, 8081, 8090];
/// Ports of the proxy in the pod.
const PROXY: [u16; 6] = [15001, 15006, 15008, 15020, 15021, 15090];
/// Ports of services outside the pod.
const SERVICES: [u16; 4] = [9000, 9200, 15020, 15021];

/// The application's user.
pub(crate) const APP_USER: User = User::with_id(2000);

/// Where a connection starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// In the pod, as this user.
    Pod(User),
    /// At the peer.
    Peer,
    /// In the virtual machine behind tap0.
    Guest,
}

/// Where a connection must arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// At the outbound port of the proxy, which can read the original destination.
    Outbound,
    /// At the inbound port of the proxy, likewise.
    Inbound,
    /// At its destination.
    Direct,
}

/// A connection and its expected outcome.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    pub(crate) what: &'static str,
    pub(crate) side: Side,
    pub(crate) from: Option<IpAddr>,
    pub(crate) to: SocketAddr,
    pub(crate) outcome: Outcome,
    /// Local address that the listener must see, where redirection changes it.
    pub(crate) arrives_at: Option<IpAddr>,
}

impl Case {
    pub(crate) fn new(what: &'static str, side: Side, to: (IpAddr, u16), outcome: Outcome) -> Self {
        Self { what, side, from: None, to: to.into(), outcome, arrives_at: None }
    }

    pub(crate) fn from(self, from: IpAddr) -> Self {
        Self { from: Some(from), ..self }
    }

    pub(crate) fn arriving_at(self, address: IpAddr) -> Self {
        Self { arrives_at: Some(address), ..self }
    }

    /// Returns how the observation of the listener differs from the expected outcome.
    fn mismatch(&self, seen: &ConnectionInfo) -> Option<String> {
        let wanted = weir_lab::connection_info::canonical(self.to);
        let port = match self.outcome {
            Outcome::Outbound => 15001,
            Outcome::Inbound => 15006,
            Outcome::Direct => wanted.port(),
        };
        if seen.port != port {
            return Some(format!("arrived on port {}, not {port}", seen.port));
        }
        // Without redirection, connection tracking may not have the connection.
        let destination_kept =
            seen.original_dst == Some(wanted) || (self.outcome == Outcome::Direct && seen.original_dst.is_none());
        if !destination_kept {
            return Some(format!("original destination {:?}, not {wanted}", seen.original_dst));
        }
        let arrival = self.arrives_at.or((self.outcome == Outcome::Direct).then_some(wanted.ip()));
        match arrival {
            Some(address) if address != seen.local.ip() => {
                Some(format!("arrived at {}, not {address}", seen.local.ip()))
            }
            _ => None,
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:?} -> {}, {:?}", self.what, self.side, self.to, self.outcome)
    }
}

/// The namespaces with listeners. Fields are dropped in this order: listeners stop first.
pub(crate) struct World {
    _listeners: Vec<TcpEcho>,
    pub(crate) pod: Netns,
    pub(crate) peer: Netns,
    pub(crate) guest: Netns,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with_proxy(TcpEcho::start)
    }

    /// Creates a world whose proxy accepts connections to any address, as TPROXY delivers them.
    pub(crate) fn with_transparent_proxy() -> Self {
        Self::with_proxy(TcpEcho::start_transparent)
    }

    fn with_proxy(start_proxy: fn(&Netns, User, &[u16]) -> Result<TcpEcho, LabError>) -> Self {
        let Namespaces { pod, peer, guest } = Namespaces::new();
        let listeners = vec![
            start_proxy(&pod, User::PROXY, &PROXY).unwrap(),
            TcpEcho::start(&pod, APP_USER, &APP).unwrap(),
            TcpEcho::start(&peer, User::ROOT, &SERVICES).unwrap(),
        ];
        Self { _listeners: listeners, pod, peer, guest }
    }

    /// Makes the connection and checks its outcome.
    pub(crate) fn try_case(&self, case: &Case) -> Result<(), String> {
        let (netns, user) = match case.side {
            Side::Pod(user) => (&self.pod, user),
            Side::Peer => (&self.peer, User::ROOT),
            Side::Guest => (&self.guest, User::ROOT),
        };
        let dial = Dial { user, from: case.from, to: case.to };
        match dial.connect_in(netns).map_err(|error| error.to_string())? {
            Ok(seen) => case.mismatch(&seen).map_or(Ok(()), |mismatch| Err(format!("{case}: {mismatch} ({seen})"))),
            Err(error) => Err(format!("{case}: {error}")),
        }
    }

    /// Asserts that every case has its outcome.
    pub(crate) fn check(&self, label: &str, cases: &[Case]) {
        let wrong: Vec<String> = cases.iter().filter_map(|case| self.try_case(case).err()).collect();
        assert!(
            wrong.is_empty(),
            "{label}: {} of {} connections had another outcome:\n{}",
            wrong.len(),
            cases.len(),
            wrong.join("\n")
        );
    }
}
