//! The plugin's entry in a network configuration, as the node agent writes it. The plugin's `netconf` reads it.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::log_level::LogLevel;
use crate::version::CniVersion;
use iptables_rules::backend::{Backend, Visibility};

/// The entry's `type`, and so the name of the binary that runtimes look for in their plugin directories.
pub const PLUGIN_TYPE: &str = "weir-cni";

/// Capability that makes containerd (from 1.5) and CRI-O (from 1.29) pass the pod's annotations, in `runtimeConfig` under the same name.
pub const CAPABILITY: &str = "io.kubernetes.cri.pod-annotations";

/// Default path of the agent's socket for queries, on the host.
pub const DEFAULT_AGENT_SOCKET: &str = "/var/run/weir/agent.sock";

/// Default limit for a whole query to the agent.
pub const DEFAULT_AGENT_TIMEOUT: Duration = Duration::from_secs(2);

/// Name of the file beside the agent's socket that exists once STATUS has succeeded; `/var/run` is empty after a boot of the node.
pub const STATUS_OK_FILE: &str = "status-ok";

/// Settings of the plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PluginEntry {
    /// Namespaces whose pods are skipped.
    pub exclude_namespaces: Vec<String>,
    /// Least severe level that the plugin logs.
    pub log_level: LogLevel,
    /// Backend that installs the rules.
    pub backend: Backend,
    /// Which tools show the rules.
    pub visibility: Visibility,
    /// Path of the agent's socket on the host.
    pub agent_socket: PathBuf,
    /// Limit for a whole query to the agent, in whole milliseconds.
    pub agent_timeout: Duration,
}

impl Default for PluginEntry {
    fn default() -> Self {
        Self {
            exclude_namespaces: Vec::new(),
            log_level: LogLevel::default(),
            backend: Backend::default(),
            visibility: Visibility::default(),
            agent_socket: PathBuf::from(DEFAULT_AGENT_SOCKET),
            agent_timeout: DEFAULT_AGENT_TIMEOUT,
        }
    }
}

impl PluginEntry {
    /// Returns the entry as an element of `plugins`. Keys with the default value are left out.
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
        // Always written: without the key the plugin uses no agent.
        map.insert("agent_socket".to_owned(), json!(self.agent_socket.to_string_lossy()));
        if self.agent_timeout != DEFAULT_AGENT_TIMEOUT {
            let millis = u64::try_from(self.agent_timeout.as_millis()).unwrap_or(u64::MAX);
            map.insert("agent_timeout_ms".to_owned(), json!(millis));
        }
        map
    }

    /// Returns a configuration with this entry alone, for a meta plugin such as Multus that calls it by the network's name.
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
    fn default_values_are_left_out() {
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
