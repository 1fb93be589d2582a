//! The connections of the demo: each is made, and the proxy's counters show which path it took.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::Serialize;
use weir_lab::{ConnectionInfo, Dial, Netns, User, http};

use crate::app::App;
use crate::interrupt::Interrupt;
use crate::sidecar::Sidecar;

/// Port of the server outside the pod.
pub(crate) const SERVER_PORT: u16 = 9000;

/// Namespaces, processes and addresses that connections are made between.
pub(crate) struct Testbed<'a> {
    pub(crate) node: &'a Netns,
    pub(crate) pod: &'a Netns,
    pub(crate) app: &'a mut App,
    pub(crate) app_port: u16,
    pub(crate) sidecar: &'a Sidecar,
    pub(crate) sidecar_user: User,
    /// Addresses of the pod and of the node, on the same link.
    pub(crate) addresses: Vec<(IpAddr, IpAddr)>,
}

/// A connection, with the path that was expected and the one it took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Flow {
    /// `IPv4` or `IPv6`.
    pub(crate) family: &'static str,
    /// Client and server.
    pub(crate) what: String,
    pub(crate) expected: CapturePath,
    /// `None` without an answer.
    pub(crate) got: Option<CapturePath>,
    /// Details: who answered, and which peer it saw.
    pub(crate) seen: String,
    /// Whether path and details are as expected.
    pub(crate) ok: bool,
}

/// Path of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum CapturePath {
    /// Through the proxy's inbound port 15006.
    Inbound,
    /// Through the proxy's outbound port 15001.
    Outbound,
    /// Not through the proxy.
    Direct,
    /// Through both ports, or more than once: never expected.
    Confused,
}

impl CapturePath {
    pub(crate) const fn describe(self) -> &'static str {
        match self {
            Self::Inbound => "through 15006",
            Self::Outbound => "through 15001",
            Self::Direct => "direct",
            Self::Confused => "more than once",
        }
    }
}

/// Details of a connection, and whether they are as expected.
struct FlowResult {
    seen: String,
    as_expected: bool,
}

impl Testbed<'_> {
    /// Makes every connection for every family; calls `each` after each one.
    pub(crate) fn run_all(
        &mut self,
        stop: &Interrupt,
        mut each: impl FnMut(&Flow) -> anyhow::Result<()>,
    ) -> anyhow::Result<Vec<Flow>> {
        let mut flows = Vec::new();
        for (pod, node) in self.addresses.clone() {
            for kind in FLOW_KINDS {
                stop.check()?;
                let flow = self.observe(kind, pod, node)?;
                each(&flow)?;
                flows.push(flow);
            }
        }
        Ok(flows)
    }

    fn observe(&mut self, kind: FlowKind, pod: IpAddr, node: IpAddr) -> anyhow::Result<Flow> {
        let before = self.sidecar.counts(self.pod, self.sidecar_user)?;
        let answer = self.attempt(kind, pod, node);
        let after = self.sidecar.counts(self.pod, self.sidecar_user)?;
        let path = match (after.inbound.wrapping_sub(before.inbound), after.outbound.wrapping_sub(before.outbound)) {
            (0, 0) => CapturePath::Direct,
            (1, 0) => CapturePath::Inbound,
            (0, 1) => CapturePath::Outbound,
            _ => CapturePath::Confused,
        };
        let (got, seen, as_expected) = match answer {
            Ok(answer) => (Some(path), answer.seen, answer.as_expected),
            Err(error) => (None, format!("{error:#}"), false),
        };
        let expected = kind.expected();
        Ok(Flow {
            family: if pod.is_ipv4() { "IPv4" } else { "IPv6" },
            what: kind.describe(self.app_port, self.app.user, self.sidecar_user),
            expected,
            got,
            seen,
            ok: as_expected && got == Some(expected),
        })
    }

    fn attempt(&mut self, kind: FlowKind, pod: IpAddr, node: IpAddr) -> anyhow::Result<FlowResult> {
        let server = SocketAddr::new(node, SERVER_PORT);
        match kind {
            FlowKind::ClientToApp => {
                let answer = self.node.run(|| http::get(SocketAddr::new(pod, self.app_port), "/"))??;
                let saw: ConnectionInfo = answer.body.parse()?;
                let from_proxy = saw.peer.ip() == passthrough_source(pod);
                Ok(FlowResult {
                    seen: format!("the app sees {}", saw.peer.ip()),
                    as_expected: answer.status == 200 && from_proxy,
                })
            }
            FlowKind::AppToServer => Ok(arrived(&self.app.dial(server)?, server)),
            FlowKind::SidecarToServer => {
                Ok(arrived(&Dial::new(self.sidecar_user, server).connect_in(self.pod)??, server))
            }
            FlowKind::AppToItself => {
                let own = SocketAddr::new(
                    if pod.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() },
                    self.app_port,
                );
                let answer = self.pod.run_as(self.app.user, || http::get(own, "/"))??;
                let saw: ConnectionInfo = answer.body.parse()?;
                Ok(FlowResult {
                    seen: format!("the app sees {}", saw.peer.ip()),
                    as_expected: saw.peer.ip() == own.ip(),
                })
            }
            FlowKind::ClientToPort(port) => {
                let answer = self.node.run(|| http::get(SocketAddr::new(pod, port), "/"))??;
                Ok(FlowResult { seen: format!("answers {}", answer.status), as_expected: answer.status == 200 })
            }
        }
    }
}

/// Compares the address at which the server was reached with the one that was dialled.
fn arrived(saw: &ConnectionInfo, called: SocketAddr) -> FlowResult {
    FlowResult { seen: format!("arrives at {}", saw.local), as_expected: saw.local == called }
}

/// Returns the source address of connections from the proxy to the application.
fn passthrough_source(pod: IpAddr) -> IpAddr {
    if pod.is_ipv4() { Ipv4Addr::new(127, 0, 0, 6).into() } else { Ipv6Addr::from(6).into() }
}

#[derive(Debug, Clone, Copy)]
enum FlowKind {
    ClientToApp,
    AppToServer,
    SidecarToServer,
    AppToItself,
    /// To a port that inbound capture excludes.
    ClientToPort(u16),
}

const FLOW_KINDS: [FlowKind; 7] = [
    FlowKind::ClientToApp,
    FlowKind::AppToServer,
    FlowKind::SidecarToServer,
    FlowKind::AppToItself,
    FlowKind::ClientToPort(15020),
    FlowKind::ClientToPort(15021),
    FlowKind::ClientToPort(15090),
];

impl FlowKind {
    fn expected(self) -> CapturePath {
        match self {
            Self::ClientToApp => CapturePath::Inbound,
            Self::AppToServer => CapturePath::Outbound,
            Self::SidecarToServer | Self::AppToItself | Self::ClientToPort(_) => CapturePath::Direct,
        }
    }

    fn describe(self, app_port: u16, app: User, sidecar: User) -> String {
        match self {
            Self::ClientToApp => format!("client calls the app :{app_port}"),
            Self::AppToServer => format!("app (uid {}) calls a server", app.uid),
            Self::SidecarToServer => format!("sidecar (uid {}) calls a server", sidecar.uid),
            Self::AppToItself => "app calls itself on loopback".to_owned(),
            Self::ClientToPort(15020) => "client calls the agent :15020".to_owned(),
            Self::ClientToPort(15021) => "client calls health :15021".to_owned(),
            Self::ClientToPort(port) => format!("client calls metrics :{port}"),
        }
    }
}
