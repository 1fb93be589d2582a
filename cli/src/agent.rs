//! The node's agent, asked over its monitoring port.

use std::net::{SocketAddr, ToSocketAddrs as _};

use anyhow::Context as _;
use clap::Args;
use serde::Deserialize;

use crate::failure::Failure;

/// Where the agent is.
#[derive(Debug, Args)]
pub(crate) struct AgentArgs {
    /// The agent's monitoring port; from elsewhere: kubectl -n weir-node port-forward POD 15034
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:15034")]
    agent_url: String,
}

/// What the agent lists (`GET /pods`), as far as it is shown.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Listing {
    /// Name of the node.
    pub(crate) node: String,
    /// Whether the agent knows all pods of the node.
    pub(crate) synced: bool,
    /// What keeps it from knowing them.
    #[serde(default)]
    pub(crate) trouble: Option<String>,
    /// Pods of the mesh, by name.
    #[serde(default)]
    pub(crate) pods: Vec<Pod>,
}

/// One of them.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Pod {
    /// Its namespace.
    pub(crate) namespace: String,
    /// Its name.
    pub(crate) name: String,
    /// How its rules are.
    pub(crate) state: String,
    /// What is wrong, one line each.
    #[serde(default)]
    pub(crate) detail: Vec<String>,
    /// How often the agent mended its rules.
    #[serde(default)]
    pub(crate) repairs: u32,
    /// How the agent found its network namespace.
    #[serde(default)]
    pub(crate) found_by: Option<String>,
}

/// States in which a pod of the mesh is, or may be, without its rules.
pub(crate) const BAD: [&str; 4] = ["missing", "drifted", "unreachable", "refused"];

impl Pod {
    /// Whether it is, or may be, without its rules.
    pub(crate) fn is_bad(&self) -> bool {
        BAD.contains(&self.state.as_str())
    }
}

impl AgentArgs {
    /// What the agent lists, understood and in its own words.
    ///
    /// # Errors
    /// The agent is not there, refuses, or says what cannot be read.
    pub(crate) fn listing(&self) -> Result<(Listing, String), Failure> {
        let answer = weir_lab::http::get(address(&self.agent_url)?, "/pods").context("is the agent there?")?;
        if answer.status != 200 {
            return Err(Failure::usage(format!("the agent answers {}: {}", answer.status, answer.body.trim())));
        }
        let listing = serde_json::from_str(&answer.body).context("the agent's answer")?;
        Ok((listing, answer.body))
    }
}

fn address(url: &str) -> anyhow::Result<SocketAddr> {
    let place = url.strip_prefix("http://").unwrap_or(url).trim_end_matches('/');
    let mut addresses = place.to_socket_addrs().with_context(|| format!("--agent-url {url}: not http://HOST:PORT"))?;
    addresses.next().with_context(|| format!("--agent-url {url}: no address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_a_url_or_a_bare_address() {
        for url in ["http://127.0.0.1:15014", "127.0.0.1:15014", "http://127.0.0.1:15014/"] {
            assert_eq!(address(url).unwrap().port(), 15014, "{url}");
        }
        assert!(address("https://127.0.0.1").is_err());
    }
}
