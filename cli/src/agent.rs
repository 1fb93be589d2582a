//! Requests to the monitoring port of a node's agent.

use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use weir_check::agent::AgentPods;

use crate::failure::Failure;

const TIMEOUT: Duration = Duration::from_secs(10);

/// Options for the connection to an agent.
#[derive(Debug, Args)]
pub(crate) struct AgentArgs {
    /// The agent's monitoring port; from another machine: kubectl -n weir-node port-forward POD 15034
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:15034")]
    agent_url: String,
}

impl AgentArgs {
    /// Returns the meshed pods that the agent lists, parsed and as JSON.
    ///
    /// # Errors
    /// The agent cannot be reached, responds with an error, or with something else.
    pub(crate) fn fetch_pods(&self) -> Result<(AgentPods, String), Failure> {
        let url = pods_url(&self.agent_url)?;
        // The agent is on this machine or behind a port-forward: no proxy leads to it.
        let config =
            ureq::Agent::config_builder().timeout_global(Some(TIMEOUT)).http_status_as_error(false).proxy(None);
        let agent = ureq::Agent::new_with_config(config.build());
        let mut response = agent.get(&url).call().with_context(|| format!("cannot reach the agent: {url}"))?;
        let body = response.body_mut().read_to_string().with_context(|| format!("cannot read {url}"))?;
        if response.status() != 200 {
            return Err(Failure::usage(format!("{url}: the agent responds {}: {}", response.status(), body.trim())));
        }
        let pods = serde_json::from_str(&body).with_context(|| format!("cannot parse the agent's response: {url}"))?;
        Ok((pods, body))
    }
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
