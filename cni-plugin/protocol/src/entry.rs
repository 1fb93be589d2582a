//! The plugin's own entry in a network configuration, as the node agent writes it. The one place that knows its keys from the writing side;
//! the plugin's `netconf` is the reading side.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::log_level::Level;
use crate::version::CniVersion;
use iptables_rules::backend::{Backend, Visibility};

/// Name of the binary, and so the `type` of the entry: runtimes look for a file of that name in their plugin folders.
pub const PLUGIN_TYPE: &str = "weir-cni";

/// Capability by which containerd (1.5) and CRI-O (1.29) hand over the annotations of the pod, in `runtimeConfig` under the same name.
pub const CAPABILITY: &str = "io.kubernetes.cri.pod-annotations";

/// Where the agent answers the plugin, on the host.
pub const DEFAULT_AGENT_SOCKET: &str = "/var/run/weir/agent.sock";

/// Longest time that the plugin waits for the agent, all in all.
pub const DEFAULT_AGENT_TIMEOUT: Duration = Duration::from_secs(2);

/// Says beside the agent's socket that STATUS was good once since the node started (`/var/run` does not outlive it).
pub const STATUS_SEEN: &str = "status-ok";

/// What the entry says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PluginEntry {
    /// Namespaces that are left alone.
    pub exclude_namespaces: Vec<String>,
    /// What the plugin logs.
    pub log_level: Level,
    /// How rules get into the kernel.
    pub backend: Backend,
    /// Who is meant to see them.
    pub visibility: Visibility,
    /// Socket of the agent, as the host sees it.
    pub agent_socket: PathBuf,
    /// See [`DEFAULT_AGENT_TIMEOUT`]; counted in whole milliseconds.
    pub agent_timeout: Duration,
}

impl Default for PluginEntry {
    fn default() -> Self {
        Self {
            exclude_namespaces: Vec::new(),
            log_level: Level::default(),
            backend: Backend::default(),
            visibility: Visibility::default(),
            agent_socket: PathBuf::from(DEFAULT_AGENT_SOCKET),
            agent_timeout: DEFAULT_AGENT_TIMEOUT,
        }
    }
}

impl PluginEntry {
    /// The entry as an element of `plugins`. Keys that would say what the plugin does anyway are left out.
    pub fn to_map(&self) -> Map<String, Value> {
        let mut map = Map::new();
        map.insert("type".to_owned(), json!(PLUGIN_TYPE));
        map.insert("capabilities".to_owned(), json!({ CAPABILITY: true }));
        map.insert("exclude_namespaces".to_owned(), json!(self.exclude_namespaces));
        map.insert("plugin_log_level".to_owned(), json!(self.log_level.name()));
        if self.backend != Backend::default() {
            map.insert("backend".to_owned(), json!(self.backend.name()));
        }
        if self.visibility != Visibility::default() {
            map.insert("visibility".to_owned(), json!(self.visibility.name()));
        }
        // Always: without the key the plugin takes it that there is no agent.
        map.insert("agent_socket".to_owned(), json!(self.agent_socket.to_string_lossy()));
        if self.agent_timeout != DEFAULT_AGENT_TIMEOUT {
            let millis = u64::try_from(self.agent_timeout.as_millis()).unwrap_or(u64::MAX);
            map.insert("agent_timeout_ms".to_owned(), json!(millis));
        }
        map
    }

    /// A configuration of its own, for a meta plugin such as Multus that calls the plugin by the network's name.
    pub fn to_standalone(&self, name: &str, version: CniVersion) -> Map<String, Value> {
        let mut map = Map::new();
        map.insert("cniVersion".to_owned(), json!(version.as_str()));
        map.insert("name".to_owned(), json!(name));
        map.extend(self.to_map());
        map.insert("standalone".to_owned(), json!(true));
        map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_nothing_that_goes_without_saying() {
        assert_eq!(
            serde_json::to_string(&PluginEntry::default().to_map()).unwrap(),
            r#"{"type":"weir-cni","capabilities":{"io.kubernetes.cri.pod-annotations":true},"exclude_namespaces":[],"plugin_log_level":"info","agent_socket":"/var/run/weir/agent.sock"}"#
        );
        let entry = PluginEntry {
            agent_socket: "/run/a.sock".into(),
            agent_timeout: Duration::from_millis(500),
            ..PluginEntry::default()
        };
        let text = serde_json::to_string(&entry.to_map()).unwrap();
        assert!(text.ends_with(r#""agent_socket":"/run/a.sock","agent_timeout_ms":500}"#), "{text}");
    }
}
