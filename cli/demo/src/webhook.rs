//! The admission webhook in the node's namespace, and one request to it over TLS.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use weir_lab::process::ChildGuard;
use weir_lab::webhook::{self, Client};
use weir_lab::{Netns, User, http};

use crate::child::{self, ChildRole};
use crate::interrupt::Interrupt;
use crate::review::{AppliedPatch, PodUnderTest};

/// Time to start, including the generation of a certificate.
const START_TIMEOUT: Duration = Duration::from_secs(15);
/// Istio's port.
const ADDRESS: &str = "127.0.0.1:15017";
const PROBES: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15014);

pub(crate) struct Webhook {
    ca: PathBuf,
    log: PathBuf,
    _child: ChildGuard,
}

impl Webhook {
    /// Starts the webhook with a self-signed certificate; `dir` holds its files.
    pub(crate) fn start(node: &Netns, binary: &Path, dir: &Path) -> anyhow::Result<Self> {
        let (certs, ca, log) = (dir.join("certs"), dir.join("ca.crt"), dir.join("webhook.log"));
        let text =
            |path: &Path| path.to_str().map(str::to_owned).with_context(|| format!("{} is not UTF-8", path.display()));
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
        let child = child::start(node, User::ROOT, ChildRole::Program { path: binary.to_owned(), args }, &log)?;
        Ok(Self { ca, log, _child: child })
    }

    pub(crate) fn url() -> String {
        format!("https://{ADDRESS}/inject")
    }

    /// Sends a review as the API server does, trusting only the webhook's CA; returns the applied patch and the duration.
    pub(crate) fn admit(
        &self,
        node: &Netns,
        pod_under_test: &PodUnderTest,
        stop: &Interrupt,
    ) -> anyhow::Result<(AppliedPatch, Duration)> {
        let ready = || {
            let answer = http::get(PROBES, "/readyz")?;
            anyhow::ensure!(answer.status == 200, "/readyz: {}", answer.body.trim());
            Ok(())
        };
        stop.retry(START_TIMEOUT, || node.run(ready)?)
            .with_context(|| format!("weir-webhook is not ready; its log:\n{}", self.tail()))?;
        let review = webhook::admission_review(&pod_under_test.pod);
        let client = Client::new(&Self::url(), &self.ca)?;
        let started = Instant::now();
        let answer = node.run(|| client.review(&review))??;
        let took = started.elapsed();
        Ok((AppliedPatch::read(&answer, &review["request"]["uid"], pod_under_test)?, took))
    }

    fn tail(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}
