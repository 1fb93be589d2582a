//! `weir install`: applies the objects of `weir manifest generate` in an order that never blocks pods on a webhook that is not ready.
//!
//! ```text
//! settings ──chart──▶ objects ──▶ dry run of all objects: every error is reported, nothing is changed
//!                                    └▶ namespaces, RBAC, configuration, workloads ──▶ wait until ready ──▶ webhook configurations
//! ```
//!
//! Objects are applied server-side, by the field manager `weir`: fields of other managers stay unless --force-conflicts is set, and nothing
//! is deleted. Installing again upgrades.

use std::process::ExitCode;

use clap::{Args, ValueEnum};
use serde_json::Value;
use weir_injector::selection::configurations::AGENT_NAMESPACE;

use crate::chart::{ChartArgs, Release};
use crate::cluster::{Cluster, ConnectArgs};
use crate::console::print_line;
use crate::failure::Failure;
use crate::node_release::AGENT;
use crate::objects::{
    ApplyOptions, ApplyResult, CONFIGURATION, DAEMON_SET, DEPLOYMENT, NAMESPACE, ObjectError, ObjectRef, with_refs,
};
use crate::revisions;
use crate::rollout::{self, REQUESTS_TIMEOUT, WaitArgs};

/// Options of `weir install`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  weir install --set images.hub=registry.example/weir
  weir install --platform gke --dry-run=server
  weir install --revision canary --set images.tag=0.2.0

Exit status: 0 done, 1 a setting or an object was rejected, or a workload was not ready in time, 2 wrong usage or the cluster is unreachable.")]
pub(crate) struct InstallArgs {
    #[command(flatten)]
    settings: ChartArgs,

    #[command(flatten)]
    connect: ConnectArgs,

    /// Print what would be done: validate on the server, or only locally
    #[arg(long, value_enum, value_name = "WHERE", num_args = 0..=1, default_value = "none", default_missing_value = "client", require_equals = true)]
    dry_run: DryRun,

    /// Take ownership of fields set by other field managers
    #[arg(long)]
    force_conflicts: bool,

    #[command(flatten)]
    wait: WaitArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum DryRun {
    /// Apply
    None,
    /// Local only
    Client,
    /// Server-side dry run
    Server,
}

/// Runs `weir install`.
///
/// # Errors
/// Settings or objects are rejected, or a workload is not ready in time.
pub(crate) fn run(args: &InstallArgs) -> Result<ExitCode, Failure> {
    let release = args.settings.release()?;
    if args.dry_run == DryRun::Client {
        for (what, _) in with_refs(release.objects()?)? {
            print_line(&format!("{what} (dry run)"))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    args.connect.run(args.wait.timeout + REQUESTS_TIMEOUT, async |cluster| install(&cluster, release, args).await)?;
    Ok(ExitCode::SUCCESS)
}

async fn install(cluster: &Cluster, release: Release, args: &InstallArgs) -> Result<(), Failure> {
    let release = release.for_kubernetes(cluster.kubernetes_version().await?);
    let release = revisions::preserve_default(cluster, release).await?;
    let (configurations, others): (Vec<_>, Vec<_>) =
        with_refs(release.objects()?)?.into_iter().partition(|(what, _)| what.kind == CONFIGURATION);
    if !others.iter().any(|(what, _)| what.kind == DAEMON_SET) && release.needs_agent() {
        let agent = ObjectRef::new(DAEMON_SET, AGENT_NAMESPACE, AGENT);
        if cluster.object(&agent).await?.is_none() {
            print_line("warning: no node agent is installed, but pods need one; --set node.enabled=true installs it")?;
        }
    }
    let options = ApplyOptions { dry_run: true, force: args.force_conflicts };
    let planned = dry_run_all(cluster, others.iter().chain(&configurations), options).await?;
    if args.dry_run == DryRun::Server {
        return planned.iter().try_for_each(|(what, result)| print_line(&format!("{what} {result} (server dry run)")));
    }

    let options = ApplyOptions { dry_run: false, ..options };
    cluster.apply_all(&others, options).await?;
    if args.wait.wait {
        let workloads = others.iter().map(|(what, _)| what);
        let workloads: Vec<&ObjectRef> =
            workloads.filter(|what| [DEPLOYMENT, DAEMON_SET].contains(&what.kind)).collect();
        rollout::wait(cluster, &workloads, args.wait.timeout).await.map_err(|failure| {
            failure.and(
                "webhook configurations were not applied; fix the workload and run weir install again, or pass --wait=false"
                    .to_owned(),
            )
        })?;
    }
    cluster.apply_all(&configurations, options).await?;
    revisions::reconcile_default(cluster).await?;
    print_line(&release.notes()?)
}

/// Applies every object as a server-side dry run, so that all errors are known before anything is changed.
async fn dry_run_all<'a>(
    cluster: &Cluster,
    objects: impl Iterator<Item = &'a (ObjectRef, Value)>,
    options: ApplyOptions,
) -> Result<Vec<(&'a ObjectRef, ApplyResult)>, Failure> {
    let (mut planned, mut findings, mut namespaces) = (Vec::new(), Vec::new(), Vec::new());
    let mut conflicts = false;
    for (what, object) in objects {
        if what.kind == NAMESPACE {
            namespaces.push(what.name.as_str());
        }
        match cluster.try_apply(what, object, options).await {
            Ok(result) => planned.push((what, result)),
            // Its namespace is created before it.
            Err(ObjectError::NamespaceNotFound) if namespaces.contains(&what.namespace.as_str()) => {
                planned.push((what, ApplyResult::Created));
            }
            Err(error) => {
                conflicts |= matches!(error, ObjectError::Conflict(_));
                findings.push(format!("{what}: {error}"));
            }
        }
    }
    if findings.is_empty() {
        return Ok(planned);
    }
    let advice = if conflicts { "; pass --force-conflicts to take ownership" } else { "" };
    findings.push(format!("{}: nothing was applied{advice}", cluster.server));
    Err(Failure::findings(findings))
}
