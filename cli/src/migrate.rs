//! `weir migrate`: moves a mesh from Istio's injector and CNI plugin to Weir.
//!
//! ```text
//! cluster ─collect─▶ Objects ─plan─▶ Plan ─▶ text | json | html
//!                                injector: which webhook a pod is sent to   current: the rules that it has
//!                                inventory: control planes, plugins         assess: the proof, the new pod's differences
//! run, rollback ─▶ drive: observe ─▶ step::decide ─▶ write labels and record, restart, wait    (world: of a cluster, or a simulation)
//! finish: removes Istio's injector and istio-cni
//! ```

mod assess;
mod collect;
mod current;
mod drive;
mod finish;
mod html;
mod injector;
mod inventory;
mod json;
mod object;
mod plan;
mod prometheus;
mod record;
mod run;
mod step;
#[cfg(test)]
mod tests;
mod text;
mod world;

use std::collections::HashMap;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use crate::cluster::{Cluster, ConnectArgs};
use crate::failure::{Failure, exit};
use crate::files;
use plan::Plan;

/// Limit for reading a cluster.
const READ_TIMEOUT: Duration = Duration::from_mins(3);

/// Options of `weir migrate`.
#[derive(Debug, Args)]
pub(crate) struct MigrateArgs {
    #[command(subcommand)]
    command: MigrateCommand,
}

#[derive(Debug, Subcommand)]
enum MigrateCommand {
    /// Show what a migration changes: an inventory, and for every workload a proof about its traffic
    #[command(after_long_help = "\
Reads the cluster and changes nothing. For every workload it compares the rules that its pods have (of the arguments of istio-init, or as istio-cni \
derives them) with those that Weir would install, over all packets; and the pods that run with those that Weir would create.

Examples:
  weir migrate plan
  weir migrate plan -n shop -o json

Exit status: 0 done, 1 a workload would lose captured traffic or that cannot be decided, 2 wrong usage or the cluster is unreachable.")]
    Plan(PlanArgs),
    /// Move namespaces to Weir, one at a time, and roll a namespace back if anything fails
    #[command(after_long_help = "\
Weir has to run beside Istio under its own revision; with --set or --values it is installed first. A namespace gets the label istio.io/rev, its workloads are restarted in batches, and the next \
ones wait until the new pods are ready and the node agents report their capture rules in place. The progress is in the annotation \
weir.dev/migration of the namespace: a run that was killed goes on when it is started again.

Examples:
  weir migrate run --set images.hub=registry.example/weir
  weir migrate run --dry-run
  weir migrate run -n shop --batch 3 --prometheus http://127.0.0.1:9090

Exit status: 0 done, 1 a namespace was rolled back or needs a person, 2 wrong usage, not confirmed, or the cluster is unreachable.")]
    Run(run::RunArgs),
    /// Move namespaces back to the injector that they had
    #[command(after_long_help = "\
Restores the labels that weir migrate run has recorded, and restarts the workloads that have moved.

Examples:
  weir migrate rollback
  weir migrate rollback --namespace shop --batch 2

Exit status: 0 done, 1 a workload is not ready or the injector is gone, 2 wrong usage, not confirmed, or the cluster is unreachable.")]
    Rollback(run::RollbackArgs),
    /// Remove Istio's injector and istio-cni, unless a pod depends on them
    #[command(after_long_help = "\
istiod stays: it is the control plane. istio-cni stays if it serves ambient mode.

Examples:
  weir migrate finish
  weir migrate finish -y

Exit status: 0 done, 1 something depends on them, 2 wrong usage, not confirmed, or the cluster is unreachable.")]
    Finish(finish::FinishArgs),
}

/// Options that all subcommands have.
#[derive(Debug, Args)]
struct ScopeArgs {
    /// Only this namespace; can be repeated [default: all]
    #[arg(short, long = "namespace", value_name = "NAMESPACE")]
    namespaces: Vec<String>,

    /// Revision of Weir that namespaces move to
    #[arg(short, long, value_name = "REVISION", default_value = "weir")]
    revision: String,

    /// Namespace of Istio's control plane
    #[arg(short = 'i', long = "istioNamespace", value_name = "NAMESPACE", default_value = "istio-system")]
    istio_namespace: String,

    /// Namespace of the node agents
    #[arg(long, value_name = "NAMESPACE", default_value = "weir-node")]
    node_namespace: String,

    #[command(flatten)]
    connect: ConnectArgs,
}

#[derive(Debug, Args)]
struct PlanArgs {
    #[command(flatten)]
    scope: ScopeArgs,

    /// Ask the node agents for the state of the rules in running pods
    #[arg(long)]
    live: bool,

    /// Output format
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t = PlanFormat::Text)]
    output: PlanFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum PlanFormat {
    /// Text for people
    Text,
    /// One JSON document
    Json,
    /// One self-contained page
    Html,
}

/// Runs `weir migrate`.
///
/// # Errors
/// The cluster is unreachable or rejects a request.
pub(crate) fn run(args: &MigrateArgs) -> Result<ExitCode, Failure> {
    match &args.command {
        MigrateCommand::Plan(args) => return print_plan(args),
        MigrateCommand::Run(args) => {
            args.scope.connect.run(run::RUN_TIMEOUT, async |cluster| run::run(&cluster, args).await)?;
        }
        MigrateCommand::Rollback(args) => {
            args.scope.connect.run(run::RUN_TIMEOUT, async |cluster| run::rollback(&cluster, args).await)?;
        }
        MigrateCommand::Finish(args) => {
            args.scope.connect.run(run::RUN_TIMEOUT, async |cluster| finish::finish(&cluster, args).await)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn print_plan(args: &PlanArgs) -> Result<ExitCode, Failure> {
    let plan = args.scope.connect.run(READ_TIMEOUT, async |cluster| {
        let live = if args.live { collect::live(&cluster, &args.scope.node_namespace).await? } else { HashMap::new() };
        read_plan(&cluster, &args.scope, &live).await
    })?;
    let text = match args.output {
        PlanFormat::Text => text::print(&plan),
        PlanFormat::Json => json::print(&plan),
        PlanFormat::Html => html::print(&plan),
    };
    files::write(None, &text)?;
    Ok(if text::is_unsafe(&plan) { ExitCode::from(exit::FINDINGS) } else { ExitCode::SUCCESS })
}

async fn read_plan(cluster: &Cluster, scope: &ScopeArgs, live: &HashMap<String, String>) -> Result<Plan, Failure> {
    let objects = collect::objects(cluster, &scope.istio_namespace, &scope.namespaces).await?;
    Ok(Plan::of(&objects, &scope.revision, &scope.namespaces, live))
}
