//! `weir uninstall`: deletes the webhook configurations first, then the plugin from the nodes, then the rest.
//!
//! ```text
//! labels ──▶ webhook configurations, tags ──▶ agent's DaemonSet ──▶ uninstaller on every node, waited for ──▶ workloads, RBAC, CA, namespaces
//! ```
//!
//! Only objects that are labelled as part of Weir are deleted, and the Secret and Lease that the webhook itself created.

mod gateways;

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::Value;
use weir_injector::selection::configurations::{AGENT_NAMESPACE, OWNER_REVISION_LABEL, OWNER_TAG_LABEL, with_revision};

use crate::chart::ChartArgs;
use crate::cluster::{Cluster, ConnectArgs};
use crate::console::{confirm, print_line};
use crate::failure::Failure;
use crate::node_release::{self, AGENT, UNINSTALLER};
use crate::objects::{
    ALL, ApplyOptions, CONFIG_MAP, CONFIGURATION, DAEMON_SET, DEPLOYMENT, LEASE, NAMESPACE, ObjectRef, POD,
    ResourceKind, SECRET, with_refs,
};
use crate::revisions;
use crate::rollout::{self, CONFIRM_TIMEOUT, REQUESTS_TIMEOUT, WaitArgs};

const PART_OF_LABEL: &str = "app.kubernetes.io/part-of=weir";
/// Message of the uninstaller about a node where the plugin stays.
const PLUGIN_KEPT: &str = "kept the plugin";
/// Limit of nodes that are named.
const MAX_NODES: usize = 5;

/// Options of `weir uninstall`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  weir uninstall
  weir uninstall --revision canary -y
  weir uninstall --purge

Exit status: 0 done, 1 the cluster rejected a request or the plugin was not removed in time, 2 wrong usage or the cluster is unreachable.")]
pub(crate) struct UninstallArgs {
    /// Delete only this revision of the webhook [default: everything, including the node agent]
    #[arg(short, long, value_name = "REVISION")]
    revision: Option<String>,

    /// Remove the plugin from the paths of this platform, if the agent's DaemonSet no longer exists
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<String>,

    /// Remove the plugin with this image of the agent, if its DaemonSet no longer exists
    #[arg(long, value_name = "IMAGE")]
    agent_image: Option<String>,

    /// Delete the namespaces too, unless they hold other pods
    #[arg(long)]
    purge: bool,

    /// Skip the confirmation
    #[arg(short = 'y', long, alias = "skip-confirmation")]
    yes: bool,

    #[command(flatten)]
    connect: ConnectArgs,

    #[command(flatten)]
    wait: WaitArgs,
}

/// Runs `weir uninstall`.
///
/// # Errors
/// The cluster rejects a request, or the plugin is not removed from all nodes in time.
pub(crate) fn run(args: &UninstallArgs) -> Result<ExitCode, Failure> {
    // At most six steps wait, one after the other.
    let timeout = args.wait.timeout * 6 + REQUESTS_TIMEOUT + if args.yes { Duration::ZERO } else { CONFIRM_TIMEOUT };
    args.connect.run(timeout, async |cluster| uninstall(&cluster, args).await)?;
    Ok(ExitCode::SUCCESS)
}

/// Lists all objects of Weir, or of one revision of the webhook, in the order of deletion.
async fn list_objects(cluster: &Cluster, revision: Option<&str>) -> Result<Vec<(ResourceKind, Value)>, Failure> {
    let labels = revision.map_or_else(
        || PART_OF_LABEL.to_owned(),
        |revision| format!("{PART_OF_LABEL},{OWNER_REVISION_LABEL}={revision}"),
    );
    let mut all = Vec::new();
    for kind in ALL {
        let objects = cluster.objects(kind, "", &labels).await?;
        all.extend(objects.into_iter().map(|object| (kind, object)));
    }
    Ok(all)
}

fn object_ref(kind: ResourceKind, object: &Value) -> ObjectRef {
    let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default();
    ObjectRef::new(kind, text("namespace"), text("name"))
}

async fn uninstall(cluster: &Cluster, args: &UninstallArgs) -> Result<(), Failure> {
    let found = list_objects(cluster, args.revision.as_deref()).await?;
    let (namespaces, objects): (Vec<_>, Vec<_>) = found.into_iter().partition(|(kind, _)| *kind == NAMESPACE);
    let daemon_set = |name: &str| {
        let found = objects.iter().find(|(kind, object)| *kind == DAEMON_SET && object["metadata"]["name"] == name);
        found.map(|(_, object)| object)
    };
    let (agent, uninstaller) = (daemon_set(AGENT), daemon_set(UNINSTALLER));
    let by_platform = args.platform.is_some() && args.revision.is_none();
    if objects.is_empty() && !by_platform && (namespaces.is_empty() || !args.purge) {
        return print_line("Weir is not installed");
    }
    let what = args
        .revision
        .as_ref()
        .map_or_else(|| "Weir".to_owned(), |revision| format!("revision {revision} of the webhook"));
    let nodes =
        if agent.or(uninstaller).is_some() || by_platform { ", including the plugin on every node" } else { "" };
    let tags = objects.iter().filter(|(kind, _)| *kind == CONFIGURATION);
    let tags: Vec<&str> =
        tags.filter_map(|(_, object)| object["metadata"]["labels"][OWNER_TAG_LABEL].as_str()).collect();
    let tags = if tags.is_empty() { String::new() } else { format!(", and the tags {}", tags.join(", ")) };
    let question = format!(
        "{}: delete {what} ({} objects{nodes}{tags})? Running pods keep their sidecars and rules; new pods get none.",
        cluster.server,
        objects.len()
    );
    if objects.iter().any(|(kind, _)| *kind == CONFIGURATION) {
        gateways::warn(cluster).await?;
    }
    confirm(&question, args.yes)?;

    // First of all, so that no pod is sent to a webhook that is being deleted.
    let first = objects
        .iter()
        .filter(|(kind, object)| *kind == CONFIGURATION || object["metadata"]["labels"].get(OWNER_TAG_LABEL).is_some());
    cluster.delete_all(first.map(|(kind, object)| object_ref(*kind, object))).await?;
    revisions::reconcile_default(cluster).await?;

    if agent.is_some() || by_platform {
        uninstall_from_nodes(cluster, agent, args).await?;
    } else if uninstaller.is_some() {
        // An earlier run was interrupted.
        wait_for_nodes(cluster, args).await?;
    }
    // Webhooks before their Secrets: a running one would create its CA again.
    let (deployments, rest): (Vec<_>, Vec<_>) = objects.iter().partition(|(kind, _)| *kind == DEPLOYMENT);
    cluster.delete_all(deployments.iter().map(|(kind, object)| object_ref(*kind, object))).await?;
    for (_, deployment) in &deployments {
        let namespace = deployment["metadata"]["namespace"].as_str().unwrap_or_default();
        let revision = deployment["metadata"]["labels"][OWNER_REVISION_LABEL].as_str().unwrap_or_default();
        let ca = with_revision("weir-webhook-ca", revision);
        let pods = format!("app.kubernetes.io/name=weir-webhook,{OWNER_REVISION_LABEL}={revision}");
        rollout::wait_gone(cluster, POD, namespace, &pods, args.wait.required_timeout()).await?;
        cluster.delete_all([ObjectRef::new(SECRET, namespace, &ca), ObjectRef::new(LEASE, namespace, &ca)]).await?;
    }
    cluster.delete_all(rest.iter().map(|(kind, object)| object_ref(*kind, object))).await?;
    if args.purge {
        let namespaces: Vec<ObjectRef> = namespaces.iter().map(|(kind, object)| object_ref(*kind, object)).collect();
        delete_unused_namespaces(cluster, &namespaces, &args.wait).await?;
    }
    Ok(())
}

/// Removes the plugin from every node; the agent first, because it would install it again.
async fn uninstall_from_nodes(cluster: &Cluster, agent: Option<&Value>, args: &UninstallArgs) -> Result<(), Failure> {
    let release = match agent {
        Some(agent) => node_release::release_for_agent(cluster, agent).await?,
        None => ChartArgs::for_platform(args.platform.as_deref(), args.agent_image.as_deref()).release()?,
    };
    let release = release
        .with_value("/webhook/enabled", false)
        .with_value("/node/enabled", true)
        .with_value("/node/uninstall", true);
    let objects = with_refs(release.objects()?)?;
    let agent = ObjectRef::new(DAEMON_SET, AGENT_NAMESPACE, AGENT);
    cluster.delete_all([agent]).await?;
    let pods = format!("app.kubernetes.io/name={AGENT}");
    rollout::wait_gone(cluster, POD, AGENT_NAMESPACE, &pods, args.wait.required_timeout()).await?;

    cluster.apply_all(&objects, ApplyOptions { dry_run: false, force: true }).await?;
    wait_for_nodes(cluster, args).await?;
    let applied = objects.iter().rev().map(|(what, _)| what).filter(|what| what.kind != NAMESPACE);
    cluster.delete_all(applied.cloned()).await
}

/// Waits until the plugin is removed from every node, and deletes the uninstaller.
async fn wait_for_nodes(cluster: &Cluster, args: &UninstallArgs) -> Result<(), Failure> {
    let uninstaller = ObjectRef::new(DAEMON_SET, AGENT_NAMESPACE, UNINSTALLER);
    if !args.wait.wait {
        return Err(Failure::findings(vec![format!(
            "the plugin is being removed from the nodes; when `kubectl -n {AGENT_NAMESPACE} rollout status daemonset/{UNINSTALLER}` has \
             finished, run weir uninstall again to delete the rest"
        )]));
    }
    rollout::wait(cluster, &[&uninstaller], args.wait.timeout).await.map_err(|failure| {
        failure.and(
            "the remaining objects were not deleted; run weir uninstall again when the plugin is removed from all nodes".to_owned(),
        )
    })?;
    let kept = nodes_with_plugin(cluster).await?;
    if !kept.is_empty() {
        print_line(&format!(
            "the plugin's binary stays on {} ({}): pods that run were started with it, and CRI-O needs it to stop them; it does nothing, \
             and weir-cni.kept beside it says why",
            if kept.len() == 1 { "1 node".to_owned() } else { format!("{} nodes", kept.len()) },
            kept.iter().take(MAX_NODES).map(String::as_str).collect::<Vec<_>>().join(", "),
        ))?;
    }
    cluster.delete_all([uninstaller, ObjectRef::new(CONFIG_MAP, AGENT_NAMESPACE, node_release::CONFIG_MAP_NAME)]).await
}

/// Returns the nodes whose uninstaller has left the binary, by what it says in the end.
async fn nodes_with_plugin(cluster: &Cluster) -> Result<Vec<String>, Failure> {
    let pods = cluster.objects(POD, AGENT_NAMESPACE, &format!("app.kubernetes.io/name={UNINSTALLER}")).await?;
    let is_kept = |pod: &&Value| {
        let text = pod.pointer("/status/initContainerStatuses/0/state/terminated/message").and_then(Value::as_str);
        text.is_some_and(|text| text.contains(PLUGIN_KEPT))
    };
    Ok(pods.iter().filter(is_kept).filter_map(|pod| pod["spec"]["nodeName"].as_str().map(str::to_owned)).collect())
}

/// Deletes namespaces that have no other pods, and waits until they are gone: nothing can be installed into them before.
async fn delete_unused_namespaces(cluster: &Cluster, namespaces: &[ObjectRef], wait: &WaitArgs) -> Result<(), Failure> {
    const OTHERS: &str =
        "app.kubernetes.io/part-of!=weir,app.kubernetes.io/name!=weir-uninstall,app.kubernetes.io/name!=weir-agent";
    let mut deleted = Vec::new();
    for namespace in namespaces {
        let pods = cluster.objects(POD, &namespace.name, OTHERS).await?;
        if pods.is_empty() {
            cluster.delete_all([namespace.clone()]).await?;
            deleted.push(namespace);
        } else {
            let names: Vec<&str> = pods.iter().filter_map(|pod| pod["metadata"]["name"].as_str()).collect();
            print_line(&format!("kept {namespace}: it has other pods: {}", names.join(", ")))?;
        }
    }
    for namespace in deleted.into_iter().filter(|_| wait.wait) {
        let label = format!("kubernetes.io/metadata.name={}", namespace.name);
        rollout::wait_gone(cluster, NAMESPACE, "", &label, wait.timeout).await?;
    }
    Ok(())
}
