//! `weir tag`: names that stand for a revision, so that namespaces need no other label when the revision behind them changes.
//!
//! ```text
//! TAG, revision ──▶ webhook configuration of the revision, as it is in the cluster ──chart──▶ that of the tag, and the right to keep its CA
//! ```
//!
//! The tag `default` makes a revision the default injector; the one that was it is switched off, and on again when the tag goes.

mod live;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};
use weir_injector::inject::selection::objects::{REVISION_LABEL, TAG_LABEL, switched};
use weir_injector::inject::selection::{INJECTION, REVISION};

use crate::chart::{Release, SettingsArgs, is_label, stream};
use crate::cluster::{Cluster, ConnectArgs, listed};
use crate::failure::Failure;
use crate::files;
use crate::install::{confirmed, named, say};
use crate::objects::{CONFIGURATION, Done, How, NAMESPACE, Ref};

/// Bound of everything that one command asks.
const ALL: Duration = Duration::from_mins(1);
/// The tag that makes a revision the default one, and the name of the revision that has none.
const DEFAULT: &str = "default";
/// Who writes the CA bundle.
const BUNDLE_MANAGER: &str = "weir-webhook";

/// What becomes of tags.
#[derive(Debug, Args)]
pub(crate) struct TagArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Let a tag stand for a revision
    #[command(after_long_help = "\
Examples:
  weir tag set prod --revision 1-0
  weir tag set prod --revision 1-1 --overwrite
  weir tag set default --revision 1-1

Exit status: 0 done, 1 refused, 2 wrong usage or the cluster is not reached.")]
    Set(SetArgs),
    /// Print the objects of a tag, without asking a cluster
    Generate(GenerateArgs),
    /// List the tags, their revisions and the namespaces that use them
    List(ListArgs),
    /// Take a tag away
    Remove(RemoveArgs),
}

#[derive(Debug, Args)]
struct SetArgs {
    /// Name of the tag; `default` makes the revision the default injector
    #[arg(value_parser = tag_name)]
    tag: String,
    /// Revision that it stands for
    #[arg(short, long, value_name = "NAME")]
    revision: String,
    /// Let it stand for another revision than it does
    #[arg(long)]
    overwrite: bool,
    /// Take over fields that others have set to something else
    #[arg(long)]
    force_conflicts: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

#[derive(Debug, Args)]
struct GenerateArgs {
    /// Name of the tag
    #[arg(value_parser = tag_name)]
    tag: String,
    #[command(flatten)]
    settings: SettingsArgs,
}

#[derive(Debug, Args)]
struct ListArgs {
    /// What to print
    #[arg(short, long, value_enum, value_name = "FORM", default_value = "text")]
    output: Form,
    #[command(flatten)]
    connect: ConnectArgs,
}

#[derive(Debug, Args)]
struct RemoveArgs {
    /// Name of the tag
    #[arg(value_parser = tag_name)]
    tag: String,
    /// Do not ask, although namespaces use it
    #[arg(short = 'y', long, alias = "skip-confirmation")]
    yes: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    /// A table
    Text,
    /// A list of objects
    Json,
}

fn tag_name(text: &str) -> Result<String, String> {
    if is_label(text) && text.len() <= 40 {
        Ok(text.to_owned())
    } else {
        Err("a tag has at most 40 lower-case letters, digits and hyphens, the last not at either end".to_owned())
    }
}

/// Carries it out.
///
/// # Errors
/// What is refused, and why.
pub(crate) fn run(args: &TagArgs) -> Result<ExitCode, Failure> {
    match &args.what {
        What::Set(args) => args.connect.ask(ALL, async |cluster| set(&cluster, args).await)?,
        What::Generate(args) => generate(args)?,
        What::List(args) => args.connect.ask(ALL, async |cluster| list(&cluster, args.output).await)?,
        // A person may take their time to answer.
        What::Remove(args) => args.connect.ask(ALL * 10, async |cluster| remove(&cluster, args).await)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// A tag in the cluster.
#[derive(Debug, PartialEq, Eq)]
struct Tag {
    name: String,
    revision: String,
    namespaces: Vec<String>,
}

/// All webhook configurations of Weir.
async fn configurations(cluster: &Cluster) -> Result<Vec<Value>, Failure> {
    let found = cluster.objects(CONFIGURATION, "", REVISION_LABEL).await;
    found.map_err(|refused| cluster.failure("webhook configurations", &refused))
}

fn label<'a>(object: &'a Value, name: &str) -> Option<&'a str> {
    object["metadata"]["labels"][name].as_str()
}

/// The webhook configuration of a revision itself.
fn of_revision<'a>(configurations: &'a [Value], revision: &str) -> Option<&'a Value> {
    let own = |object: &&Value| label(object, TAG_LABEL).is_none() && label(object, REVISION_LABEL) == Some(revision);
    configurations.iter().find(own)
}

fn of_tag<'a>(configurations: &'a [Value], tag: &str) -> Option<&'a Value> {
    configurations.iter().find(|object| label(object, TAG_LABEL) == Some(tag))
}

async fn set(cluster: &Cluster, args: &SetArgs) -> Result<(), Failure> {
    let (tag, revision) = (args.tag.as_str(), args.revision.as_str());
    let found = configurations(cluster).await?;
    let Some(own) = of_revision(&found, revision) else {
        let there = found.iter().filter(|object| label(object, TAG_LABEL).is_none());
        let there: Vec<&str> = there.filter_map(|object| label(object, REVISION_LABEL)).collect();
        return Err(Failure::refused(vec![format!(
            "revision {revision} is not installed in this cluster; it has {}",
            listed(&there)
        )]));
    };
    if tag != DEFAULT && of_revision(&found, tag).is_some() {
        return Err(Failure::refused(vec![format!(
            "tag {tag} would have the name of a revision, which its namespaces mean"
        )]));
    }
    if tag == revision {
        return Err(Failure::refused(vec![format!("revision {revision} needs no tag of its own name")]));
    }
    let before = of_tag(&found, tag);
    let other = before.and_then(|object| label(object, REVISION_LABEL)).filter(|other| *other != revision);
    if let (Some(other), false) = (other, args.overwrite) {
        return Err(Failure::refused(vec![format!(
            "tag {tag} stands for revision {other}; --overwrite lets it stand for {revision}"
        )]));
    }
    // What nobody has labelled goes to the default injector, whichever that is.
    let by_default =
        [of_revision(&found, DEFAULT), of_tag(&found, DEFAULT)].into_iter().flatten().any(live::by_default);
    let release = live::release(own, tag, by_default)?;
    let objects = named(of_one(release.objects()?, tag))?;
    let configuration = objects.iter().find(|(what, _)| what.kind == CONFIGURATION);

    // A CA that the API server does not know yet would stop pods for the moment until the webhook writes it.
    if let (Some((what, object)), Some(before)) = (configuration, before) {
        put_bundle(cluster, what, object, &[before, own]).await?;
    }
    let how = How { dry_run: false, force: args.force_conflicts };
    let mut did = Done::Unchanged;
    for (what, object) in &objects {
        let done = cluster.apply(what, object, how).await.map_err(|refused| cluster.failure(what, &refused))?;
        if what.kind == CONFIGURATION {
            did = done;
            if before.is_none() {
                put_bundle(cluster, what, object, &[own]).await?;
            }
        }
        say(&format!("{what} {done}"))?;
    }
    settle_default(cluster).await?;
    let did = if did == Done::Created { "made" } else { "set" };
    say(&format!("tag {tag} is {did}: namespaces labelled {REVISION}={tag} go to revision {revision}"))
}

/// Writes the CA bundles of some configurations into another one, as the webhook does. One that cert-manager writes is left to it.
async fn put_bundle(cluster: &Cluster, what: &Ref, object: &Value, from: &[&Value]) -> Result<(), Failure> {
    let Some(bundle) = live::bundle(from) else { return Ok(()) };
    if object.pointer("/metadata/annotations/cert-manager.io~1inject-ca-from").is_some() {
        return Ok(());
    }
    let entries = object["webhooks"].as_array().into_iter().flatten();
    let entries: Vec<Value> =
        entries.map(|entry| json!({"name": entry["name"], "clientConfig": {"caBundle": bundle}})).collect();
    // Only entries that are there: of others the API server would know nothing but the bundle, and refuse them.
    let there = cluster.object(what).await.map_err(|refused| cluster.failure(what, &refused))?;
    let there = there.unwrap_or_default();
    let known =
        |entry: &Value| there["webhooks"].as_array().into_iter().flatten().any(|other| other["name"] == entry["name"]);
    let fields = json!({
        "apiVersion": object["apiVersion"],
        "kind": object["kind"],
        "metadata": {"name": object["metadata"]["name"]},
        "webhooks": entries.into_iter().filter(known).collect::<Vec<_>>(),
    });
    cluster.apply_as(BUNDLE_MANAGER, what, &fields).await.map_err(|refused| cluster.failure(what, &refused))
}

/// Switches the default revision off where the tag `default` stands for another, and on where it does not.
///
/// # Errors
/// The cluster refuses.
pub(crate) async fn settle_default(cluster: &Cluster) -> Result<(), Failure> {
    let found = configurations(cluster).await?;
    let off = of_tag(&found, DEFAULT).is_some_and(|object| label(object, REVISION_LABEL) != Some(DEFAULT));
    let Some(changed) = of_revision(&found, DEFAULT).and_then(|own| switched(own, off)) else { return Ok(()) };
    let what = Ref::new(CONFIGURATION, "", changed["metadata"]["name"].as_str().unwrap_or_default());
    let fields = live::fields(&changed);
    let how = How { dry_run: false, force: true };
    let done = cluster.apply(&what, &fields, how).await.map_err(|refused| cluster.failure(&what, &refused))?;
    let now = if off { "off: another revision is the default one" } else { "on: it is the default one again" };
    say(&format!("{what} {done}, and {now}"))
}

fn generate(args: &GenerateArgs) -> Result<(), Failure> {
    let release = args.settings.release()?.with("/revisionTags", json!([args.tag]));
    let objects = of_one(release.objects()?, &args.tag);
    if objects.is_empty() {
        return Err(Failure::refused(vec![format!("revision {} needs no tag of its own name", release.revision())]));
    }
    files::write(None, &stream(&objects)?).map_err(Failure::from)
}

/// The objects of one tag.
fn of_one(objects: Vec<Value>, tag: &str) -> Vec<Value> {
    objects.into_iter().filter(|object| label(object, TAG_LABEL) == Some(tag)).collect()
}

/// The tags of a cluster, with the namespaces that use them.
async fn tags(cluster: &Cluster) -> Result<Vec<Tag>, Failure> {
    let found = configurations(cluster).await?;
    let namespaces = cluster.objects(NAMESPACE, "", "").await;
    let namespaces = namespaces.map_err(|refused| cluster.failure("namespaces", &refused))?;
    let tags = found.iter().filter_map(|object| {
        let name = label(object, TAG_LABEL)?;
        let uses = |namespace: &&Value| {
            let injection = label(namespace, INJECTION);
            match injection {
                Some(value) => name == DEFAULT && value == "enabled",
                None => label(namespace, REVISION) == Some(name),
            }
        };
        let namespaces = namespaces.iter().filter(uses).filter_map(|namespace| namespace["metadata"]["name"].as_str());
        let (name, revision) = (name.to_owned(), label(object, REVISION_LABEL)?.to_owned());
        Some((name.clone(), Tag { name, revision, namespaces: namespaces.map(str::to_owned).collect() }))
    });
    Ok(tags.collect::<BTreeMap<_, _>>().into_values().collect())
}

async fn list(cluster: &Cluster, form: Form) -> Result<(), Failure> {
    let tags = tags(cluster).await?;
    files::write(None, &listing(&tags, form)).map_err(Failure::from)
}

fn listing(tags: &[Tag], form: Form) -> String {
    if form == Form::Json {
        let objects = tags
            .iter()
            .map(|tag| json!({"tag": tag.name, "revision": tag.revision, "namespaces": tag.namespaces}))
            .collect::<Value>();
        return format!("{objects:#}\n");
    }
    if tags.is_empty() {
        return "there are no tags\n".to_owned();
    }
    let width =
        |of: fn(&Tag) -> &str, title: &str| tags.iter().map(|tag| of(tag).len()).max().unwrap_or(0).max(title.len());
    let (first, second) = (width(|tag| &tag.name, "TAG"), width(|tag| &tag.revision, "REVISION"));
    let mut text = format!("{:first$}  {:second$}  NAMESPACES\n", "TAG", "REVISION");
    for tag in tags {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{:first$}  {:second$}  {}", tag.name, tag.revision, tag.namespaces.join(","));
    }
    text
}

async fn remove(cluster: &Cluster, args: &RemoveArgs) -> Result<(), Failure> {
    let all = tags(cluster).await?;
    let Some(tag) = all.iter().find(|tag| tag.name == args.tag) else {
        let names: Vec<&str> = all.iter().map(|tag| tag.name.as_str()).collect();
        return Err(Failure::refused(vec![format!("there is no tag {}; there are {}", args.tag, listed(&names))]));
    };
    if !tag.namespaces.is_empty() {
        let names = tag.namespaces.join(", ");
        let question =
            format!("Namespaces use tag {}: {names}. New pods in them will get no sidecar. Remove it?", tag.name);
        confirmed(&question, args.yes)?;
    }
    let made = Release::new(
        weir_injector::inject::selection::objects::NAMESPACE.to_owned(),
        live::values(&tag.revision, &tag.name)?,
    )?;
    let mut objects = named(of_one(made.objects()?, &tag.name))?;
    // What sends pods goes first.
    objects.reverse();
    for (what, _) in &objects {
        let gone = cluster.delete(what).await.map_err(|refused| cluster.failure(what, &refused))?;
        if gone {
            say(&format!("{what} deleted"))?;
        }
    }
    settle_default(cluster).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_listed_with_the_namespaces_that_use_them() {
        let tags = [
            Tag {
                name: "default".to_owned(),
                revision: "r1".to_owned(),
                namespaces: vec!["a".to_owned(), "b".to_owned()],
            },
            Tag { name: "x".to_owned(), revision: "a-long-revision".to_owned(), namespaces: Vec::new() },
        ];
        assert_eq!(
            listing(&tags, Form::Text),
            "TAG      REVISION         NAMESPACES\ndefault  r1               a,b\nx        a-long-revision  \n"
        );
        let json: Value = serde_json::from_str(&listing(&tags, Form::Json)).unwrap();
        assert_eq!(json[0], json!({"tag": "default", "revision": "r1", "namespaces": ["a", "b"]}));
    }

    #[test]
    fn names_of_tags_are_labels() {
        assert!(tag_name("prod-stable").is_ok());
        for wrong in ["", "Prod", "a_b", "-a", "a-", &"x".repeat(41)] {
            assert!(tag_name(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_tag_brings_its_configuration_and_the_right_to_keep_its_bundle() {
        let release = SettingsArgs::of(&["revision=r1", "revisionTags={prod}"]).release().unwrap();
        let kinds: Vec<String> = of_one(release.objects().unwrap(), "prod")
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
