//! `weir check`: diagnosis of a cluster, before an installation, after it, and in between.
//!
//! ```text
//! flags ─▶ CheckScope ─▶ weir_check::{collect, analyze, unsuppressed, print} ─▶ text | JSON | JUnit | SARIF | HTML, exit code
//! --wait ─▶ wait: the same, until a condition holds
//! ```

mod html;
mod node;
mod wait;

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Subcommand, ValueEnum};
use weir_check::{
    CheckScope, Finding, InstallNamespaces, Severity, Suppression, analyze, areas, collect, is_complete, print,
    unsuppressed,
};

use crate::cluster::ConnectArgs;
use crate::completion::objects;
use crate::console::{Spinner, is_colored};
use crate::duration;
use crate::failure::{Failure, exit};
use crate::files;
use wait::WaitCondition;

/// Options of `weir check`.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_long_help = "\
Checks the cluster, the path from the API server to the webhook, certificates, webhook configurations, namespaces, replicas, nodes and their \
agents, settings, and workloads. Changes nothing: it creates a dry-run pod, which the API server does not store. Every finding has a code, \
which docs/check.md explains, and a fix.

What you may not read is reported, and the rest is checked; the exit status is 1 then, unless --allow-incomplete is given.

Examples:
  weir check
  weir check --pre                                  # before installing
  weir check -n shop -o json
  weir check --wait --timeout 5m                    # until nothing is wrong
  weir check --wait=WEIR601                         # until no node lacks its agent
  weir check -S 'single-replica' -S 'WEIR802=Pod shop/*'

Exit status: 0 no finding at or above --failure-threshold, 1 findings or an incomplete check, 2 wrong usage or the cluster is unreachable."
)]
pub(crate) struct CheckArgs {
    #[command(subcommand)]
    command: Option<CheckCommand>,
    #[command(flatten)]
    cluster: ClusterCheckArgs,
}

#[derive(Debug, Subcommand)]
enum CheckCommand {
    /// Check whether the cluster is ready for an installation, like --pre
    #[command(
        alias = "pre",
        after_long_help = "\
Examples:
  weir check precheck
  weir check precheck --revision canary -o junit

Exit status: 0 no finding at or above --failure-threshold, 1 findings or an incomplete check, 2 wrong usage or the cluster is unreachable."
    )]
    Precheck(Box<ClusterCheckArgs>),
    /// Check whether the meshed pods on a node have their capture rules, by asking its agent
    Node(Box<node::NodeArgs>),
}

#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "one for each switch")]
struct ClusterCheckArgs {
    #[command(flatten)]
    connect: ConnectArgs,

    /// Namespace of Istio's control plane
    #[arg(short = 'i', long = "istioNamespace", value_name = "NAMESPACE", default_value = "istio-system")]
    istio_namespace: String,

    /// Namespace of the webhook
    #[arg(long, value_name = "NAMESPACE", default_value = "weir-system")]
    weir_namespace: String,

    /// Namespace of the node agents
    #[arg(long, value_name = "NAMESPACE", default_value = "weir-node")]
    node_namespace: String,

    /// Check the workloads of this namespace only
    #[arg(short, long, value_name = "NAMESPACE", add = objects::namespaces())]
    namespace: Option<String>,

    /// Check the workloads of all namespaces, as without --namespace
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    all_namespaces: bool,

    /// Check whether the cluster is ready for an installation, instead of an installation
    #[arg(long)]
    pre: bool,

    /// Revision to be installed, with --pre
    #[arg(short, long, value_name = "REVISION", default_value = "default")]
    revision: String,

    /// Output format
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t = OutputFormat::Text)]
    output: OutputFormat,

    /// Lowest severity for exit status 1
    #[arg(long, value_name = "SEVERITY", value_enum, ignore_case = true, default_value_t = Threshold::Error)]
    failure_threshold: Threshold,

    /// Exit with 0 although not everything could be read
    #[arg(long)]
    allow_incomplete: bool,

    /// Suppress findings: CODE, or CODE=KIND NAMESPACE/NAME, where `*` matches anything; may be repeated
    #[arg(short = 'S', long, value_name = "RULE")]
    suppress: Vec<Suppression>,

    /// Skip the dry-run pod creation
    #[arg(long, conflicts_with = "probe_namespace")]
    no_probe: bool,

    /// Create the dry-run pod in this namespace [default: a namespace with injection]
    #[arg(long, value_name = "NAMESPACE")]
    probe_namespace: Option<String>,

    /// Check again and again until the exit status would be 0, or until a finding is gone, which is named as for --suppress
    #[arg(long, value_name = "FINDING", num_args = 0..=1, default_missing_value = wait::PASSED, require_equals = true)]
    wait: Option<WaitCondition>,

    /// Wait at most DURATION for the whole check
    #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = duration::parse)]
    timeout: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OutputFormat {
    /// Text for people, with fixes
    Text,
    /// One JSON document
    Json,
    /// JUnit XML for CI
    Junit,
    /// SARIF 2.1.0 for code hosts
    Sarif,
    /// One self-contained page
    Html,
}

/// [`Severity`] as a flag.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Threshold {
    /// Worth knowing
    Info,
    /// Works now, but not in all cases or not for long
    Warning,
    /// Pods do not start, or run outside the mesh
    Error,
}

impl From<Threshold> for Severity {
    fn from(threshold: Threshold) -> Self {
        match threshold {
            Threshold::Info => Self::Info,
            Threshold::Warning => Self::Warning,
            Threshold::Error => Self::Error,
        }
    }
}

/// Runs `weir check` and its subcommands.
///
/// # Errors
/// The cluster or the agent cannot be reached.
pub(crate) fn run(args: &CheckArgs) -> Result<ExitCode, Failure> {
    match &args.command {
        Some(CheckCommand::Node(args)) => node::run(args),
        Some(CheckCommand::Precheck(args)) => check_cluster(args, true),
        None => check_cluster(&args.cluster, args.cluster.pre),
    }
}

/// A check that was done.
#[derive(Debug)]
struct Checked {
    /// Name of the cluster.
    cluster: String,
    findings: Vec<Finding>,
}

impl ClusterCheckArgs {
    /// Checks the cluster once.
    fn check(&self, is_pre_install: bool, timeout: Duration) -> Result<Checked, Failure> {
        let scope = CheckScope {
            namespaces: InstallNamespaces {
                webhook: self.weir_namespace.clone(),
                agent: self.node_namespace.clone(),
                istio: self.istio_namespace.clone(),
            },
            namespace: self.namespace.clone(),
            pre_install_revision: is_pre_install.then(|| self.revision.clone()),
            dry_run_namespace: (!self.no_probe).then(|| self.probe_namespace.clone().unwrap_or_default()),
            pod_report_timeout: timeout / 2,
        };
        let (snapshot, cluster) = self.connect.run_unretried(timeout, async |cluster| {
            let collected = collect(&cluster.client, &scope).await;
            let snapshot = collected.map_err(|error| Failure::usage(format!("{cluster}: {error}")))?;
            Ok((snapshot, cluster.to_string()))
        })?;
        Ok(Checked { cluster, findings: unsuppressed(analyze(&snapshot), &self.suppress) })
    }

    fn is_failed(&self, findings: &[Finding]) -> bool {
        let threshold = Severity::from(self.failure_threshold);
        findings.iter().any(|finding| finding.fault.severity >= threshold)
    }

    fn is_incomplete(&self, findings: &[Finding]) -> bool {
        !self.allow_incomplete && !is_complete(findings)
    }

    fn print(&self, checked: &Checked, is_pre_install: bool) -> Result<(), Failure> {
        let Checked { cluster, findings } = checked;
        let text = match self.output {
            OutputFormat::Text => {
                let areas = print::areas(&areas(findings, is_pre_install), is_colored());
                format!("{cluster}\n{areas}\n{}", print::text(findings, is_colored()))
            }
            OutputFormat::Json => print::json(findings),
            OutputFormat::Junit => print::junit(findings, self.failure_threshold.into(), self.allow_incomplete)
                .context("cannot write JUnit XML")?,
            OutputFormat::Sarif => print::sarif(findings),
            OutputFormat::Html => html::print(findings, &areas(findings, is_pre_install), cluster),
        };
        files::write(None, &text).map_err(Failure::from)
    }
}

fn check_cluster(args: &ClusterCheckArgs, is_pre_install: bool) -> Result<ExitCode, Failure> {
    let (checked, is_met) = if let Some(condition) = &args.wait {
        wait::wait(args, is_pre_install, condition)?
    } else {
        let spinner = Spinner::start("checking the cluster");
        let checked = args.check(is_pre_install, args.timeout);
        drop(spinner);
        let checked = checked?;
        let is_met = WaitCondition::Passed.holds(args, &checked.findings);
        (checked, is_met)
    };
    args.print(&checked, is_pre_install)?;
    if args.is_incomplete(&checked.findings) {
        let text = "weir: not everything could be read, so the check is incomplete; --allow-incomplete accepts that";
        let _ = writeln!(std::io::stderr(), "{text}");
    }
    Ok(if is_met { ExitCode::SUCCESS } else { ExitCode::from(exit::FINDINGS) })
}
