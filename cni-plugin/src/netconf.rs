//! Parses the plugin's configuration on stdin: standard keys, our own keys, and what the runtime adds.
//!
//! Only an unusable configuration is an error here. Errors in our own keys are collected in [`NetConf::key_errors`] and fail meshed pods
//! only: a pod outside the mesh must start whatever is broken.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::error::CniError;
use crate::log::LogLevel;
use iptables_rules::backend::{Backend, Visibility};
use iptables_rules::text::truncate;
use weir_kernel::backend::BackendOptions;
use weir_protocol::agent::AgentEndpoint;
use weir_protocol::entry::{CAPABILITY, DEFAULT_AGENT_TIMEOUT};
use weir_protocol::version::{CniVersion, Verb};

/// Keys of the entry that only this plugin knows.
const OWN_KEYS: [&str; 7] = [
    "exclude_namespaces",
    "plugin_log_level",
    "backend",
    "agent_socket",
    "agent_timeout_ms",
    "visibility",
    "standalone",
];
/// Keys of the specification and of the reference library, allowed in the configuration of any plugin.
const STANDARD_KEYS: [&str; 8] =
    ["cniVersion", "name", "type", "args", "capabilities", "runtimeConfig", "prevResult", "ipMasq"];
/// Standard keys without meaning for a chained plugin; generators of configurations write them all the same.
const IGNORED_KEYS: [&str; 2] = ["ipam", "dns"];
/// Largest `agent_timeout_ms`. Runtimes give up on a sandbox after some minutes, and the kubelet retries.
const AGENT_TIMEOUT_MAX: u64 = 60_000;
/// Key with the valid attachments (CNI specification 1.1.0, GC).
const VALID_ATTACHMENTS: &str = "cni.dev/valid-attachments";
/// Prefix that the specification reserves for its own keys.
const SPEC_PREFIX: &str = "cni.dev/";

/// Configuration of one call.
#[derive(Debug)]
pub struct NetConf<'a> {
    /// Version of the configuration, and of the result.
    pub version: CniVersion,
    /// Result of the plugins before this one; as text, so that no field is lost.
    pub prev_result: Option<&'a RawValue>,
    /// Namespaces whose pods are skipped.
    pub exclude_namespaces: Vec<String>,
    /// Least severe level that is logged.
    pub log_level: LogLevel,
    /// Backend that installs the rules.
    pub backend: Backend,
    /// Which tools show the rules.
    pub visibility: Visibility,
    /// The node agent, where the entry names one.
    pub agent: Option<AgentEndpoint>,
    /// Whether a meta plugin (Multus) calls this configuration as a network of its own, without a previous result.
    pub standalone: bool,
    /// Errors in our own keys, one line each. They fail meshed pods only.
    pub key_errors: Vec<String>,
    capabilities: Option<&'a RawValue>,
    runtime_config: Option<&'a RawValue>,
    valid_attachments: Option<&'a RawValue>,
}

/// One element of `cni.dev/valid-attachments`.
#[derive(Debug, Deserialize)]
struct Attachment {
    #[serde(rename = "containerID")]
    container_id: String,
}

/// The pod's annotations, as far as the runtime passes them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PodAnnotations {
    /// All annotations of the pod; containerd passes `null` or an empty object for a pod without any.
    Passed(BTreeMap<String, String>),
    /// The entry declares the capability, but the runtime does not know it.
    NotPassed,
    /// The entry does not declare the capability.
    NotDeclared,
}

/// Keys of an object, with their values as text.
type Keys<'a> = BTreeMap<String, &'a RawValue>;

impl<'a> NetConf<'a> {
    /// Parses a configuration.
    ///
    /// # Errors
    /// [`CniError::Decode`] where it is not a JSON object, [`CniError::Version`] and [`CniError::Verb`] where the version does not fit.
    pub fn parse(stdin: &'a [u8], verb: Verb) -> Result<Self, CniError> {
        let text = std::str::from_utf8(stdin).map_err(|error| CniError::Decode(format!("not UTF-8: {error}")))?;
        if text.trim_ascii().is_empty() {
            return Err(CniError::Decode("stdin is empty".to_owned()));
        }
        let keys: Keys<'a> = serde_json::from_str(text).map_err(|error| CniError::Decode(error.to_string()))?;

        let version = match keys.get("cniVersion") {
            None => return Err(CniError::Version(None)),
            Some(raw) => {
                let name: String = serde_json::from_str(raw.get())
                    .map_err(|_| CniError::Decode(format!("cniVersion {} is not a string", truncate(raw.get()))))?;
                CniVersion::parse(&name).ok_or(CniError::Version(Some(name)))?
            }
        };
        if version < verb.since() {
            return Err(CniError::Verb { verb, version });
        }

        let mut key_errors = Vec::new();
        let exclude_namespaces = own_key(&keys, "exclude_namespaces", "a list of strings", &mut key_errors);
        let log_level = own_choice(&keys, "plugin_log_level", &LogLevel::NAMES, LogLevel::parse, &mut key_errors);
        let backend = own_choice(&keys, "backend", &Backend::NAMES, Backend::parse, &mut key_errors);
        let visibility = own_choice(&keys, "visibility", &Visibility::NAMES, Visibility::parse, &mut key_errors);
        let agent = agent(&keys, &mut key_errors);
        let standalone = own_key(&keys, "standalone", "true or false", &mut key_errors);
        for key in keys.keys() {
            let known = OWN_KEYS.contains(&key.as_str())
                || STANDARD_KEYS.contains(&key.as_str())
                || IGNORED_KEYS.contains(&key.as_str())
                || key.starts_with(SPEC_PREFIX);
            if !known {
                key_errors.push(format!("key '{}' is unknown (own keys: {})", truncate(key), OWN_KEYS.join(", ")));
            }
        }
        let present = |key| keys.get(key).copied().filter(|raw: &&RawValue| raw.get() != "null");
        Ok(Self {
            version,
            prev_result: present("prevResult"),
            exclude_namespaces: exclude_namespaces.unwrap_or_default(),
            log_level,
            backend,
            visibility,
            agent,
            standalone: standalone.unwrap_or_default(),
            key_errors,
            capabilities: keys.get("capabilities").copied(),
            runtime_config: present("runtimeConfig"),
            valid_attachments: present(VALID_ATTACHMENTS),
        })
    }

    /// Returns the result of the plugins before this one, as text; for a standalone network an empty result.
    ///
    /// # Errors
    /// [`CniError::InvalidConfig`] where a chained configuration has none, or where it is not an object.
    pub fn previous_result(&self) -> Result<Cow<'a, str>, CniError> {
        match self.prev_result {
            None if self.standalone => Ok(Cow::Owned(format!("{{\"cniVersion\":\"{}\"}}", self.version))),
            None => Err(CniError::InvalidConfig(vec![
                "key prevResult is missing: weir-cni is a chained plugin and cannot be the first of the list"
                    .to_owned(),
            ])),
            Some(raw) if !raw.get().starts_with('{') => {
                Err(CniError::InvalidConfig(vec![format!("key prevResult: {} is not an object", truncate(raw.get()))]))
            }
            Some(raw) => Ok(Cow::Borrowed(raw.get())),
        }
    }

    /// Returns the addresses that the plugins before this one gave the pod, in the formats of all versions; those that are not valid are
    /// left out.
    pub fn pod_addresses(&self) -> Vec<IpAddr> {
        let result: Value = self.prev_result.and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or_default();
        // `ips` since 0.3.0, `ip4` and `ip6` before.
        let listed = result["ips"].as_array().into_iter().flatten().map(|ip| &ip["address"]);
        let networks = listed.chain([&result["ip4"]["ip"], &result["ip6"]["ip"]]).filter_map(Value::as_str);
        networks.filter_map(|network| network.split('/').next()?.parse().ok()).collect()
    }

    /// Returns the pod's annotations.
    ///
    /// # Errors
    /// [`CniError::InvalidConfig`] where they are not an object of strings.
    pub fn annotations(&self) -> Result<PodAnnotations, CniError> {
        let invalid = |key: &str, reason: String| CniError::InvalidConfig(vec![format!("key {key}: {reason}")]);
        let passed = match self.runtime_config {
            None => None,
            Some(raw) => serde_json::from_str::<Keys<'a>>(raw.get())
                .map_err(|error| invalid("runtimeConfig", error.to_string()))?
                .get(CAPABILITY)
                .copied(),
        };
        if let Some(raw) = passed {
            let annotations: Option<BTreeMap<String, String>> = serde_json::from_str(raw.get())
                .map_err(|error| invalid(&format!("runtimeConfig.\"{CAPABILITY}\""), error.to_string()))?;
            return Ok(PodAnnotations::Passed(annotations.unwrap_or_default()));
        }
        let declared = match self.capabilities {
            None => false,
            Some(raw) => serde_json::from_str::<Option<BTreeMap<String, bool>>>(raw.get())
                .map_err(|error| invalid("capabilities", error.to_string()))?
                .is_some_and(|capabilities| capabilities.get(CAPABILITY) == Some(&true)),
        };
        Ok(if declared { PodAnnotations::NotPassed } else { PodAnnotations::NotDeclared })
    }

    /// Returns the ids of the valid sandboxes (GC); `None` where the runtime passes no list, or an invalid one.
    pub fn valid_sandboxes(&self) -> Option<Vec<String>> {
        let attachments: Vec<Attachment> = serde_json::from_str(self.valid_attachments?.get()).ok()?;
        Some(attachments.into_iter().map(|attachment| attachment.container_id).collect())
    }

    /// Returns backend and visibility for the kernel crate.
    pub fn backend_options(&self) -> BackendOptions {
        BackendOptions { backend: self.backend, visibility: self.visibility, variant: None }
    }

    /// Fails where one of our own keys is invalid.
    ///
    /// # Errors
    /// [`CniError::InvalidConfig`] with all [`key_errors`](Self::key_errors).
    pub fn require_valid(&self) -> Result<(), CniError> {
        if self.key_errors.is_empty() { Ok(()) } else { Err(CniError::InvalidConfig(self.key_errors.clone())) }
    }
}

/// Reads one of our own keys. `null` counts as absent; a wrong type is reported.
fn own_key<T: for<'de> Deserialize<'de>>(
    keys: &Keys<'_>,
    key: &str,
    expected: &str,
    key_errors: &mut Vec<String>,
) -> Option<T> {
    let raw = keys.get(key)?;
    serde_json::from_str::<Option<T>>(raw.get()).unwrap_or_else(|_| {
        key_errors.push(format!("key {key}: {} is not {expected}", truncate(raw.get())));
        None
    })
}

/// Reads one of our own keys that has a fixed set of values. Absent, `null` and empty give the default.
fn own_choice<T: Default>(
    keys: &Keys<'_>,
    key: &str,
    names: &[&str],
    parse: fn(&str) -> Option<T>,
    key_errors: &mut Vec<String>,
) -> T {
    match own_key::<String>(keys, key, "a string", key_errors).as_deref() {
        None | Some("") => T::default(),
        Some(name) => parse(name).unwrap_or_else(|| {
            key_errors.push(format!("key {key}: '{name}' must be one of {}", names.join(", ")));
            T::default()
        }),
    }
}

/// Reads the agent's endpoint; there is one where `agent_socket` is set.
fn agent(keys: &Keys<'_>, key_errors: &mut Vec<String>) -> Option<AgentEndpoint> {
    let socket = own_key::<String>(keys, "agent_socket", "a string", key_errors).filter(|path| !path.is_empty());
    let millis = own_key::<u64>(keys, "agent_timeout_ms", "a number of milliseconds", key_errors);
    if let Some(millis) = millis.filter(|millis| !(1..=AGENT_TIMEOUT_MAX).contains(millis)) {
        key_errors.push(format!("key agent_timeout_ms: {millis} is out of range (1-{AGENT_TIMEOUT_MAX})"));
    }
    let socket = PathBuf::from(socket?);
    if !socket.is_absolute() {
        key_errors.push(format!("key agent_socket: '{}' is not an absolute path", truncate(&socket.to_string_lossy())));
        return None;
    }
    let timeout =
        millis.map_or(DEFAULT_AGENT_TIMEOUT, |millis| Duration::from_millis(millis.clamp(1, AGENT_TIMEOUT_MAX)));
    Some(AgentEndpoint { socket, timeout })
}

#[cfg(test)]
mod tests;
