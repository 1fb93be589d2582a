//! The command line.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{ArgAction, CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;
use weir_runtime::logging::{self, LogFormat, LogLevels};

use crate::failure::Failure;
use crate::install::Operation;
use crate::{
    assert, check, diff, explain, files, generate, inject, install, migrate, rules, support_bundle, tag, uninject,
    uninstall, version,
};

/// Inject Istio sidecars, inspect capture rules, and install Weir in clusters
#[derive(Debug, Parser)]
#[command(
    name = "weir",
    version,
    propagate_version = true,
    after_long_help = "\
Examples:
  weir inject web.yaml | kubectl apply -f -
  weir explain web.yaml --to 10.1.2.3:443
  weir check

Exit status: 0 done, 1 an input has errors or a check has findings, 2 wrong usage, or a file or the cluster cannot be reached."
)]
pub(crate) struct Cli {
    /// Log requests to the API server on standard error; -vv logs more
    #[arg(short, long, global = true, action = ArgAction::Count)]
    verbose: u8,

    #[command(subcommand)]
    command: Command,
}

/// Name of the binary as a plugin of kubectl.
const KUBECTL_PLUGIN: &str = "kubectl-weir";

/// Returns the command line, which is that of `kubectl weir` if the program was started as a plugin of kubectl.
pub(crate) fn command() -> clap::Command {
    let program = std::env::args_os().next().unwrap_or_default();
    let is_plugin = Path::new(&program).file_name().is_some_and(|name| name == KUBECTL_PLUGIN);
    if is_plugin {
        as_plugin(Cli::command().bin_name("kubectl weir").display_name("kubectl weir"))
    } else {
        Cli::command()
    }
}

/// Names the plugin in the examples of all commands.
fn as_plugin(command: clap::Command) -> clap::Command {
    let help = command.get_after_long_help().map(ToString::to_string);
    let command = command.mut_subcommands(as_plugin);
    match help {
        Some(help) => {
            command.after_long_help(help.replace("  weir ", "  kubectl weir ").replace("| weir ", "| kubectl weir "))
        }
        None => command,
    }
}

impl Cli {
    /// Runs the command.
    ///
    /// # Errors
    /// Everything that is wrong, with the exit code for it.
    pub(crate) fn run(&self) -> Result<ExitCode, Failure> {
        // Not more of HTTP: its own libraries log headers, which have tokens.
        let levels = match self.verbose {
            0 => None,
            1 => Some("none,kube_client=debug"),
            _ => Some("info,kube_client=debug,weir=debug,weir_runtime=debug"),
        };
        if let Some(levels) = levels {
            let levels = LogLevels::parse(levels, env!("CARGO_CRATE_NAME")).map_err(Failure::usage)?;
            logging::init(LogFormat::Text, levels).map_err(|error| Failure::usage(format!("cannot log: {error}")))?;
        }
        self.command.run()
    }
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
    /// Prove that workloads capture the traffic that a policy demands
    Assert(Box<assert::AssertArgs>),
    /// Check a cluster or a node for problems, before or after installation
    Check(Box<check::CheckArgs>),
    /// Write what helps to find a problem into an archive, without secrets
    SupportBundle(support_bundle::SupportBundleArgs),
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
    /// Print a completion script
    ///
    /// It completes commands and options. Names of contexts, namespaces, nodes and pods are completed by the program itself:
    /// `source <(COMPLETE=bash weir)`.
    #[command(after_long_help = "\
Examples:
  weir completion bash > /etc/bash_completion.d/weir
  weir completion fish > ~/.config/fish/completions/weir.fish
  source <(COMPLETE=bash weir)                      # with names of the cluster, for this shell")]
    Completion {
        /// Shell that reads the script
        shell: Shell,
    },
    /// Write the manual pages into a directory
    #[command(hide = true, after_long_help = "Example:\n  weir man /usr/local/share/man/man1")]
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
            Self::Assert(args) => assert::run(args),
            Self::Check(args) => check::run(args),
            Self::SupportBundle(args) => support_bundle::run(args),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn each(command: &clap::Command, path: &str, visit: &mut impl FnMut(&clap::Command, &str)) {
        visit(command, path);
        for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
            each(sub, &format!("{path} {}", sub.get_name()), visit);
        }
    }

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_examples() {
        let mut missing = Vec::new();
        each(&Cli::command(), "weir", &mut |command, path| {
            let help = command.get_after_long_help().map(ToString::to_string).unwrap_or_default();
            let is_group = command.is_subcommand_required_set();
            if !is_group && !help.contains("Example") {
                missing.push(path.to_owned());
            }
        });
        assert_eq!(missing, Vec::<String>::new());
    }

    #[test]
    fn plugin_of_kubectl_is_named_in_examples() {
        let command = as_plugin(Cli::command());
        let inject = command.find_subcommand("inject").unwrap();
        let help = inject.get_after_long_help().unwrap().to_string();
        assert!(help.contains("  kubectl weir inject web.yaml") && help.contains("| kubectl weir inject -"), "{help}");
    }
}
