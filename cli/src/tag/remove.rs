//! `weir tag remove`: removes a tag.

use clap::Args;
use weir_injector::selection::configurations::WEBHOOK_NAMESPACE;

use super::list::tags;
use super::{existing, objects_of_tag};
use crate::chart::Release;
use crate::cluster::{Cluster, ConnectArgs, join_names};
use crate::console::confirm;
use crate::failure::Failure;
use crate::objects::with_refs;
use crate::revisions::reconcile_default;

/// Options of `weir tag remove`.
#[derive(Debug, Args)]
pub(super) struct RemoveArgs {
    /// Name of the tag
    #[arg(value_parser = super::tag_name)]
    tag: String,
    /// Skip the confirmation
    #[arg(short = 'y', long, alias = "skip-confirmation")]
    yes: bool,
    #[command(flatten)]
    pub(super) connect: ConnectArgs,
}

pub(super) async fn run(cluster: &Cluster, args: &RemoveArgs) -> Result<(), Failure> {
    let all = tags(cluster).await?;
    let Some(tag) = all.iter().find(|tag| tag.name == args.tag) else {
        let names: Vec<&str> = all.iter().map(|tag| tag.name.as_str()).collect();
        return Err(Failure::findings(vec![format!("tag {} not found; tags: {}", args.tag, join_names(&names))]));
    };
    if !tag.namespaces.is_empty() {
        let namespaces = tag.namespaces.join(", ");
        let question =
            format!("Namespaces use tag {}: {namespaces}. New pods in them get no sidecar. Remove it?", tag.name);
        confirm(&question, args.yes)?;
    }
    let release = Release::new(WEBHOOK_NAMESPACE.to_owned(), existing::values(&tag.revision, &tag.name)?)?;
    let objects = with_refs(objects_of_tag(release.objects()?, &tag.name))?;
    // The webhook configuration, which is applied last, is deleted first.
    cluster.delete_all(objects.into_iter().rev().map(|(what, _)| what)).await?;
    reconcile_default(cluster).await
}
