//! `weir version`: this binary's, and those of what runs in a cluster.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use weir_injector::inject::selection::objects::REVISION_LABEL;

use crate::cluster::{Cluster, ConnectArgs};
use crate::failure::Failure;
use crate::files;
use crate::objects::{DAEMON_SET, DEPLOYMENT, Kind};

/// Bound of everything that is asked.
const ALL: Duration = Duration::from_secs(30);

/// Whose versions, and how they are printed.
#[derive(Debug, Args)]
pub(crate) struct VersionArgs {
    /// Ask the cluster too (so do --kubeconfig and --context)
    #[arg(long)]
    remote: bool,

    /// What to print
    #[arg(short, long, value_enum, value_name = "FORM", default_value = "text")]
    output: Form,

    #[command(flatten)]
    connect: ConnectArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    /// For people
    Text,
    /// One object
    Json,
}

/// Something that runs in a cluster.
#[derive(Debug, PartialEq, Eq)]
struct Running {
    what: &'static str,
    /// Empty for the agent, which has none.
    revision: String,
    image: String,
    ready: i64,
    wanted: i64,
}

/// Carries it out.
///
/// # Errors
/// The cluster is not reached, or refuses.
pub(crate) fn run(args: &VersionArgs) -> Result<ExitCode, Failure> {
    let running = if args.remote || args.connect.any() {
        Some(args.connect.ask(ALL, async |cluster| running(&cluster).await)?)
    } else {
        None
    };
    files::write(None, &report(running.as_deref(), args.output))?;
    Ok(ExitCode::SUCCESS)
}

async fn running(cluster: &Cluster) -> Result<Vec<Running>, Failure> {
    let found = async |kind: Kind, name: &str| {
        let labels = format!("app.kubernetes.io/name={name}");
        cluster.objects(kind, "", &labels).await.map_err(|refused| cluster.failure(&labels, &refused))
    };
    let (webhooks, agents) = tokio::join!(found(DEPLOYMENT, "weir-webhook"), found(DAEMON_SET, "weir-agent"));
    let of = |what: &'static str, object: &Value, ready: &str, wanted: &str| {
        let number = |path: &str| object.pointer(path).and_then(Value::as_i64).unwrap_or(0);
        let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_owned();
        Running {
            what,
            revision: text(object["metadata"]["labels"].get(REVISION_LABEL)),
            image: text(object.pointer("/spec/template/spec/containers/0/image")),
            ready: number(ready),
            wanted: number(wanted),
        }
    };
    let webhooks = webhooks?;
    let webhooks = webhooks.iter().map(|object| of("webhook", object, "/status/readyReplicas", "/spec/replicas"));
    let agents = agents?;
    let agents =
        agents.iter().map(|object| of("agent", object, "/status/numberReady", "/status/desiredNumberScheduled"));
    Ok(webhooks.chain(agents).collect())
}

fn report(running: Option<&[Running]>, form: Form) -> String {
    const CLIENT: &str = env!("CARGO_PKG_VERSION");
    if form == Form::Json {
        let mut all = json!({"client": CLIENT});
        if let Some(running) = running {
            let object = |it: &Running| json!({"what": it.what, "revision": it.revision, "image": it.image, "ready": it.ready, "wanted": it.wanted});
            all["cluster"] = running.iter().map(object).collect();
        }
        return format!("{all:#}\n");
    }
    let mut text = format!("weir {CLIENT}\n");
    for it in running.unwrap_or_default() {
        let what = if it.revision.is_empty() { it.what.to_owned() } else { format!("{} {}", it.what, it.revision) };
        // Writing to a string does not fail.
        let _ = writeln!(text, "{what}: {} ({} of {} ready)", it.image, it.ready, it.wanted);
    }
    if running.is_some_and(<[_]>::is_empty) {
        text.push_str("nothing of it is installed in the cluster\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_those_of_the_images_that_run() {
        let running = [
            Running { what: "webhook", revision: "r1".to_owned(), image: "w:2".to_owned(), ready: 1, wanted: 2 },
            Running { what: "agent", revision: String::new(), image: "a:2".to_owned(), ready: 3, wanted: 3 },
        ];
        let text = report(Some(&running), Form::Text);
        assert!(text.ends_with("\nwebhook r1: w:2 (1 of 2 ready)\nagent: a:2 (3 of 3 ready)\n"), "{text}");
        let json: Value = serde_json::from_str(&report(Some(&running), Form::Json)).unwrap();
        assert_eq!(json["cluster"][0]["revision"], "r1");
        assert_eq!(report(None, Form::Text).lines().count(), 1);
    }
}
