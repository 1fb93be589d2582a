//! `weir uninstall`: what sends pods to the webhook first, then the plugin off the nodes, then the rest.
//!
//! ```text
//! labels ──▶ webhook configurations, tags ──▶ agent's DaemonSet ──▶ uninstaller on every node, waited for ──▶ workloads, rights, CA, namespaces
//! ```
//!
//! Only what is labelled as part of Weir goes, and the Secret and Lease that the webhook itself has made.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::Value;
use weir_injector::inject::selection::objects::{NODE_NAMESPACE, REVISION_LABEL, TAG_LABEL, with_revision};

use super::{OTHERWISE, WaitArgs, apply_all, confirmed, named, node, rollout, say};
use crate::chart::SettingsArgs;
use crate::cluster::{Cluster, ConnectArgs};
use crate::failure::Failure;
use crate::objects::{
    ALL, CONFIG_MAP, CONFIGURATION, DAEMON_SET, DEPLOYMENT, How, Kind, LEASE, NAMESPACE, POD, Ref, SECRET,
};
use crate::tag;

/// The label of everything that is installed.
const OURS: &str = "app.kubernetes.io/part-of=weir";
/// A person may take their time to answer.
const THINKING: Duration = Duration::from_mins(10);

/// What goes, and how.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  weir uninstall
  weir uninstall --revision canary -y
  weir uninstall --purge

Exit status: 0 done, 1 refused, or the nodes were not clean in time, 2 wrong usage or the cluster is not reached.")]
pub(crate) struct UninstallArgs {
    /// Only this revision of the webhook; without it everything, the agent on the nodes too
    #[arg(short, long, value_name = "NAME")]
    revision: Option<String>,

    /// Take the plugin off the nodes of this platform, where the agent that would say which is gone already
    #[arg(long, value_name = "NAME")]
    platform: Option<String>,

    /// Image of the agent for that, where the agent that would say which is gone already
    #[arg(long, value_name = "IMAGE")]
    agent_image: Option<String>,

    /// The namespaces too, unless something else is in them
    #[arg(long)]
    purge: bool,

    /// Do not ask
    #[arg(short = 'y', long, alias = "skip-confirmation")]
    yes: bool,

    #[command(flatten)]
    connect: ConnectArgs,

    #[command(flatten)]
    wait: WaitArgs,
}

/// Carries it out.
///
/// # Errors
/// What the cluster refuses; nodes that are not clean in time.
pub(crate) fn run(args: &UninstallArgs) -> Result<ExitCode, Failure> {
    // Four things are waited for at the most, one after the other.
    let bound = args.wait.timeout * 4 + OTHERWISE + if args.yes { Duration::ZERO } else { THINKING };
    args.connect.ask(bound, async |cluster| uninstall(&cluster, args).await)?;
    Ok(ExitCode::SUCCESS)
}

/// All objects of Weir, or of one revision of the webhook, in the order in which they go.
async fn found(cluster: &Cluster, revision: Option<&str>) -> Result<Vec<(Kind, Value)>, Failure> {
    let labels = revision.map_or_else(|| OURS.to_owned(), |revision| format!("{OURS},{REVISION_LABEL}={revision}"));
    let mut all = Vec::new();
    for kind in ALL {
        let objects = cluster.objects(kind, "", &labels).await.map_err(|refused| cluster.failure(&labels, &refused))?;
        all.extend(objects.into_iter().map(|object| (kind, object)));
    }
    Ok(all)
}

fn name(kind: Kind, object: &Value) -> Ref {
    let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default();
    Ref::new(kind, text("namespace"), text("name"))
}

async fn uninstall(cluster: &Cluster, args: &UninstallArgs) -> Result<(), Failure> {
    let found = found(cluster, args.revision.as_deref()).await?;
    let (namespaces, objects): (Vec<_>, Vec<_>) = found.into_iter().partition(|(kind, _)| *kind == NAMESPACE);
    let daemon_set = |name: &str| {
        let found = objects.iter().find(|(kind, object)| *kind == DAEMON_SET && object["metadata"]["name"] == name);
        found.map(|(_, object)| object)
    };
    let (agent, cleaner) = (daemon_set(node::AGENT), daemon_set(node::CLEANER));
    let by_hand = args.platform.is_some() && args.revision.is_none();
    if objects.is_empty() && !by_hand && (namespaces.is_empty() || !args.purge) {
        return say("nothing of it is installed");
    }
    let what = args
        .revision
        .as_ref()
        .map_or_else(|| "Weir".to_owned(), |revision| format!("revision {revision} of the webhook"));
    let nodes = if agent.or(cleaner).is_some() || by_hand { ", the plugin on every node among them" } else { "" };
    let tags = objects.iter().filter(|(kind, _)| *kind == CONFIGURATION);
    let tags: Vec<&str> = tags.filter_map(|(_, object)| object["metadata"]["labels"][TAG_LABEL].as_str()).collect();
    let tags = if tags.is_empty() { String::new() } else { format!(", and the tags {}", tags.join(", ")) };
    let question = format!(
        "{}: take away {what} ({} objects{nodes}{tags})? Pods that run keep their sidecars and rules; new ones get none.",
        cluster.server,
        objects.len()
    );
    confirmed(&question, args.yes)?;

    // From now on no pod is sent to a webhook that is about to go.
    let first = objects
        .iter()
        .filter(|(kind, object)| *kind == CONFIGURATION || object["metadata"]["labels"].get(TAG_LABEL).is_some());
    delete(cluster, first.map(|(kind, object)| name(*kind, object))).await?;
    tag::settle_default(cluster).await?;

    if agent.is_some() || by_hand {
        clean_nodes(cluster, agent, args).await?;
    } else if cleaner.is_some() {
        // A run before this one had begun, and did not see it through.
        wait_for_nodes(cluster, args).await?;
    }
    // Webhooks first: while one runs it would make its CA anew.
    let (deployments, rest): (Vec<_>, Vec<_>) = objects.iter().partition(|(kind, _)| *kind == DEPLOYMENT);
    delete(cluster, deployments.iter().map(|(kind, object)| name(*kind, object))).await?;
    for (_, deployment) in &deployments {
        let namespace = deployment["metadata"]["namespace"].as_str().unwrap_or_default();
        let revision = deployment["metadata"]["labels"][REVISION_LABEL].as_str().unwrap_or_default();
        let ca = with_revision("weir-webhook-ca", revision);
        let pods = format!("app.kubernetes.io/name=weir-webhook,{REVISION_LABEL}={revision}");
        rollout::wait_gone(cluster, POD, namespace, &pods, args.wait.bound()).await?;
        delete(cluster, [Ref::new(SECRET, namespace, &ca), Ref::new(LEASE, namespace, &ca)]).await?;
    }
    delete(cluster, rest.iter().map(|(kind, object)| name(*kind, object))).await?;
    for (kind, object) in namespaces.iter().filter(|_| args.purge) {
        purge(cluster, &name(*kind, object)).await?;
    }
    Ok(())
}

async fn delete(cluster: &Cluster, objects: impl IntoIterator<Item = Ref>) -> Result<(), Failure> {
    for what in objects {
        if cluster.delete(&what).await.map_err(|refused| cluster.failure(&what, &refused))? {
            say(&format!("{what} deleted"))?;
        }
    }
    Ok(())
}

/// Takes the plugin off every node: the agent first, or it would put it there again.
async fn clean_nodes(cluster: &Cluster, agent: Option<&Value>, args: &UninstallArgs) -> Result<(), Failure> {
    let settings = match agent {
        Some(agent) => node::settings_of(cluster, agent).await?,
        None => SettingsArgs::for_platform(args.platform.as_deref(), args.agent_image.as_deref()).release()?,
    };
    let settings = settings.with("/webhook/enabled", false).with("/node/enabled", true).with("/node/uninstall", true);
    let objects = named(settings.objects()?)?;
    let agent = Ref::new(DAEMON_SET, NODE_NAMESPACE, node::AGENT);
    delete(cluster, [agent]).await?;
    let pods = format!("app.kubernetes.io/name={}", node::AGENT);
    rollout::wait_gone(cluster, POD, NODE_NAMESPACE, &pods, args.wait.bound()).await?;

    apply_all(cluster, &objects, How { dry_run: false, force: true }).await?;
    wait_for_nodes(cluster, args).await?;
    let applied = objects.iter().rev().map(|(what, _)| what).filter(|what| what.kind != NAMESPACE);
    delete(cluster, applied.cloned()).await
}

/// Waits until every node is clean. What is left of the uninstaller goes with the rest.
async fn wait_for_nodes(cluster: &Cluster, args: &UninstallArgs) -> Result<(), Failure> {
    let cleaner = Ref::new(DAEMON_SET, NODE_NAMESPACE, node::CLEANER);
    if !args.wait.wait {
        return Err(Failure::refused(vec![format!(
            "the nodes are being cleaned; when `kubectl -n {NODE_NAMESPACE} rollout status daemonset/{}` is through, uninstall again \
             for the rest",
            node::CLEANER
        )]));
    }
    rollout::wait(cluster, &[&cleaner], args.wait.timeout).await.map_err(|failure| {
        failure.and("the rest is left as it is; uninstall again when the nodes are clean".to_owned())
    })?;
    delete(cluster, [cleaner, Ref::new(CONFIG_MAP, NODE_NAMESPACE, node::SETTINGS)]).await
}

/// Deletes a namespace, unless what others have made is in it.
async fn purge(cluster: &Cluster, namespace: &Ref) -> Result<(), Failure> {
    let pods = cluster
        .objects(
            POD,
            &namespace.name,
            "app.kubernetes.io/part-of!=weir,app.kubernetes.io/name!=weir-uninstall,app.kubernetes.io/name!=weir-agent",
        )
        .await;
    let pods = pods.map_err(|refused| cluster.failure(namespace, &refused))?;
    if pods.is_empty() {
        return delete(cluster, [namespace.clone()]).await;
    }
    let names: Vec<&str> = pods.iter().filter_map(|pod| pod["metadata"]["name"].as_str()).collect();
    say(&format!("{namespace} stays: other pods are in it: {}", names.join(", ")))
}
