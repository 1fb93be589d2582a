//! A pod, its peers and everything they listen on.
//!
//! The namespaces are those of [`weir_tests::topology`]; the application listens on 8080, 8081 and 8090 as uid 2000, the proxy on 15001,
//! 15006, 15008, 15020, 15021 and 15090 as uid 1337.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use weir_lab::{Dial, Echo, LabError, Netns, Sighting, User};
pub(crate) use weir_tests::topology::Ip;
use weir_tests::topology::Namespaces;

/// Ports of the application in the pod.
const APP: [u16; 3] = [8080, 8081, 8090];
/// Ports of the proxy in the pod.
const PROXY: [u16; 6] = [15001, 15006, 15008, 15020, 15021, 15090];
/// Ports of services outside the pod.
const SERVICES: [u16; 4] = [9000, 9200, 15020, 15021];

/// The application's user.
pub(crate) const APP_USER: User = User::of(2000);

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

/// What must become of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Arrives at the outbound port of the proxy, which can read where it was going.
    Outbound,
    /// Arrives at the inbound port of the proxy, likewise.
    Inbound,
    /// Arrives where it was going.
    Direct,
}

/// One connection and its fate.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    pub(crate) what: &'static str,
    pub(crate) side: Side,
    pub(crate) from: Option<IpAddr>,
    pub(crate) to: SocketAddr,
    pub(crate) fate: Fate,
    /// Address at which the listener must see it arrive, where redirection changes it.
    pub(crate) arrives_at: Option<IpAddr>,
}

impl Case {
    pub(crate) fn new(what: &'static str, side: Side, to: (IpAddr, u16), fate: Fate) -> Self {
        Self { what, side, from: None, to: to.into(), fate, arrives_at: None }
    }

    pub(crate) fn from(self, from: IpAddr) -> Self {
        Self { from: Some(from), ..self }
    }

    pub(crate) fn arriving_at(self, address: IpAddr) -> Self {
        Self { arrives_at: Some(address), ..self }
    }

    /// What is wrong with what a listener saw, if anything.
    fn objection(&self, seen: &Sighting) -> Option<String> {
        let wanted = weir_lab::sighting::canonical(self.to);
        let port = match self.fate {
            Fate::Outbound => 15001,
            Fate::Inbound => 15006,
            Fate::Direct => wanted.port(),
        };
        if seen.port != port {
            return Some(format!("arrived on port {}, not {port}", seen.port));
        }
        // Where nothing was redirected, connection tracking may not know the connection at all.
        let destination_kept =
            seen.original_dst == Some(wanted) || (self.fate == Fate::Direct && seen.original_dst.is_none());
        if !destination_kept {
            return Some(format!("original destination {:?}, not {wanted}", seen.original_dst));
        }
        let arrival = self.arrives_at.or((self.fate == Fate::Direct).then_some(wanted.ip()));
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
        write!(f, "{}: {:?} -> {}, {:?}", self.what, self.side, self.to, self.fate)
    }
}

/// The namespaces. Listeners stop before the namespaces go: fields are dropped in this order.
pub(crate) struct World {
    _listeners: Vec<Echo>,
    pub(crate) pod: Netns,
    pub(crate) peer: Netns,
    pub(crate) guest: Netns,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with_proxy(Echo::start)
    }

    /// The same with a proxy whose listeners take connections to any address, as TPROXY hands them over.
    pub(crate) fn with_transparent_proxy() -> Self {
        Self::with_proxy(Echo::start_transparent)
    }

    fn with_proxy(start_proxy: fn(&Netns, User, &[u16]) -> Result<Echo, LabError>) -> Self {
        let Namespaces { pod, peer, guest } = Namespaces::new();
        let listeners = vec![
            start_proxy(&pod, User::PROXY, &PROXY).unwrap(),
            Echo::start(&pod, APP_USER, &APP).unwrap(),
            Echo::start(&peer, User::ROOT, &SERVICES).unwrap(),
        ];
        Self { _listeners: listeners, pod, peer, guest }
    }

    /// Makes the connection and says what is wrong with its fate, if anything.
    pub(crate) fn try_case(&self, case: &Case) -> Result<(), String> {
        let (netns, user) = match case.side {
            Side::Pod(user) => (&self.pod, user),
            Side::Peer => (&self.peer, User::ROOT),
            Side::Guest => (&self.guest, User::ROOT),
        };
        let dial = Dial { user, from: case.from, to: case.to };
        match dial.go(netns).map_err(|error| error.to_string())? {
            Ok(seen) => case.objection(&seen).map_or(Ok(()), |objection| Err(format!("{case}: {objection} ({seen})"))),
            Err(error) => Err(format!("{case}: {error}")),
        }
    }

    /// Every case must hold.
    pub(crate) fn check(&self, of_what: &str, cases: &[Case]) {
        let wrong: Vec<String> = cases.iter().filter_map(|case| self.try_case(case).err()).collect();
        assert!(
            wrong.is_empty(),
            "{of_what}: {} of {} connections went wrong:\n{}",
            wrong.len(),
            cases.len(),
            wrong.join("\n")
        );
    }
}
