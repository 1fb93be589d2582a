//! `weir install` and `weir upgrade`: apply the objects of `weir manifest generate` in an order that never blocks pods on a webhook that is
//! not ready.
//!
//! ```text
//! settings ──chart──▶ objects ──▶ dry run of all objects: every error is reported, the changes are shown, a person confirms
//!                                    └▶ namespaces, RBAC, configuration, workloads ──▶ wait until ready ──▶ webhook configurations
//! ```
//!
//! Objects are applied server-side, by the field manager `weir`: fields of other managers stay unless --force-conflicts is set. Of what
//! an earlier installation has left, only roles and bindings are deleted. Installing again upgrades.

mod neighbors;
mod preview;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::Value;
use weir_injector::selection::configurations::{AGENT_NAMESPACE, OWNER_REVISION_LABEL, OWNER_TAG_LABEL};

use crate::chart::{ChartArgs, Release};
use crate::cluster::{Cluster, ConnectArgs};
use crate::console::{confirm, print_line};
use crate::failure::Failure;
use crate::node_release::{AGENT, UNINSTALLER};
use crate::objects::{ApplyOptions, CONFIGURATION, DAEMON_SET, DEPLOYMENT, ObjectRef, RBAC, with_refs};
use crate::revisions::{self, label};
use crate::rollout::{self, CONFIRM_TIMEOUT, REQUESTS_TIMEOUT, WaitArgs};
use crate::version;

/// Label that tells Weir's own objects from those of Helm.
const MANAGED_BY: &str = "app.kubernetes.io/part-of=weir,app.kubernetes.io/managed-by=weir";

/// Options of `weir install` and `weir upgrade`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  weir install --set images.hub=registry.example/weir
  weir install --set images.hub=registry.example/weir --platform gke --dry-run=server
  weir upgrade --set images.hub=registry.example/weir,images.tag=0.2.0 -y

Exit status: 0 done, 1 a setting or an object was rejected, or a workload was not ready in time, 2 wrong usage, not confirmed, or the cluster is unreachable.")]
pub(crate) struct InstallArgs {
    #[command(flatten)]
    settings: ChartArgs,

    #[command(flatten)]
    connect: ConnectArgs,

    #[command(flatten)]
    options: InstallOptions,
}

/// Options for applying objects.
#[derive(Debug, Args)]
pub(crate) struct InstallOptions {
    /// Print what would be done: validate on the server, or only locally
    #[arg(long, value_enum, value_name = "WHERE", num_args = 0..=1, default_value = "none", default_missing_value = "client", require_equals = true)]
    pub(crate) dry_run: DryRun,

    /// Take ownership of fields set by other field managers
    #[arg(long)]
    pub(crate) force_conflicts: bool,

    /// Skip the confirmation
    #[arg(short = 'y', long, alias = "skip-confirmation")]
    pub(crate) yes: bool,

    #[command(flatten)]
    pub(crate) wait: WaitArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DryRun {
    /// Apply
    None,
    /// Local only
    Client,
    /// Server-side dry run
    Server,
}

/// An installation, or an upgrade of one that has to be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Install,
    Upgrade,
}

/// Runs `weir install` or `weir upgrade`.
///
/// # Errors
/// Settings or objects are rejected, nobody confirms, or a workload is not ready in time.
pub(crate) fn run(args: &InstallArgs, operation: Operation) -> Result<ExitCode, Failure> {
    let (release, options) = (args.settings.release()?, &args.options);
    require_registry(&release.objects()?)?;
    if options.dry_run == DryRun::Client {
        for (what, _) in with_refs(release.objects()?)? {
            print_line(&format!("{what} (dry run)"))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let timeout = options.wait.timeout + REQUESTS_TIMEOUT + if options.yes { Duration::ZERO } else { CONFIRM_TIMEOUT };
    args.connect.run(timeout, async |cluster| install(&cluster, release, options, operation).await)?;
    Ok(ExitCode::SUCCESS)
}

/// Rejects image names without a registry: runtimes look them up in a public registry, where they belong to somebody else.
pub(crate) fn require_registry(objects: &[Value]) -> Result<(), Failure> {
    let specs = objects.iter().filter_map(|object| object.pointer("/spec/template/spec"));
    let lists = specs.flat_map(|spec| ["initContainers", "containers"].map(|list| spec[list].as_array()));
    let images = lists.flatten().flatten().filter_map(|container| container["image"].as_str());
    let mut bare: Vec<&str> = images.filter(|image| !image.contains('/')).collect();
    bare.sort_unstable();
    bare.dedup();
    if bare.is_empty() {
        return Ok(());
    }
    Err(Failure::findings(vec![format!(
        "images.hub: not set, and {} would be pulled from a public registry, where the name is not Weir's; pass --set \
         images.hub=REGISTRY/FOLDER, or images.hub=localhost for images that are imported on the nodes (make images)",
        bare.join(", ")
    )]))
}

/// Installs a release, after a preview and a confirmation.
///
/// # Errors
/// Objects are rejected, nobody confirms, or a workload is not ready in time.
pub(crate) async fn install(
    cluster: &Cluster,
    release: Release,
    options: &InstallOptions,
    operation: Operation,
) -> Result<(), Failure> {
    let kubernetes = cluster.kubernetes_version().await?;
    print_target(cluster, &kubernetes, operation).await?;
    let release = release.for_kubernetes(kubernetes);
    let release = revisions::preserve_default(cluster, release).await?;
    neighbors::warn(cluster, release.revision()).await?;
    let (configurations, others): (Vec<_>, Vec<_>) =
        with_refs(release.objects()?)?.into_iter().partition(|(what, _)| what.kind == CONFIGURATION);
    if !others.iter().any(|(what, _)| what.kind == DAEMON_SET) && release.needs_agent() {
        let agent = ObjectRef::new(DAEMON_SET, AGENT_NAMESPACE, AGENT);
        if cluster.object(&agent).await?.is_none() {
            print_line("warning: no node agent is installed, but pods need one; --set node.enabled=true installs it")?;
        }
    }
    let mut preview = preview::preview(cluster, others.iter().chain(&configurations), options.force_conflicts).await?;
    let leftovers = leftover_rights(cluster, &release, &others).await?;
    let uninstaller = leftover_uninstaller(cluster, &others).await?;
    preview.add_deleted(&leftovers);
    preview.add_deleted(uninstaller.as_slice());
    print_line(&preview.text())?;
    if options.dry_run == DryRun::Server {
        return print_line("server dry run: nothing was changed");
    }
    if !preview.is_empty() {
        confirm("Continue?", options.yes)?;
    }

    let apply = ApplyOptions { dry_run: false, force: options.force_conflicts };
    // First, because it removes from the nodes what the agent is about to install.
    cluster.delete_all(uninstaller).await?;
    cluster.apply_all(&others, apply).await?;
    cluster.delete_all(leftovers).await?;
    if options.wait.wait {
        let workloads = others.iter().map(|(what, _)| what);
        let workloads: Vec<&ObjectRef> =
            workloads.filter(|what| [DEPLOYMENT, DAEMON_SET].contains(&what.kind)).collect();
        rollout::wait(cluster, &workloads, options.wait.timeout).await.map_err(|failure| {
            failure.and(
                "webhook configurations were not applied; fix the workload and run weir install again, or pass --wait=false"
                    .to_owned(),
            )
        })?;
    }
    cluster.apply_all(&configurations, apply).await?;
    revisions::reconcile_default(cluster).await?;
    print_line(&release.notes(options.wait.wait)?)
}

/// Prints the cluster, and the versions of everything.
async fn print_target(cluster: &Cluster, kubernetes: &str, operation: Operation) -> Result<(), Failure> {
    let installed = version::components(cluster).await?;
    if installed.is_empty() && operation == Operation::Upgrade {
        let text = format!("{cluster}: Weir is not installed in this cluster; weir install installs it");
        return Err(Failure::findings(vec![text]));
    }
    print_line(&format!("context:    {}", cluster.context))?;
    print_line(&format!("server:     {}", cluster.server))?;
    print_line(&format!("Kubernetes: {kubernetes}"))?;
    print_line(&format!("weir:       {}", env!("CARGO_PKG_VERSION")))?;
    for component in installed {
        print_line(&format!("running:    {component}"))?;
    }
    Ok(())
}

/// Finds the uninstaller that an interrupted `weir uninstall` has left beside the agent.
async fn leftover_uninstaller(cluster: &Cluster, objects: &[(ObjectRef, Value)]) -> Result<Option<ObjectRef>, Failure> {
    if !objects.iter().any(|(what, _)| what.kind == DAEMON_SET) {
        return Ok(None);
    }
    let uninstaller = ObjectRef::new(DAEMON_SET, AGENT_NAMESPACE, UNINSTALLER);
    Ok(cluster.object(&uninstaller).await?.map(|_| uninstaller))
}

/// Finds roles and bindings of an earlier installation that these settings do not need.
async fn leftover_rights(
    cluster: &Cluster,
    release: &Release,
    objects: &[(ObjectRef, Value)],
) -> Result<Vec<ObjectRef>, Failure> {
    let has = |kind| objects.iter().any(|(what, _)| what.kind == kind);
    // Without a workload, the settings say nothing of its rights.
    let webhook = has(DEPLOYMENT).then(|| format!("{MANAGED_BY},{OWNER_REVISION_LABEL}={}", release.revision()));
    let agent = has(DAEMON_SET).then(|| format!("{MANAGED_BY},app.kubernetes.io/name={AGENT}"));
    let mut leftovers = Vec::new();
    for kind in RBAC {
        for labels in [&webhook, &agent].into_iter().flatten() {
            let found = cluster.objects(kind, "", labels).await?;
            let own = found.iter().filter(|object| label(object, OWNER_TAG_LABEL).is_none());
            let unused = own.filter_map(ObjectRef::of).filter(|what| objects.iter().all(|(kept, _)| kept != what));
            leftovers.extend(unused);
        }
    }
    Ok(leftovers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_names_without_a_registry_are_rejected() {
        let objects = |set: &[&str]| ChartArgs::of(set).release().unwrap().objects().unwrap();
        let failure = require_registry(&objects(&[])).unwrap_err().to_string();
        assert!(
            failure.contains("images.hub: not set, and weir-agent:") && failure.contains("weir-webhook:"),
            "{failure}"
        );
        for set in ["images.hub=localhost", "images.webhook=r.example/w:1,images.agent=r.example/a:1"] {
            assert_eq!(require_registry(&objects(&[set])), Ok(()), "{set}");
        }
    }
}
