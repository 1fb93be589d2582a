//! `weir tag list`: the tags of a cluster, with their revisions and namespaces.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use clap::Args;
use serde_json::{Value, json};
use weir_injector::selection::configurations::{OWNER_REVISION_LABEL, OWNER_TAG_LABEL};
use weir_injector::selection::{INJECTION_LABEL, REVISION_LABEL};

use crate::cluster::{Cluster, ConnectArgs};
use crate::failure::Failure;
use crate::files;
use crate::objects::NAMESPACE;
use crate::output::OutputFormat;
use crate::revisions::{DEFAULT, configurations, label};

/// Options of `weir tag list`.
#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// Output format
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t = OutputFormat::Text)]
    output: OutputFormat,
    #[command(flatten)]
    pub(super) connect: ConnectArgs,
}

/// A tag in a cluster.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Tag {
    pub(super) name: String,
    pub(super) revision: String,
    /// Namespaces that use the tag.
    pub(super) namespaces: Vec<String>,
}

pub(super) async fn run(cluster: &Cluster, args: &ListArgs) -> Result<(), Failure> {
    let tags = tags(cluster).await?;
    files::write(None, &print(&tags, args.output)).map_err(Failure::from)
}

/// Returns the tags of a cluster, by name.
pub(super) async fn tags(cluster: &Cluster) -> Result<Vec<Tag>, Failure> {
    let found = configurations(cluster).await?;
    let namespaces = cluster.objects(NAMESPACE, "", "").await?;
    let tags = found.iter().filter_map(|object| {
        let (name, revision) = (label(object, OWNER_TAG_LABEL)?, label(object, OWNER_REVISION_LABEL)?);
        let uses = |namespace: &&Value| match label(namespace, INJECTION_LABEL) {
            Some(value) => name == DEFAULT && value == "enabled",
            None => label(namespace, REVISION_LABEL) == Some(name),
        };
        let namespaces = namespaces.iter().filter(uses).filter_map(|namespace| namespace["metadata"]["name"].as_str());
        let namespaces = namespaces.map(str::to_owned).collect();
        Some((name, Tag { name: name.to_owned(), revision: revision.to_owned(), namespaces }))
    });
    Ok(tags.collect::<BTreeMap<_, _>>().into_values().collect())
}

fn print(tags: &[Tag], format: OutputFormat) -> String {
    if format == OutputFormat::Json {
        let object = |tag: &Tag| json!({"tag": tag.name, "revision": tag.revision, "namespaces": tag.namespaces});
        return format!("{:#}\n", tags.iter().map(object).collect::<Value>());
    }
    if tags.is_empty() {
        return "no tags found\n".to_owned();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_listed_with_the_namespaces_that_use_them() {
        let tag = |name: &str, revision: &str, namespaces: &[&str]| Tag {
            name: name.to_owned(),
            revision: revision.to_owned(),
            namespaces: namespaces.iter().map(|&name| name.to_owned()).collect(),
        };
        let tags = [tag("default", "r1", &["a", "b"]), tag("x", "a-long-revision", &[])];
        assert_eq!(
            print(&tags, OutputFormat::Text),
            "TAG      REVISION         NAMESPACES\ndefault  r1               a,b\nx        a-long-revision  \n"
        );
        let json: Value = serde_json::from_str(&print(&tags, OutputFormat::Json)).unwrap();
        assert_eq!(json[0], json!({"tag": "default", "revision": "r1", "namespaces": ["a", "b"]}));
    }
}
