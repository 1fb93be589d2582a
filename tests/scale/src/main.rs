//! `weir-scale`: fake nodes and pods on a real API server, without kubelets, scheduler and controllers, and real processes of Weir among
//! them. What the absent components write is written by the simulator.
//!
//! ```text
//! plan.rs ─────── how many of what, and the objects
//! run.rs ──────── the order of events
//!   ├─ control_plane.rs  kube-apiserver and etcd, with a log of the agents' requests
//!   ├─ install.rs        the objects of `weir manifest generate`, and the pods of its Deployment and DaemonSet
//!   ├─ webhook.rs        processes of the webhook        ├─ nodes.rs    Leases and statuses of nodes
//!   ├─ agents.rs         processes of the agent          ├─ pods.rs     pods created, bound, running, replaced
//!   ├─ relay.rs          bytes of an agent               └─ watches.rs  watches of the nodes without a process
//!   └─ check.rs          `weir check`
//! api.rs, proc.rs, metrics.rs ── requests, processes, metrics ──▶ report.rs, the figures
//! ```
//!
//! All of it is in a network namespace of its own, so that the ports of the manifests are free, and every node has an address.

mod agents;
mod api;
mod check;
mod control_plane;
mod install;
mod metrics;
mod nodes;
mod plan;
mod pods;
mod proc;
mod relay;
mod report;
mod run;
mod watches;
mod webhook;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::{Parser, ValueEnum};
use futures_util::StreamExt as _;
use weir_lab::{Netns, link};

use crate::plan::Size;
use crate::report::Report;

/// Concurrent writes of the simulator.
const WORKERS: usize = 64;
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Simulate a large cluster on a real API server and measure Weir in it (root on Linux)
#[derive(Debug, Parser)]
#[command(name = "weir-scale", version)]
struct Cli {
    /// Size of the cluster
    #[arg(long, value_name = "SIZE", default_value = "small")]
    size: SizeArg,
    /// Number of nodes, instead of that of the size
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(10..=10_000))]
    nodes: Option<u16>,
    /// Number of pods, instead of that of the size
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(100..=1_000_000))]
    pods: Option<u32>,
    /// Time for which the agents are observed while no pod changes, instead of that of the size
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    idle: Option<Duration>,
    /// Directory with kube-apiserver and etcd
    #[arg(long, env = "KUBEBUILDER_ASSETS", value_name = "DIR")]
    assets: PathBuf,
    /// Directory with weir, weir-webhook, weir-agent and weir-cni
    #[arg(long, env = "WEIR_BIN_DIR", value_name = "DIR")]
    bin_dir: PathBuf,
    /// Write the figures to this file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Keep logs in this directory, which must be empty; by default they are removed
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum SizeArg {
    /// 50 nodes, 1,000 pods
    Small,
    /// 1,000 nodes, 50,000 pods
    Full,
}

fn main() -> ExitCode {
    match simulate(Cli::parse()) {
        Ok(report) => {
            #[expect(clippy::print_stdout, reason = "the result")]
            {
                print!("{}", report.table());
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("weir-scale: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn simulate(cli: Cli) -> anyhow::Result<Report> {
    if let Some(reason) = weir_lab::privilege::missing_privilege() {
        bail!("{reason}");
    }
    let mut size = match cli.size {
        SizeArg::Small => Size::SMALL,
        SizeArg::Full => Size::FULL,
    };
    size.nodes = cli.nodes.map_or(size.nodes, usize::from);
    size.pods = cli.pods.map_or(Ok(size.pods), usize::try_from)?;
    size.idle_seconds = cli.idle.map_or(size.idle_seconds, |idle| idle.as_secs());
    let temporary = tempfile::tempdir()?;
    let dir = cli.dir.unwrap_or_else(|| temporary.path().to_owned());
    std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    // The processes have working directories of their own.
    let absolute = |path: PathBuf| path.canonicalize().with_context(|| path.display().to_string());
    let (assets, binaries) = (absolute(cli.assets)?, absolute(cli.bin_dir)?);
    let options = run::Options { size, assets, binaries, dir: absolute(dir)? };
    let netns = Netns::new("scale")?;
    // Every address of the network of a loopback interface is local.
    link::add_address(&netns, "lo", "10.77.255.1/16".parse()?)?;
    let report = netns.run(|| -> anyhow::Result<Report> {
        // The threads of the runtime are started here, and so are in the namespace, too.
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let report = runtime.block_on(run::run(&options));
        runtime.shutdown_background();
        report
    })??;
    if let Some(path) = cli.json {
        std::fs::write(&path, serde_json::to_vec_pretty(&report)?).with_context(|| path.display().to_string())?;
    }
    Ok(report)
}

/// Runs an operation for each number, many at a time, until one fails.
async fn each(
    numbers: impl IntoIterator<Item = usize>,
    operation: impl AsyncFn(usize) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut running = futures_util::stream::iter(numbers).map(|number| operation(number)).buffer_unordered(WORKERS);
    while let Some(result) = running.next().await {
        result?;
    }
    Ok(())
}

/// Polls `condition` until it succeeds.
///
/// # Errors
/// Its last error, after the timeout.
async fn wait_until(
    what: &str,
    timeout: Duration,
    condition: impl AsyncFn() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        match condition().await {
            Ok(()) => return Ok(()),
            Err(error) if begun.elapsed() > timeout => {
                return Err(error.context(format!("timed out after {timeout:?} waiting until {what}")));
            }
            Err(_) => tokio::time::sleep(POLL_INTERVAL).await,
        }
    }
}
