//! Processes of the node agent, each on a node of its own that is a directory, and what the pods of all other agents report.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::routing::get;
use serde_json::Value;
use tokio::net::TcpListener;
use weir_lab::http;
use weir_lab::process::ChildGuard;

use crate::control_plane::ControlPlane;
use crate::install::{AGENT_NAMESPACE, Installation};
use crate::plan::node_name;
use crate::relay::Relay;

/// Monitoring port of the first agent; each further one has the next.
const FIRST_PORT: u16 = 20_000;
/// Ports of the agents in the manifests.
const HEALTH_PORT: u16 = 15033;
const MONITORING_PORT: u16 = 15034;
const SYNC_TIMEOUT: Duration = Duration::from_mins(1);

/// A running agent. It is killed when dropped.
#[derive(Debug)]
pub(crate) struct Agent {
    child: ChildGuard,
    relay: Relay,
    monitoring: SocketAddr,
}

impl Agent {
    /// Starts the agent of a node and waits until it has listed its pods.
    pub(crate) async fn start(
        plane: &ControlPlane,
        installation: &Installation,
        binaries: &Path,
        dir: &Path,
        number: usize,
    ) -> anyhow::Result<Self> {
        let root = dir.join(node_name(number));
        for dir in ["etc/cni/net.d", "opt/cni/bin", "netns"] {
            fs::create_dir_all(root.join(dir))?;
        }
        let network = r#"{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"bridge"}]}"#;
        fs::write(root.join("etc/cni/net.d/10-net.conflist"), network)?;
        let server = plane.server.url().strip_prefix("https://").context("no https URL")?.parse()?;
        let relay = Relay::start(server).await?;
        let url = format!("https://{}", relay.addr());
        let kubeconfig = plane.account_kubeconfig(&node_name(number), AGENT_NAMESPACE, "weir-agent", &url).await?;
        let monitoring = SocketAddr::from((Ipv4Addr::LOCALHOST, FIRST_PORT + u16::try_from(number)?));
        let child = Command::new(binaries.join("weir-agent"))
            .env_clear()
            .envs(installation.config_map(AGENT_NAMESPACE, "weir-node"))
            .env("KUBECONFIG", kubeconfig)
            .env("NODE_NAME", node_name(number))
            .env("MALLOC_ARENA_MAX", "1")
            .arg("run")
            .arg(format!("--host-root={}", root.display()))
            .arg(format!("--plugin-source={}", binaries.join("weir-cni").display()))
            .arg(format!("--cni-agent-run-dir={}", root.join("run").display()))
            .arg(format!("--monitoring-port={}", monitoring.port()))
            .args(["--health-port=0", "--host-proc-dir=/proc", "--netns-dirs=/netns", "--log_as_json"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(dir.join(format!("agent-{number}.log")))?)
            .spawn()
            .context("weir-agent")?;
        let agent = Self { child: ChildGuard(child), relay, monitoring };
        crate::wait_until("the agent is synced", SYNC_TIMEOUT, async || agent.pods().map(drop)).await?;
        Ok(agent)
    }

    /// Returns the meshed pods that it knows, as `NAMESPACE/NAME`.
    ///
    /// # Errors
    /// It does not answer, or its cache is not synced.
    pub(crate) fn pods(&self) -> anyhow::Result<BTreeSet<String>> {
        let listing: Value = serde_json::from_str(&http::get(self.monitoring, "/pods")?.body)?;
        anyhow::ensure!(listing["synced"] == true, "not synced: {listing}");
        let pods = listing["pods"].as_array().into_iter().flatten();
        let name = |pod: &Value| Some(format!("{}/{}", pod["namespace"].as_str()?, pod["name"].as_str()?));
        Ok(pods.filter_map(name).collect())
    }

    /// Returns the process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.0.id()
    }

    /// Returns the bytes between it and the API server so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.relay.bytes()
    }
}

/// Answers for the pods of all agents on their nodes' addresses: healthy, with so many meshed pods.
pub(crate) async fn serve_reports(meshed_pods: usize) -> anyhow::Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    let metrics = format!(
        "weir_agent_build_info{{version=\"{version}\"}} 1\nweir_agent_meshed_pods{{state=\"ok\"}} {meshed_pods}\n"
    );
    let ready = get(|| async { r#"{"ready":true,"conditions":[]}"# });
    let router = Router::new().route("/readyz", ready).route("/metrics", get(move || async move { metrics }));
    for port in [HEALTH_PORT, MONITORING_PORT] {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await?;
        let router = router.clone();
        tokio::spawn(async move { axum::serve(listener, router).await });
    }
    Ok(())
}
