//! `weir check node`: the meshed pods on a node and the state of their capture rules, as the node's agent reports them.

use std::fmt::Write as _;
use std::process::ExitCode;

use clap::Args;
use weir_check::agent::{AgentPod, AgentPods};

use crate::agent::{AgentArgs, AgentTarget};
use crate::cluster::ConnectArgs;
use crate::completion::objects;
use crate::failure::{Failure, exit};
use crate::files;
use crate::output::OutputFormat;

/// Options of `weir check node`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Finds the node's agent in the cluster, and forwards its port.

Examples:
  weir check node worker-1
  weir check node pod/web-7c9f -n shop              # the node of a pod
  weir check node -A

Exit status: 0 done, 1 pods lack capture rules, or an agent does not know its pods, 2 wrong usage or an agent is unreachable.")]
pub(super) struct NodeArgs {
    /// Check this node, or the node of pod/NAME
    #[arg(value_name = "NODE|pod/NAME", add = objects::nodes_and_pods(), conflicts_with_all = ["all", "agent_url"])]
    subject: Option<String>,

    /// Check every node
    #[arg(short = 'A', long = "all-nodes", conflicts_with = "agent_url")]
    all: bool,

    /// Namespace of the pod
    #[arg(short, long, value_name = "NAMESPACE", default_value = "default", add = objects::namespaces())]
    namespace: String,

    #[command(flatten)]
    connect: ConnectArgs,

    #[command(flatten)]
    agent: AgentArgs,

    /// Output format
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t = OutputFormat::Text)]
    output: OutputFormat,
}

/// Runs `weir check node`.
///
/// # Errors
/// An agent cannot be found or reached.
pub(super) fn run(args: &NodeArgs) -> Result<ExitCode, Failure> {
    let answers = match args.target() {
        Some(target) => args.agent.fetch_from_cluster(&args.connect, &target)?,
        None => match args.agent.fetch_direct(&args.connect) {
            Some(answer) => vec![answer?],
            None => return Err(Failure::usage("name a node or pod/NAME, or pass -A or --agent-url")),
        },
    };
    let text = match args.output {
        OutputFormat::Text => answers.iter().map(|(pods, _)| table(pods)).collect::<Vec<_>>().join("\n"),
        OutputFormat::Json if args.all => {
            format!("[{}]\n", answers.iter().map(|(_, json)| json.trim()).collect::<Vec<_>>().join(",\n"))
        }
        OutputFormat::Json => answers.iter().map(|(_, json)| json.as_str()).collect(),
    };
    files::write(None, &text)?;
    Ok(if answers.iter().all(|(pods, _)| is_healthy(pods)) {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(exit::FINDINGS)
    })
}

impl NodeArgs {
    fn target(&self) -> Option<AgentTarget> {
        if self.all {
            return Some(AgentTarget::All);
        }
        let subject = self.subject.as_deref()?;
        Some(match subject.strip_prefix("pod/").or_else(|| subject.strip_prefix("pods/")) {
            Some(name) => AgentTarget::PodNode { namespace: self.namespace.clone(), name: name.to_owned() },
            None => AgentTarget::Node(subject.strip_prefix("node/").unwrap_or(subject).to_owned()),
        })
    }
}

fn is_healthy(agent: &AgentPods) -> bool {
    agent.synced && !agent.pods.iter().any(AgentPod::is_unhealthy)
}

fn table(agent: &AgentPods) -> String {
    let mut text = String::new();
    let width = agent.pods.iter().map(|pod| pod.namespace.len() + pod.name.len() + 1).max().unwrap_or(0).max(3);
    // Writing to a string does not fail.
    if !agent.pods.is_empty() {
        let _ = writeln!(text, "{:width$}  {:11}  {:7}  DETAIL", "POD", "STATE", "REPAIRS");
    }
    for pod in &agent.pods {
        let name = format!("{}/{}", pod.namespace, pod.name);
        let changed = pod.annotations_changed.then_some("capture annotations changed since its start; recreate it");
        let detail = changed.into_iter().chain(pod.detail.iter().map(String::as_str)).collect::<Vec<_>>().join("; ");
        let line = format!("{name:width$}  {:11}  {:7}  {detail}", pod.state, pod.repairs);
        let _ = writeln!(text, "{}", line.trim_end());
    }
    let node = if agent.node.is_empty() { "(unknown)" } else { &agent.node };
    let unhealthy = agent.pods.iter().filter(|pod| pod.is_unhealthy()).count();
    let _ = writeln!(text, "node {node}: {unhealthy} of {} meshed pods lack capture rules", agent.pods.len());
    if let Some(error) = &agent.last_error {
        let _ = writeln!(text, "the agent's pod cache is not up to date: {error}");
    }
    if !agent.synced {
        let _ = writeln!(text, "the agent's pod cache is not synced");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(json: &str) -> AgentPods {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn table_shows_state_and_detail() {
        let agent = agent(
            r#"{"node":"n1","synced":true,"ageSeconds":1,"repairs":false,"pods":[
                {"namespace":"shop","name":"web-1","uid":"1","state":"ok","foundBy":"plugin","repairs":2},
                {"namespace":"shop","name":"db","uid":"2","state":"drifted","detail":["rule 3 differs","x"],"repairs":0}]}"#,
        );
        assert!(!is_healthy(&agent));
        insta::assert_snapshot!(table(&agent), @r"
        POD         STATE        REPAIRS  DETAIL
        shop/web-1  ok                 2
        shop/db     drifted            0  rule 3 differs; x
        node n1: 1 of 2 meshed pods lack capture rules
        ");
    }

    #[test]
    fn an_agent_without_a_synced_cache_is_unhealthy() {
        let unsynced = agent(r#"{"node":"","synced":false,"trouble":"401 Unauthorized","pods":[]}"#);
        assert!(!is_healthy(&unsynced));
        insta::assert_snapshot!(table(&unsynced), @r"
        node (unknown): 0 of 0 meshed pods lack capture rules
        the agent's pod cache is not up to date: 401 Unauthorized
        the agent's pod cache is not synced
        ");
        let pending = r#"{"node":"n","synced":true,"pods":[{"namespace":"a","name":"b","state":"pending"}]}"#;
        assert!(is_healthy(&agent(pending)));
    }
}
