//! Processes of the webhook, started as kubelets start the pods of its Deployment.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use weir_lab::http;
use weir_lab::process::ChildGuard;

use crate::control_plane::ControlPlane;
use crate::install::{Installation, WEBHOOK_NAMESPACE};
use crate::metrics::Scrape;
use crate::plan::replica_ip;

/// Port for reviews.
pub(crate) const HTTPS_PORT: u16 = 15017;
/// Port for probes and metrics.
const HTTP_PORT: u16 = 15014;
const READY_TIMEOUT: Duration = Duration::from_mins(1);
const METRICS: [&str; 2] = ["sidecar_injection_", "weir_webhook_"];

/// The running replicas. They are killed when dropped.
#[derive(Debug)]
pub(crate) struct Webhook {
    replicas: Vec<ChildGuard>,
}

impl Webhook {
    /// Starts all replicas and waits until they are ready.
    pub(crate) async fn start(
        plane: &ControlPlane,
        installation: &Installation,
        binary: &Path,
        dir: &Path,
    ) -> anyhow::Result<Self> {
        let deployment = &installation.webhook;
        let account = deployment["spec"]["template"]["spec"]["serviceAccountName"].as_str().context("no account")?;
        let kubeconfig = plane.account_kubeconfig("webhook", WEBHOOK_NAMESPACE, account, plane.server.url()).await?;
        let config = dir.join("webhook-config");
        fs::create_dir_all(&config)?;
        for (key, text) in installation.config_map(WEBHOOK_NAMESPACE, "weir-webhook") {
            fs::write(config.join(key), text)?;
        }
        let args = deployment["spec"]["template"]["spec"]["containers"][0]["args"].as_array().context("no args")?;
        let mut replicas = Vec::new();
        for number in 0..installation.replicas() {
            let ip = replica_ip(number);
            let args = args.iter().filter_map(Value::as_str).map(|arg| match arg {
                "--https-addr=:15017" => format!("--https-addr={ip}:{HTTPS_PORT}"),
                "--http-addr=:15014" => format!("--http-addr={ip}:{HTTP_PORT}"),
                _ => arg.replace("/etc/weir/config", &config.display().to_string()),
            });
            let child = Command::new(binary)
                .args(args)
                .arg(format!("--kubeconfig={}", kubeconfig.display()))
                .env_clear()
                .env("POD_NAMESPACE", WEBHOOK_NAMESPACE)
                .env("POD_NAME", format!("weir-webhook-{number}"))
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(File::create(dir.join(format!("webhook-{number}.log")))?)
                .spawn()
                .with_context(|| binary.display().to_string())?;
            replicas.push(ChildGuard(child));
        }
        let webhook = Self { replicas };
        crate::wait_until("the webhook is ready", READY_TIMEOUT, async || webhook.probe()).await?;
        Ok(webhook)
    }

    fn get(number: usize, path: &str) -> anyhow::Result<String> {
        let answer = http::get(SocketAddr::from((replica_ip(number), HTTP_PORT)), path)?;
        ensure!(answer.status == 200, "replica {number}: {}", answer.body);
        Ok(answer.body)
    }

    fn probe(&self) -> anyhow::Result<()> {
        (0..self.replicas.len()).try_for_each(|number| Self::get(number, "/readyz").map(drop))
    }

    /// Returns the process ids.
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.replicas.iter().map(|child| child.0.id()).collect()
    }

    /// Returns the metrics of all replicas.
    pub(crate) fn scrape(&self) -> anyhow::Result<Scrape> {
        let texts: Vec<String> =
            (0..self.replicas.len()).map(|number| Self::get(number, "/metrics")).collect::<anyhow::Result<_>>()?;
        Ok(Scrape::parse(&texts.concat(), &METRICS))
    }
}
