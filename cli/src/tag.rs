//! `weir tag`: names that point to a revision, so that namespaces keep their label when the revision changes.
//!
//! ```text
//! TAG, revision ──▶ webhook configuration of the revision, as it is in the cluster ──chart──▶ that of the tag, and permission to write its caBundle
//! ```

mod existing;
mod list;
mod remove;
mod set;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use weir_injector::selection::configurations::OWNER_TAG_LABEL;

use crate::chart::{ChartArgs, is_dns_label, to_yaml_stream};
use crate::failure::Failure;
use crate::files;
use crate::revisions::label;

/// Timeout of one command.
const TIMEOUT: Duration = Duration::from_mins(1);
/// Timeout of a command that may wait for a confirmation.
const CONFIRM_TIMEOUT: Duration = Duration::from_mins(10);

/// Options of `weir tag`.
#[derive(Debug, Args)]
pub(crate) struct TagArgs {
    #[command(subcommand)]
    command: TagCommand,
}

#[derive(Debug, Subcommand)]
enum TagCommand {
    /// Point a tag to a revision
    #[command(after_long_help = "\
Examples:
  weir tag set prod --revision 1-0
  weir tag set prod --revision 1-1 --overwrite
  weir tag set default --revision 1-1

Exit status: 0 done, 1 the tag or an object was rejected, 2 wrong usage or the cluster is unreachable.")]
    Set(set::SetArgs),
    /// Print the objects of a tag, without a cluster
    #[command(after_long_help = "\
Example:
  weir tag generate prod --revision 1-0 | kubectl apply -f -

Exit status: 0 done, 1 a setting is invalid, 2 wrong usage.")]
    Generate(GenerateArgs),
    /// List the tags, their revisions and the namespaces that use them
    #[command(after_long_help = "\
Examples:
  weir tag list
  weir tag list -o json

Exit status: 0 done, 1 the cluster rejected a request, 2 wrong usage or the cluster is unreachable.")]
    List(list::ListArgs),
    /// Remove a tag
    #[command(after_long_help = "\
Examples:
  weir tag remove prod
  weir tag remove prod -y

Exit status: 0 done, 1 the cluster rejected a request, 2 wrong usage or the cluster is unreachable.")]
    Remove(remove::RemoveArgs),
}

#[derive(Debug, Args)]
struct GenerateArgs {
    /// Name of the tag
    #[arg(value_parser = tag_name)]
    tag: String,
    #[command(flatten)]
    settings: ChartArgs,
}

fn tag_name(text: &str) -> Result<String, String> {
    if is_dns_label(text) && text.len() <= 40 {
        Ok(text.to_owned())
    } else {
        Err("a tag has at most 40 lower-case letters, digits and hyphens, without a hyphen at either end".to_owned())
    }
}

/// Runs `weir tag`.
///
/// # Errors
/// The tag or an object is rejected, or the cluster is unreachable.
pub(crate) fn run(args: &TagArgs) -> Result<ExitCode, Failure> {
    match &args.command {
        TagCommand::Set(args) => args.connect.run(TIMEOUT, async |cluster| set::run(&cluster, args).await)?,
        TagCommand::Generate(args) => generate(args)?,
        TagCommand::List(args) => args.connect.run(TIMEOUT, async |cluster| list::run(&cluster, args).await)?,
        TagCommand::Remove(args) => {
            args.connect.run(CONFIRM_TIMEOUT, async |cluster| remove::run(&cluster, args).await)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn generate(args: &GenerateArgs) -> Result<(), Failure> {
    let release = args.settings.release()?.with_value("/revisionTags", json!([args.tag]));
    let objects = objects_of_tag(release.objects()?, &args.tag);
    if objects.is_empty() {
        return Err(Failure::findings(vec![format!("tag {} has the name of its revision", args.tag)]));
    }
    files::write(None, &to_yaml_stream(&objects)?).map_err(Failure::from)
}

fn objects_of_tag(objects: Vec<Value>, tag: &str) -> Vec<Value> {
    objects.into_iter().filter(|object| label(object, OWNER_TAG_LABEL) == Some(tag)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tag_names_are_dns_labels() {
        assert!(tag_name("prod-stable").is_ok());
        for wrong in ["", "Prod", "a_b", "-a", "a-", &"x".repeat(41)] {
            assert!(tag_name(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn tag_has_a_configuration_and_permission_to_write_its_bundle() {
        let release = ChartArgs::of(&["revision=r1", "revisionTags={prod}"]).release().unwrap();
        let kinds: Vec<String> = objects_of_tag(release.objects().unwrap(), "prod")
            .iter()
            .map(|object| {
                format!("{} {}", object["kind"].as_str().unwrap(), object["metadata"]["name"].as_str().unwrap())
            })
            .collect();
        assert_eq!(
            kinds,
            [
                "ClusterRole weir-revision-tag-prod",
                "ClusterRoleBinding weir-revision-tag-prod",
                "MutatingWebhookConfiguration weir-revision-tag-prod"
            ]
        );
    }
}
