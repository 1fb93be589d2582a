//! The proxy in the pod: Envoy, or a built-in one without it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use weir_lab::envoy::{self, ADMIN_PORT, HEALTH_PORTS, INBOUND_COUNTER, OUTBOUND_COUNTER};
use weir_lab::process::{self, ChildGuard};
use weir_lab::{Netns, Proxy, Server, User, http};

use crate::child::{self, ChildRole};
use crate::interrupt::Interrupt;

const START_TIMEOUT: Duration = Duration::from_secs(20);
const ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), ADMIN_PORT);

pub(crate) enum Sidecar {
    Envoy { version: String, _child: ChildGuard },
    BuiltIn { proxy: Proxy, _health: Server },
}

/// Connections that the proxy has accepted so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) inbound: u64,
    pub(crate) outbound: u64,
}

impl Sidecar {
    /// Starts the proxy in the pod, as `user`; it is ready when this returns.
    pub(crate) fn start(
        pod: &Netns,
        user: User,
        envoy: Option<&Path>,
        dir: &Path,
        stop: &Interrupt,
    ) -> anyhow::Result<Self> {
        match envoy {
            Some(binary) => Self::envoy(pod, user, binary, dir, stop),
            None => Ok(Self::BuiltIn {
                proxy: Proxy::start(pod, user)?,
                _health: Server::start(pod, user, &HEALTH_PORTS, |stream, _| {
                    // A client that closes before its answer is no error of the server.
                    let _ = http::respond(&stream, "healthy\n");
                })?,
            }),
        }
    }

    fn envoy(pod: &Netns, user: User, binary: &Path, dir: &Path, stop: &Interrupt) -> anyhow::Result<Self> {
        let version = process::run(Command::new(binary).arg("--version"), b"", START_TIMEOUT)
            .map(|output| version(&String::from_utf8_lossy(&output.stdout)))?;
        let log = dir.join("envoy.log");
        let configuration = envoy::bootstrap().to_string();
        let args =
            ["--config-yaml", &configuration, "--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"]
                .map(str::to_owned)
                .to_vec();
        let child = child::start(pod, user, ChildRole::Program { path: binary.to_owned(), args }, &log)?;
        let ready = || {
            let answer = pod.run_as(user, || http::get(ADMIN, "/ready"))??;
            anyhow::ensure!(answer.status == 200, "Envoy is {}", answer.body.trim());
            Ok(())
        };
        stop.retry(START_TIMEOUT, ready).with_context(|| {
            format!("Envoy is not ready; its log:\n{}", std::fs::read_to_string(&log).unwrap_or_default())
        })?;
        Ok(Self::Envoy { version, _child: child })
    }

    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Envoy { version, .. } => format!("Envoy {version}"),
            Self::BuiltIn { .. } => "built-in passthrough proxy".to_owned(),
        }
    }

    /// Reads the counters; as `user`, so that the request itself is not captured.
    pub(crate) fn counts(&self, pod: &Netns, user: User) -> anyhow::Result<Counts> {
        match self {
            Self::BuiltIn { proxy, .. } => {
                Ok(Counts { inbound: proxy.counters().inbound(), outbound: proxy.counters().outbound() })
            }
            Self::Envoy { .. } => {
                let answer = pod.run_as(user, || http::get(ADMIN, "/stats?filter=upstream_cx_total"))??;
                Ok(Counts {
                    inbound: counter(&answer.body, INBOUND_COUNTER)?,
                    outbound: counter(&answer.body, OUTBOUND_COUNTER)?,
                })
            }
        }
    }
}

/// Parses a line `name: value` of Envoy's statistics.
fn counter(stats: &str, name: &str) -> anyhow::Result<u64> {
    let value = stats.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    value.and_then(|value| value.trim().parse().ok()).with_context(|| format!("Envoy has no counter {name}"))
}

/// Extracts `1.40.0` from `.../envoy  version: COMMIT/1.40.0/Clean/RELEASE/BoringSSL`.
fn version(text: &str) -> String {
    let long = text.split_whitespace().last().unwrap_or_default();
    long.split('/').nth(1).unwrap_or("of unknown version").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_and_versions_are_parsed() {
        let stats = "cluster.inbound.upstream_cx_total: 3\ncluster.outbound.upstream_cx_total: 12\n";
        assert_eq!(counter(stats, OUTBOUND_COUNTER).unwrap(), 12);
        assert!(counter(stats, "cluster.other").is_err());
        assert_eq!(version("\nenvoy  version: 0f1c/1.40.0/Clean/RELEASE/BoringSSL\n"), "1.40.0");
    }
}
