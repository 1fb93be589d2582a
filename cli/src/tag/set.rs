//! `weir tag set`: points a tag to a revision.

use clap::Args;
use serde_json::{Value, json};
use weir_injector::selection::REVISION_LABEL;
use weir_injector::selection::configurations::{OWNER_REVISION_LABEL, OWNER_TAG_LABEL};

use super::existing;
use super::objects_of_tag;
use crate::cluster::{Cluster, ConnectArgs, join_names};
use crate::console::print_line;
use crate::failure::Failure;
use crate::objects::{ApplyOptions, ApplyResult, CONFIGURATION, ObjectRef, with_refs};
use crate::revisions::{DEFAULT, configurations, label, of_revision, of_tag, reconcile_default};

/// Field manager of the webhook, which writes caBundle.
const WEBHOOK_MANAGER: &str = "weir-webhook";

/// Options of `weir tag set`.
#[derive(Debug, Args)]
pub(super) struct SetArgs {
    /// Name of the tag; `default` makes the revision the default injector
    #[arg(value_parser = super::tag_name)]
    tag: String,
    /// Point the tag to this revision
    #[arg(short, long, value_name = "REVISION")]
    revision: String,
    /// Move an existing tag to this revision
    #[arg(long)]
    overwrite: bool,
    /// Take ownership of fields set by other field managers
    #[arg(long)]
    force_conflicts: bool,
    #[command(flatten)]
    pub(super) connect: ConnectArgs,
}

pub(super) async fn run(cluster: &Cluster, args: &SetArgs) -> Result<(), Failure> {
    let (tag, revision) = (args.tag.as_str(), args.revision.as_str());
    let found = configurations(cluster).await?;
    let own = validate(&found, args).map_err(|message| Failure::findings(vec![message]))?;
    let before = of_tag(&found, tag);
    // Namespaces without labels go to the default injector, whichever revision that is.
    let by_default = [of_revision(&found, DEFAULT), of_tag(&found, DEFAULT)]
        .into_iter()
        .flatten()
        .any(existing::enables_namespaces_by_default);
    let release = existing::release_for_tag(own, tag, by_default)?;
    let objects = with_refs(objects_of_tag(release.objects()?, tag))?;
    let configuration = objects.iter().find(|(what, _)| what.kind == CONFIGURATION);

    // Before the tag moves: pods would be rejected until the webhook has written a CA that the API server does not know yet.
    if let (Some((what, object)), Some(before)) = (configuration, before) {
        apply_ca_bundle(cluster, what, object, &[before, own]).await?;
    }
    let options = ApplyOptions { dry_run: false, force: args.force_conflicts };
    let mut tag_result = ApplyResult::Unchanged;
    for (what, object) in &objects {
        let result = cluster.apply(what, object, options).await?;
        if what.kind == CONFIGURATION {
            tag_result = result;
            if before.is_none() {
                apply_ca_bundle(cluster, what, object, &[own]).await?;
            }
        }
        print_line(&format!("{what} {result}"))?;
    }
    reconcile_default(cluster).await?;
    let done = if tag_result == ApplyResult::Created { "created" } else { "set" };
    print_line(&format!("tag {tag} {done}: namespaces labelled {REVISION_LABEL}={tag} use revision {revision}"))
}

/// Returns the configuration of the revision, or why the tag cannot point to it.
fn validate<'a>(found: &'a [Value], args: &SetArgs) -> Result<&'a Value, String> {
    let (tag, revision) = (args.tag.as_str(), args.revision.as_str());
    let Some(own) = of_revision(found, revision) else {
        let revisions = found.iter().filter(|object| label(object, OWNER_TAG_LABEL).is_none());
        let revisions: Vec<&str> = revisions.filter_map(|object| label(object, OWNER_REVISION_LABEL)).collect();
        let revisions = join_names(&revisions);
        return Err(format!("revision {revision} is not installed in this cluster; revisions: {revisions}"));
    };
    if tag != DEFAULT && of_revision(found, tag).is_some() {
        return Err(format!("tag {tag} has the name of an existing revision"));
    }
    if tag == revision {
        return Err(format!("tag {tag} has the name of its revision"));
    }
    let other = of_tag(found, tag).and_then(|object| label(object, OWNER_REVISION_LABEL));
    match other.filter(|other| *other != revision) {
        Some(other) if !args.overwrite => {
            Err(format!("tag {tag} points to revision {other}; pass --overwrite to move it to {revision}"))
        }
        _ => Ok(own),
    }
}

/// Copies the CA bundles of configurations into another one, as the webhook would write them. cert-manager writes its own.
async fn apply_ca_bundle(cluster: &Cluster, what: &ObjectRef, object: &Value, from: &[&Value]) -> Result<(), Failure> {
    let Some(bundle) = existing::joined_ca_bundle(from) else { return Ok(()) };
    if object.pointer("/metadata/annotations/cert-manager.io~1inject-ca-from").is_some() {
        return Ok(());
    }
    let entries = object["webhooks"].as_array().into_iter().flatten();
    let entries = entries.map(|entry| json!({"name": entry["name"], "clientConfig": {"caBundle": bundle}}));
    // Only webhooks that exist: one with nothing but a bundle would be invalid.
    let current = cluster.object(what).await?.unwrap_or_default();
    let exists = |entry: &Value| {
        current["webhooks"].as_array().into_iter().flatten().any(|other| other["name"] == entry["name"])
    };
    let fields = json!({
        "apiVersion": object["apiVersion"],
        "kind": object["kind"],
        "metadata": {"name": object["metadata"]["name"]},
        "webhooks": entries.filter(exists).collect::<Vec<_>>(),
    });
    cluster.apply_with_manager(WEBHOOK_MANAGER, what, &fields).await
}
