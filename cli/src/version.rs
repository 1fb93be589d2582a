//! `weir version`: the version of this program, and of the components in a cluster.

use std::fmt::{self, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};
use weir_injector::selection::configurations::OWNER_REVISION_LABEL;

use crate::cluster::{Cluster, ConnectArgs};
use crate::failure::Failure;
use crate::files;
use crate::objects::{DAEMON_SET, DEPLOYMENT};
use crate::output::OutputFormat;
use crate::revisions::label;

const TIMEOUT: Duration = Duration::from_secs(30);

/// Options of `weir version`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  weir version
  weir version --remote
  weir version --context prod -o json

Exit status: 0 done, 1 the cluster rejected a request, 2 wrong usage or the cluster is unreachable.")]
pub(crate) struct VersionArgs {
    /// Print the versions of the components in the cluster too; implied by --kubeconfig and --context
    #[arg(long)]
    remote: bool,

    /// Output format
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t = OutputFormat::Text)]
    output: OutputFormat,

    #[command(flatten)]
    connect: ConnectArgs,
}

/// A webhook or agent in a cluster.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Component {
    name: &'static str,
    /// Empty for the agent, which has none.
    revision: String,
    image: String,
    ready: i64,
    wanted: i64,
}

impl Component {
    /// Reads a workload; `ready` and `wanted` are JSON pointers to its numbers of pods.
    fn of(name: &'static str, workload: &Value, ready: &str, wanted: &str) -> Self {
        let number = |path: &str| workload.pointer(path).and_then(Value::as_i64).unwrap_or(0);
        let image = workload.pointer("/spec/template/spec/containers/0/image").and_then(Value::as_str);
        Self {
            name,
            revision: label(workload, OWNER_REVISION_LABEL).unwrap_or_default().to_owned(),
            image: image.unwrap_or_default().to_owned(),
            ready: number(ready),
            wanted: number(wanted),
        }
    }
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let separator = if self.revision.is_empty() { "" } else { " " };
        let Self { name, revision, image, ready, wanted } = self;
        write!(f, "{name}{separator}{revision}: {image} ({ready} of {wanted} ready)")
    }
}

/// Runs `weir version`.
///
/// # Errors
/// The cluster is unreachable or rejects a request.
pub(crate) fn run(args: &VersionArgs) -> Result<ExitCode, Failure> {
    let components = if args.remote || args.connect.is_given() {
        Some(args.connect.run(TIMEOUT, async |cluster| components(&cluster).await)?)
    } else {
        None
    };
    files::write(None, &print(components.as_deref(), args.output))?;
    Ok(ExitCode::SUCCESS)
}

/// Returns webhooks and agents of a cluster.
///
/// # Errors
/// The cluster rejects a request.
pub(crate) async fn components(cluster: &Cluster) -> Result<Vec<Component>, Failure> {
    let (webhooks, agents) = tokio::try_join!(
        cluster.objects(DEPLOYMENT, "", "app.kubernetes.io/name=weir-webhook"),
        cluster.objects(DAEMON_SET, "", "app.kubernetes.io/name=weir-agent"),
    )?;
    let webhooks =
        webhooks.iter().map(|object| Component::of("webhook", object, "/status/readyReplicas", "/spec/replicas"));
    let agents = agents
        .iter()
        .map(|object| Component::of("agent", object, "/status/numberReady", "/status/desiredNumberScheduled"));
    Ok(webhooks.chain(agents).collect())
}

fn print(components: Option<&[Component]>, format: OutputFormat) -> String {
    const CLIENT: &str = env!("CARGO_PKG_VERSION");
    if format == OutputFormat::Json {
        let mut document = json!({"client": CLIENT});
        if let Some(components) = components {
            let object = |it: &Component| json!({"what": it.name, "revision": it.revision, "image": it.image, "ready": it.ready, "wanted": it.wanted});
            document["cluster"] = components.iter().map(object).collect();
        }
        return format!("{document:#}\n");
    }
    let mut text = format!("weir {CLIENT}\n");
    for it in components.unwrap_or_default() {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{it}");
    }
    if components.is_some_and(<[_]>::is_empty) {
        text.push_str("Weir is not installed in this cluster\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_are_printed_with_image_and_ready_pods() {
        let components = [
            Component { name: "webhook", revision: "r1".to_owned(), image: "w:2".to_owned(), ready: 1, wanted: 2 },
            Component { name: "agent", revision: String::new(), image: "a:2".to_owned(), ready: 3, wanted: 3 },
        ];
        let text = print(Some(&components), OutputFormat::Text);
        assert!(text.ends_with("\nwebhook r1: w:2 (1 of 2 ready)\nagent: a:2 (3 of 3 ready)\n"), "{text}");
        let json: Value = serde_json::from_str(&print(Some(&components), OutputFormat::Json)).unwrap();
        assert_eq!(json["cluster"][0]["revision"], "r1");
        assert_eq!(print(None, OutputFormat::Text).lines().count(), 1);
    }
}
