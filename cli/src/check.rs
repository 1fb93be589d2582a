//! `weir check`: what is wrong in a cluster, before an installation, after it, and in between.
//!
//! ```text
//! cluster ──gather──▶ Snapshot ──judge──▶ Findings ──suppress──▶ text | json | junit, exit status
//! ```

mod fault;
mod finding;
mod gather;
mod judge;
mod node;
mod print;
mod snapshot;
mod suppress;
#[cfg(test)]
mod tests;

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use self::fault::Severity;
use self::gather::Scope;
use self::snapshot::Places;
use self::suppress::Suppressed;
use crate::cluster::ConnectArgs;
use crate::failure::{Failure, exit};
use crate::files;

/// What is checked.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_long_help = "\
Looks at the whole of an installation: the cluster, the webhook and every hop on the way to it, certificates, webhook configurations,
namespaces, replicas, nodes and their agents, configuration, workloads. Changes nothing; it creates a pod on trial (dry-run), which the API
server does not store. Every finding has a code, which docs/check.md explains, and what to do about it.

What you may not read is said, and the rest is checked.

Examples:
  weir check
  weir check --pre                                  # before installing
  weir check -n shop -o json
  weir check -S 'single-replica' -S 'WEIR802=Pod shop/*'

Exit status: 0 nothing at or above --failure-threshold, 1 findings, 2 wrong usage or the cluster is not reached."
)]
pub(crate) struct CheckArgs {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    cluster: ClusterCheckArgs,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Whether the cluster is ready for an installation, the same as --pre
    #[command(alias = "pre")]
    Precheck(Box<ClusterCheckArgs>),
    /// The pods of the mesh on one node: ask its agent whether their rules are in place
    Node(node::NodeArgs),
}

#[derive(Debug, Args)]
struct ClusterCheckArgs {
    #[command(flatten)]
    connect: ConnectArgs,

    /// Namespace of the control plane
    #[arg(short = 'i', long = "istioNamespace", value_name = "NAME", default_value = "istio-system")]
    istio_namespace: String,

    /// Namespace of the webhook
    #[arg(long, value_name = "NAME", default_value = "weir-system")]
    weir_namespace: String,

    /// Namespace of the node agents
    #[arg(long, value_name = "NAME", default_value = "weir-node")]
    node_namespace: String,

    /// Look at the workloads of this namespace only
    #[arg(short, long, value_name = "NAME")]
    namespace: Option<String>,

    /// Check whether the cluster is ready for an installation, instead of an installation
    #[arg(long)]
    pre: bool,

    /// Revision that is to be installed, with --pre
    #[arg(short, long, value_name = "NAME", default_value = "default")]
    revision: String,

    /// Form of the answer
    #[arg(short, long, value_name = "FORM", value_enum, default_value_t = Form::Text)]
    output: Form,

    /// Least severity that makes the exit status 1
    #[arg(long, value_name = "SEVERITY", value_enum, ignore_case = true, default_value_t = Severity::Error)]
    failure_threshold: Severity,

    /// Leave findings out: CODE=KIND NAMESPACE/NAME, every part with `*` for anything, or CODE alone; may be repeated
    #[arg(short = 'S', long, value_name = "RULE")]
    suppress: Vec<Suppressed>,

    /// Create no pod on trial
    #[arg(long, conflicts_with = "probe_namespace")]
    no_probe: bool,

    /// Namespace in which a pod is created on trial; without it, one whose pods get sidecars
    #[arg(long, value_name = "NAME")]
    probe_namespace: Option<String>,

    /// Longest time for all of it: seconds, or 90s, 2m
    #[arg(long, value_name = "TIME", default_value = "2m", value_parser = time)]
    timeout: Duration,
}

/// `--output`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    /// For people, with what to do.
    Text,
    /// One JSON document.
    Json,
    /// JUnit's XML, for CI.
    Junit,
}

fn time(text: &str) -> Result<Duration, String> {
    let (number, unit) = match text.strip_suffix('m') {
        Some(minutes) => (minutes, 60),
        None => (text.strip_suffix('s').unwrap_or(text), 1),
    };
    let number: u64 = number.parse().map_err(|_| format!("{text:?} is no time: seconds, or 90s, 2m"))?;
    match number.saturating_mul(unit) {
        seconds @ 1..=3600 => Ok(Duration::from_secs(seconds)),
        _ => Err(format!("{text:?} is not between 1s and 60m")),
    }
}

/// Carries it out.
///
/// # Errors
/// Where the cluster or the agent cannot be asked.
pub(crate) fn run(args: &CheckArgs) -> Result<ExitCode, Failure> {
    match &args.what {
        Some(What::Node(args)) => node::run(args),
        Some(What::Precheck(args)) => run_cluster(args, true),
        None => run_cluster(&args.cluster, args.cluster.pre),
    }
}

fn run_cluster(args: &ClusterCheckArgs, pre: bool) -> Result<ExitCode, Failure> {
    let probe = (!args.no_probe).then(|| args.probe_namespace.clone().unwrap_or_default());
    let scope = Scope {
        places: Places {
            weir: args.weir_namespace.clone(),
            node: args.node_namespace.clone(),
            istio: args.istio_namespace.clone(),
        },
        namespace: args.namespace.clone(),
        before: pre.then(|| args.revision.clone()),
        probe,
        reports: args.timeout / 2,
    };
    let snapshot =
        args.connect.ask_slowly(args.timeout, async |cluster| Box::pin(gather::gather(&cluster, &scope)).await)?;
    let findings = judge::judge(&snapshot).into_sorted(&args.suppress);
    let text = match args.output {
        Form::Text => print::text(&findings, std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none()),
        Form::Json => print::json(&findings),
        Form::Junit => print::junit(&findings),
    };
    files::write(None, &text)?;
    let failed = findings.iter().any(|finding| finding.fault.severity >= args.failure_threshold);
    Ok(if failed { ExitCode::from(exit::FINDINGS) } else { ExitCode::SUCCESS })
}
