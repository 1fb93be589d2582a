//! The command line as the user wrote it.

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;

use crate::failure::Failure;
use crate::{check, demo, explain, files, inject, install, iptables, manifest_cmd, rules, tag, uninject, version};

/// Istio sidecars and capture rules, from the command line.
#[derive(Debug, Parser)]
#[command(name = "weir", version, propagate_version = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Add the sidecar to the pods in manifests
    Inject(inject::InjectArgs),
    /// Take the sidecar out of the pods in manifests again
    Uninject(uninject::UninjectArgs),
    /// Print the capture rules that pods get
    Rules(rules::RulesArgs),
    /// Say what is captured in a pod, and what becomes of a packet, rule by rule
    Explain(Box<explain::ExplainArgs>),
    /// Find what is wrong in a cluster, before an installation, after it, and in between; or on a node
    Check(Box<check::CheckArgs>),
    /// Install the webhook and the node agent into a cluster, or upgrade them
    Install(Box<install::InstallArgs>),
    /// Take them away again
    Uninstall(Box<install::UninstallArgs>),
    /// Names that stand for a revision of the webhook
    Tag(Box<tag::TagArgs>),
    /// Print the objects of an installation
    Manifest(manifest_cmd::ManifestArgs),
    /// Program or check the capture rules of a network namespace, with the options of istio-iptables (root, or `CAP_NET_ADMIN`)
    #[command(visible_alias = "istio-iptables", after_long_help = iptables::HELP)]
    Iptables(iptables::IptablesArgs),
    /// Show the whole pipeline on this machine: injection, rules, captured connections (root on Linux)
    Demo(demo::DemoArgs),
    /// Print the version, and with a cluster those of what runs in it
    Version(version::VersionArgs),
    /// Print a completion script, for example: `weir completion bash > /etc/bash_completion.d/weir`
    Completion {
        /// Which shell reads it
        shell: Shell,
    },
}

impl Command {
    /// Carries the command out.
    ///
    /// # Errors
    /// Everything that is wrong, with the exit code for it.
    pub(crate) fn run(&self) -> Result<ExitCode, Failure> {
        match self {
            Self::Inject(args) => inject::run(args),
            Self::Uninject(args) => uninject::run(args),
            Self::Rules(args) => rules::run(args),
            Self::Explain(args) => explain::run(args),
            Self::Check(args) => check::run(args),
            Self::Install(args) => install::run(args),
            Self::Uninstall(args) => install::uninstall(args),
            Self::Tag(args) => tag::run(args),
            Self::Manifest(args) => manifest_cmd::run(args),
            Self::Iptables(args) => iptables::run(args),
            Self::Demo(args) => demo::run(args),
            Self::Version(args) => version::run(args),
            Self::Completion { shell } => {
                let mut script = Vec::new();
                clap_complete::generate(*shell, &mut Cli::command(), "weir", &mut script);
                print(&String::from_utf8_lossy(&script))
            }
        }
    }
}

fn print(text: &str) -> Result<ExitCode, Failure> {
    files::write(None, text)?;
    Ok(ExitCode::SUCCESS)
}
