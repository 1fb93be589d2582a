//! The connections that prove it: each is made, and the proxy's counters tell which way it took.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::Serialize;
use weir_lab::{Dial, Netns, Sighting, User, http};

use super::app::App;
use super::interrupt::Interrupt;
use super::sidecar::Sidecar;

/// Port of the server outside the pod.
pub(crate) const SERVER_PORT: u16 = 9000;

/// Everything that connections are made between.
pub(crate) struct Stage<'a> {
    pub(crate) node: &'a Netns,
    pub(crate) pod: &'a Netns,
    pub(crate) app: &'a mut App,
    pub(crate) app_port: u16,
    pub(crate) sidecar: &'a Sidecar,
    pub(crate) sidecar_user: User,
    /// Addresses of the pod and, on the same link, of the node.
    pub(crate) addresses: Vec<(IpAddr, IpAddr)>,
}

/// A connection and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Flow {
    /// `IPv4` or `IPv6`.
    pub(crate) family: &'static str,
    /// Who calls whom.
    pub(crate) what: String,
    pub(crate) expected: Way,
    /// Nothing where there was no answer.
    pub(crate) got: Option<Way>,
    /// What else was seen: who answered, and whom it saw.
    pub(crate) seen: String,
    /// Whether the way and everything else was as expected.
    pub(crate) ok: bool,
}

/// Which way a connection took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Way {
    /// Through the proxy's inbound port 15006.
    Inbound,
    /// Through the proxy's outbound port 15001.
    Outbound,
    /// Past the proxy.
    Direct,
    /// Through both ports, or more than once: never right.
    Confused,
}

impl Way {
    /// For people.
    pub(crate) const fn describe(self) -> &'static str {
        match self {
            Self::Inbound => "through 15006",
            Self::Outbound => "through 15001",
            Self::Direct => "direct",
            Self::Confused => "more than once",
        }
    }
}

/// What an attempt brought: what was seen, and whether that is as it should be.
struct Answer {
    seen: String,
    right: bool,
}

impl Stage<'_> {
    /// Makes every connection, for every family; `each` hears of them one by one.
    pub(crate) fn play(
        &mut self,
        stop: &Interrupt,
        mut each: impl FnMut(&Flow) -> anyhow::Result<()>,
    ) -> anyhow::Result<Vec<Flow>> {
        let mut flows = Vec::new();
        for (pod, node) in self.addresses.clone() {
            for scene in SCENES {
                stop.check()?;
                let flow = self.observe(scene, pod, node)?;
                each(&flow)?;
                flows.push(flow);
            }
        }
        Ok(flows)
    }

    fn observe(&mut self, scene: Scene, pod: IpAddr, node: IpAddr) -> anyhow::Result<Flow> {
        let before = self.sidecar.counts(self.pod, self.sidecar_user)?;
        let answer = self.attempt(scene, pod, node);
        let after = self.sidecar.counts(self.pod, self.sidecar_user)?;
        let way = match (after.inbound.wrapping_sub(before.inbound), after.outbound.wrapping_sub(before.outbound)) {
            (0, 0) => Way::Direct,
            (1, 0) => Way::Inbound,
            (0, 1) => Way::Outbound,
            _ => Way::Confused,
        };
        let (got, seen, right) = match answer {
            Ok(answer) => (Some(way), answer.seen, answer.right),
            Err(error) => (None, format!("{error:#}"), false),
        };
        let expected = scene.expected();
        Ok(Flow {
            family: if pod.is_ipv4() { "IPv4" } else { "IPv6" },
            what: scene.describe(self.app_port, self.app.user, self.sidecar_user),
            expected,
            got,
            seen,
            ok: right && got == Some(expected),
        })
    }

    fn attempt(&mut self, scene: Scene, pod: IpAddr, node: IpAddr) -> anyhow::Result<Answer> {
        let server = SocketAddr::new(node, SERVER_PORT);
        match scene {
            Scene::ClientToApp => {
                let answer = self.node.run(|| http::get(SocketAddr::new(pod, self.app_port), "/"))??;
                let saw: Sighting = answer.body.parse()?;
                let from_proxy = saw.peer.ip() == passthrough_source(pod);
                Ok(Answer {
                    seen: format!("the app sees {}", saw.peer.ip()),
                    right: answer.status == 200 && from_proxy,
                })
            }
            Scene::AppToServer => Ok(arrived(&self.app.dial(server)?, server)),
            Scene::SidecarToServer => Ok(arrived(&Dial::new(self.sidecar_user, server).go(self.pod)??, server)),
            Scene::AppToItself => {
                let own = SocketAddr::new(
                    if pod.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() },
                    self.app_port,
                );
                let answer = self.pod.run_as(self.app.user, || http::get(own, "/"))??;
                let saw: Sighting = answer.body.parse()?;
                Ok(Answer { seen: format!("the app sees {}", saw.peer.ip()), right: saw.peer.ip() == own.ip() })
            }
            Scene::ClientToPort(port) => {
                let answer = self.node.run(|| http::get(SocketAddr::new(pod, port), "/"))??;
                Ok(Answer { seen: format!("answers {}", answer.status), right: answer.status == 200 })
            }
        }
    }
}

/// The server must have been reached under the very address that was called.
fn arrived(saw: &Sighting, called: SocketAddr) -> Answer {
    Answer { seen: format!("arrives at {}", saw.local), right: saw.local == called }
}

/// Source of what the proxy passes on to the application.
fn passthrough_source(pod: IpAddr) -> IpAddr {
    if pod.is_ipv4() { Ipv4Addr::new(127, 0, 0, 6).into() } else { Ipv6Addr::from(6).into() }
}

/// Kinds of connections.
#[derive(Debug, Clone, Copy)]
enum Scene {
    ClientToApp,
    AppToServer,
    SidecarToServer,
    AppToItself,
    /// To a port that answers for itself.
    ClientToPort(u16),
}

const SCENES: [Scene; 7] = [
    Scene::ClientToApp,
    Scene::AppToServer,
    Scene::SidecarToServer,
    Scene::AppToItself,
    Scene::ClientToPort(15020),
    Scene::ClientToPort(15021),
    Scene::ClientToPort(15090),
];

impl Scene {
    fn expected(self) -> Way {
        match self {
            Self::ClientToApp => Way::Inbound,
            Self::AppToServer => Way::Outbound,
            Self::SidecarToServer | Self::AppToItself | Self::ClientToPort(_) => Way::Direct,
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
