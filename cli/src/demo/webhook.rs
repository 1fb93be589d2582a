//! The real admission server, in the node's namespace, and one request to it over TLS.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use weir_lab::process::Guarded;
use weir_lab::webhook::{self, Client};
use weir_lab::{Netns, User, http};

use super::interrupt::Interrupt;
use super::part::{self, Role};
use super::review::{Admission, Candidate};

/// Bound of its start, with the making of its certificates.
const START: Duration = Duration::from_secs(15);
/// Where it listens; Istio's port.
const ADDRESS: &str = "127.0.0.1:15017";
/// Where its probes are.
const PROBES: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15014);

/// The running server.
pub(crate) struct Webhook {
    ca: PathBuf,
    log: PathBuf,
    _child: Guarded,
}

impl Webhook {
    /// Starts it with a certificate that it makes itself; `dir` is for its files.
    pub(crate) fn start(node: &Netns, binary: &Path, dir: &Path) -> anyhow::Result<Self> {
        let (certs, ca, log) = (dir.join("certs"), dir.join("ca.crt"), dir.join("webhook.log"));
        let text =
            |path: &Path| path.to_str().map(str::to_owned).with_context(|| format!("{} is no text", path.display()));
        let args = [
            "--https-addr",
            ADDRESS,
            "--http-addr",
            &PROBES.to_string(),
            "--cert-dir",
            &text(&certs)?,
            "--ca-out",
            &text(&ca)?,
        ]
        .map(str::to_owned)
        .to_vec();
        let child = part::start(node, User::ROOT, Role::Program { path: binary.to_owned(), args }, &log)?;
        Ok(Self { ca, log, _child: child })
    }

    /// Address, for people.
    pub(crate) fn url() -> String {
        format!("https://{ADDRESS}/inject")
    }

    /// Asks about a pod, as the API server does, trusting the server's own CA and nobody else. Also tells how long the answer took.
    pub(crate) fn admit(
        &self,
        node: &Netns,
        candidate: &Candidate,
        stop: &Interrupt,
    ) -> anyhow::Result<(Admission, Duration)> {
        let ready = || {
            let answer = http::get(PROBES, "/readyz")?;
            anyhow::ensure!(answer.status == 200, "it is not ready: {}", answer.body.trim());
            Ok(())
        };
        stop.retry(START, || node.run(ready)?)
            .with_context(|| format!("weir-webhook does not start; its log:\n{}", self.tail()))?;
        let review = webhook::review_of(&candidate.pod);
        let client = Client::new(&Self::url(), &self.ca)?;
        let started = Instant::now();
        let answer = node.run(|| client.review(&review))??;
        let took = started.elapsed();
        Ok((Admission::read(&answer, &review["request"]["uid"], candidate)?, took))
    }

    fn tail(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}
