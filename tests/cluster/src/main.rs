//! `weir-cluster`: a whole Kubernetes cluster on this machine.

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use clap::{Parser, Subcommand};
use weir_cluster::plan::{NODES, Node};
use weir_cluster::{Cluster, init};

/// Start and remove a Kubernetes cluster of three nodes on this machine (root on Linux)
#[derive(Debug, Parser)]
#[command(name = "weir-cluster", version)]
struct Cli {
    #[command(subcommand)]
    command: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Start the cluster with istiod, and leave it running
    Up,
    /// Remove the cluster with every trace of it
    Down,
    /// Import archives of images on every node
    Load {
        /// OCI archives
        #[arg(required = true, value_name = "FILE")]
        archives: Vec<PathBuf>,
    },
    /// Run a command on a machine; without one, a shell
    Enter {
        /// control, node1, node2 or node3
        #[arg(value_name = "MACHINE")]
        machine: String,
        /// The command with its arguments
        #[arg(trailing_var_arg = true, value_name = "COMMAND")]
        command: Vec<String>,
    },
    /// Cut the power of a node
    Off {
        /// node1, node2 or node3
        #[arg(value_name = "NODE", value_parser = parse_node)]
        node: Node,
    },
    /// Boot a node again
    On {
        /// node1, node2 or node3
        #[arg(value_name = "NODE", value_parser = parse_node)]
        node: Node,
    },
    /// Run as process 1 of a machine
    #[command(hide = true)]
    Init {
        /// Directory of the machine
        dir: PathBuf,
    },
}

fn parse_node(name: &str) -> Result<Node, String> {
    NODES.into_iter().find(|node| node.name() == name).ok_or_else(|| format!("{name:?} is no node"))
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weir-cluster: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(action: Action) -> anyhow::Result<()> {
    if let Some(reason) = weir_lab::privilege::missing_privilege() {
        anyhow::bail!("{reason}");
    }
    let cluster = Cluster::of_machine()?;
    match action {
        Action::Up => up(&cluster),
        Action::Down => cluster.down(),
        Action::Load { archives } => {
            let archives = archives.iter().map(std::path::absolute).collect::<Result<Vec<_>, _>>()?;
            cluster.load(&archives)
        }
        Action::Enter { machine, command } => {
            let shell = ["bash".to_owned()];
            let command = if command.is_empty() { &shell[..] } else { &command };
            let (program, args) = command.split_first().context("no command")?;
            Err(cluster.machine(&machine).command(program)?.args(args).exec().into())
        }
        Action::Off { node } => cluster.node(node).power_off(),
        Action::On { node } => cluster.power_on(node),
        Action::Init { dir } => init::run(&dir),
    }
}

fn up(cluster: &Cluster) -> anyhow::Result<()> {
    let init = std::env::current_exe()?;
    let app = init.with_file_name("weir-cluster-app");
    ensure!(app.is_file(), "{} does not exist; build it with `cargo build -p weir-cluster`", app.display());
    let started = Instant::now();
    let report = |step: &str| eprintln!("{:5.1} s  {step}", started.elapsed().as_secs_f64());
    cluster.up(&init, &app, &report)?;
    report("ready");
    eprintln!("\nexport KUBECONFIG={}", cluster.kubeconfig().display());
    eprintln!("alias kubectl={}", cluster.kubectl_path().display());
    eprintln!("CLUSTER={}", init.display());
    Ok(())
}
