//! The command line.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;

use crate::failure::Failure;
use crate::install::Operation;
use crate::{
    check, diff, explain, files, generate, inject, install, migrate, rules, tag, uninject, uninstall, version,
};

/// Inject Istio sidecars, inspect capture rules, and install Weir in clusters
#[derive(Debug, Parser)]
#[command(name = "weir", version, propagate_version = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Subcommands of `weir`.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Add the sidecar to the pods in manifests
    Inject(inject::InjectArgs),
    /// Remove the sidecar from the pods in manifests
    Uninject(uninject::UninjectArgs),
    /// Print the capture rules of pods
    Rules(rules::RulesArgs),
    /// Explain which traffic of a pod is captured, and trace a packet through its rules
    Explain(Box<explain::ExplainArgs>),
    /// Compare the traffic that two versions of pods capture, over all packets
    Diff(Box<diff::DiffArgs>),
    /// Check a cluster or a node for problems, before or after installation
    Check(Box<check::CheckArgs>),
    /// Install the webhook and the node agent in a cluster
    Install(Box<install::InstallArgs>),
    /// Upgrade the webhook and the node agent that a cluster has, or change their settings
    Upgrade(Box<install::InstallArgs>),
    /// Uninstall the webhook and the node agent
    Uninstall(Box<uninstall::UninstallArgs>),
    /// Move a mesh from Istio's injector and CNI plugin to Weir
    Migrate(Box<migrate::MigrateArgs>),
    /// Manage revision tags of the webhook
    Tag(Box<tag::TagArgs>),
    /// Print the objects of an installation
    Manifest(generate::ManifestArgs),
    /// Install or validate the capture rules of a network namespace, with the options of istio-iptables (root, or `CAP_NET_ADMIN`)
    #[command(visible_alias = "istio-iptables", after_long_help = weir_iptables::help("weir iptables"))]
    Iptables(weir_iptables::IptablesArgs),
    /// Print the version of this program and of the components in a cluster
    Version(version::VersionArgs),
    /// Print a completion script, for example: `weir completion bash > /etc/bash_completion.d/weir`
    Completion {
        /// Shell that reads the script
        shell: Shell,
    },
    /// Write the manual pages into a directory
    #[command(hide = true)]
    Man {
        /// Directory of the pages, such as /usr/share/man/man1
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
}

impl Command {
    /// Runs the command.
    ///
    /// # Errors
    /// Everything that is wrong, with the exit code for it.
    pub(crate) fn run(&self) -> Result<ExitCode, Failure> {
        match self {
            Self::Inject(args) => inject::run(args),
            Self::Uninject(args) => uninject::run(args),
            Self::Rules(args) => rules::run(args),
            Self::Explain(args) => explain::run(args),
            Self::Diff(args) => diff::run(args),
            Self::Check(args) => check::run(args),
            Self::Install(args) => install::run(args, Operation::Install),
            Self::Upgrade(args) => install::run(args, Operation::Upgrade),
            Self::Uninstall(args) => uninstall::run(args),
            Self::Migrate(args) => migrate::run(args),
            Self::Tag(args) => tag::run(args),
            Self::Manifest(args) => generate::run(args),
            Self::Iptables(args) => {
                weir_iptables::run(args)?;
                Ok(ExitCode::SUCCESS)
            }
            Self::Version(args) => version::run(args),
            Self::Completion { shell } => {
                let mut script = Vec::new();
                clap_complete::generate(*shell, &mut Cli::command(), "weir", &mut script);
                files::write(None, &String::from_utf8_lossy(&script))?;
                Ok(ExitCode::SUCCESS)
            }
            Self::Man { directory } => {
                clap_mangen::generate_to(Cli::command(), directory)
                    .with_context(|| format!("cannot write manual pages to {}", directory.display()))?;
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}
