//! Requests to the monitoring port of a node's agent, which lists pods on its node's loopback only.
//!
//! ```text
//! --agent-url ─────────────────────────────▶ HTTP
//! node or pod ─▶ agent of the node (cluster) ─▶ port-forward ─▶ HTTP
//! ```

mod forward;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use serde::Deserialize;
use serde_json::Value;
use weir_check::agent::AgentPods;

use crate::cluster::{Cluster, ConnectArgs};
use crate::failure::Failure;
use crate::objects::{ObjectRef, POD};

const TIMEOUT: Duration = Duration::from_secs(10);
/// Limit for finding and asking every agent.
const CLUSTER_TIMEOUT: Duration = Duration::from_mins(1);
/// The monitoring port of the manifests, on the node itself.
const LOCAL_URL: &str = "http://127.0.0.1:15034";

/// Options for the connection to an agent.
#[derive(Debug, Args)]
pub(crate) struct AgentArgs {
    /// Ask the agent at this monitoring port, instead of finding it in the cluster [default on a node without a kubeconfig: http://127.0.0.1:15034]
    #[arg(long, value_name = "URL")]
    agent_url: Option<String>,

    /// Namespace of the node agents
    #[arg(long, value_name = "NAMESPACE", default_value = "weir-node")]
    node_namespace: String,
}

/// Whose agents are asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum AgentTarget {
    /// The agent of a node.
    Node(String),
    /// The agent of the node that a pod is on.
    PodNode { namespace: String, name: String },
    /// All agents.
    All,
}

/// The answer of an agent, parsed and as JSON.
pub(crate) type AgentAnswer = (AgentPods, String);

impl AgentArgs {
    /// Asks the agent at `--agent-url`, or on this node if there is neither that option nor a cluster to look in.
    ///
    /// # Errors
    /// The agent cannot be reached, responds with an error, or with something else.
    pub(crate) fn fetch_direct(&self, connect: &ConnectArgs) -> Option<Result<AgentAnswer, Failure>> {
        match &self.agent_url {
            Some(url) => Some(fetch(url)),
            None if !connect.is_given() && !connect.finds_cluster() => Some(fetch(LOCAL_URL)),
            None => None,
        }
    }

    /// Returns the namespace of the agents.
    pub(crate) fn node_namespace(&self) -> &str {
        &self.node_namespace
    }

    /// Asks the agent of the node that a pod is on: the one at `--agent-url` or on this node, else that in the cluster.
    ///
    /// # Errors
    /// See [`Self::fetch_direct`] and [`Self::fetch_from_cluster`].
    pub(crate) fn fetch_for_pod(
        &self,
        connect: &ConnectArgs,
        namespace: &str,
        name: &str,
    ) -> Result<AgentPods, Failure> {
        if let Some(answer) = self.fetch_direct(connect) {
            return answer.map(|(listing, _)| listing);
        }
        let target = AgentTarget::PodNode { namespace: namespace.to_owned(), name: name.to_owned() };
        let answers = self.fetch_from_cluster(connect, &target)?;
        let answer = answers.into_iter().next().ok_or_else(|| Failure::usage("the agent gives no answer"))?;
        Ok(answer.0)
    }

    /// Finds the agents in the cluster, and asks them through port-forwards.
    ///
    /// # Errors
    /// There is no such agent, or one cannot be reached.
    pub(crate) fn fetch_from_cluster(
        &self,
        connect: &ConnectArgs,
        target: &AgentTarget,
    ) -> Result<Vec<AgentAnswer>, Failure> {
        connect.run(CLUSTER_TIMEOUT, async |cluster| {
            let node = match target {
                AgentTarget::Node(node) => Some(node.clone()),
                AgentTarget::PodNode { namespace, name } => Some(node_of(&cluster, namespace, name).await?),
                AgentTarget::All => None,
            };
            ask(&cluster, &self.node_namespace, node.as_deref()).await
        })
    }
}

/// Asks the agent of a node, or all agents of their namespace, through port-forwards.
///
/// # Errors
/// There is no such agent, or one cannot be reached.
pub(crate) async fn ask(cluster: &Cluster, namespace: &str, node: Option<&str>) -> Result<Vec<AgentAnswer>, Failure> {
    let mut answers = Vec::new();
    for (name, port) in agents(cluster, namespace, node).await? {
        let body = forward::get(cluster, (namespace, &name, port), "/pods", TIMEOUT).await?;
        answers.push(parse(&format!("pod {namespace}/{name}"), body)?);
    }
    Ok(answers)
}

/// Finds the agent of a node, or all of their namespace: their pods and monitoring ports.
///
/// # Errors
/// There is none.
async fn agents(cluster: &Cluster, namespace: &str, node: Option<&str>) -> Result<Vec<(String, u16)>, Failure> {
    let agents = cluster.objects(POD, namespace, "app.kubernetes.io/name=weir-agent").await?;
    let on_node = |pod: &&Value| node.is_none_or(|node| pod["spec"]["nodeName"] == node);
    let agents: Vec<_> = agents
        .iter()
        .filter(on_node)
        .map(|agent| (agent["metadata"]["name"].as_str().unwrap_or_default().to_owned(), port_of(agent)))
        .collect();
    if agents.is_empty() {
        let place = node.map_or_else(|| "in the cluster".to_owned(), |node| format!("on node {node}"));
        let text = format!("{cluster}: no agent runs {place} (pods of {namespace})");
        return Err(Failure::findings(vec![text]));
    }
    Ok(agents)
}

/// A connection that an agent has seen begin in a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ObservedConnection {
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
    /// Source of the replies, which differs from the destination if that was translated.
    pub(crate) reply_source: SocketAddr,
}

#[derive(Debug, Deserialize)]
struct ObservedConnections {
    connections: Vec<ObservedConnection>,
}

/// Has the agents of the nodes of pods (`NAMESPACE`, `NAME`) report the connections that begin there, all at the same time.
///
/// # Errors
/// A pod does not exist, or its agent cannot be reached or cannot observe it.
pub(crate) async fn observe(
    cluster: &Cluster,
    node_namespace: &str,
    pods: &[(String, String)],
    time: Duration,
) -> Result<Vec<Vec<ObservedConnection>>, Failure> {
    let one = async |(namespace, name): &(String, String)| {
        let node = node_of(cluster, namespace, name).await?;
        let path = format!("/connections/{namespace}/{name}/{}", time.as_secs());
        let Some((agent, port)) = agents(cluster, node_namespace, Some(&node)).await?.into_iter().next() else {
            return Ok(Vec::new());
        };
        let body = forward::get(cluster, (node_namespace, &agent, port), &path, TIMEOUT + time).await?;
        let observed: ObservedConnections =
            serde_json::from_str(&body).with_context(|| format!("cannot parse the answer of agent {agent}"))?;
        Ok(observed.connections)
    };
    futures_util::future::try_join_all(pods.iter().map(one)).await
}

async fn node_of(cluster: &Cluster, namespace: &str, name: &str) -> Result<String, Failure> {
    let pod = cluster.object(&ObjectRef::new(POD, namespace, name)).await?;
    let text = |text: String| Failure::findings(vec![format!("{cluster}: {text}")]);
    let pod = pod.ok_or_else(|| text(format!("pod {namespace}/{name} not found")))?;
    let node = pod["spec"]["nodeName"].as_str().map(str::to_owned);
    node.ok_or_else(|| text(format!("pod {namespace}/{name} is on no node yet")))
}

/// Returns the monitoring port of an agent's pod.
fn port_of(agent: &Value) -> u16 {
    let ports = agent.pointer("/spec/containers/0/ports").and_then(Value::as_array);
    let port = ports.into_iter().flatten().find(|port| port["name"] == "http-metrics");
    port.and_then(|port| port["containerPort"].as_u64()).and_then(|port| port.try_into().ok()).unwrap_or(15034)
}

fn fetch(agent_url: &str) -> Result<AgentAnswer, Failure> {
    let url = pods_url(agent_url)?;
    // The agent is on this machine or behind a port-forward: no proxy leads to it.
    let config = ureq::Agent::config_builder().timeout_global(Some(TIMEOUT)).http_status_as_error(false).proxy(None);
    let agent = ureq::Agent::new_with_config(config.build());
    let mut response = agent.get(&url).call().with_context(|| format!("cannot reach the agent: {url}"))?;
    let body = response.body_mut().read_to_string().with_context(|| format!("cannot read {url}"))?;
    if response.status() != 200 {
        return Err(Failure::usage(format!("{url}: the agent responds {}: {}", response.status(), body.trim())));
    }
    parse(&url, body)
}

fn parse(origin: &str, body: String) -> Result<AgentAnswer, Failure> {
    let pods = serde_json::from_str(&body).with_context(|| format!("cannot parse the agent's response: {origin}"))?;
    Ok((pods, body))
}

fn pods_url(agent_url: &str) -> anyhow::Result<String> {
    let address = agent_url.strip_prefix("http://").unwrap_or(agent_url).trim_end_matches('/');
    let is_valid =
        !address.contains('/') && address.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    anyhow::ensure!(is_valid, "cannot parse --agent-url {agent_url}; write http://HOST:PORT");
    Ok(format!("http://{address}/pods"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agent_url_is_a_url_or_an_address() {
        for url in ["http://127.0.0.1:15014", "127.0.0.1:15014", "http://127.0.0.1:15014/"] {
            assert_eq!(pods_url(url).unwrap(), "http://127.0.0.1:15014/pods", "{url}");
        }
        assert!(pods_url("https://127.0.0.1:15014").is_err());
        assert!(pods_url("127.0.0.1").is_err());
    }
}
