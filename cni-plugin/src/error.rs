//! Errors of a call, with their codes and the error object on stdout.
//!
//! Codes below 100 are those of the CNI specification (section "Error") and of the reference library (8); from 100 on they are ours.

use std::fmt::{self, Write as _};

use iptables_rules::annotations::SettingError;
use iptables_rules::plan::UnsupportedSetting;
use serde::Serialize;

use weir_protocol::version::{CniVersion, Verb};

/// Most items that one message lists; the rest is counted.
const MAX_SHOWN: usize = 8;

/// Longest message, in bytes. An event of the API server holds 1024, the log of the runtime all of it.
const MAX_MESSAGE_BYTES: usize = 4096;

/// Error of a call. `Display` is the `msg` of the error object, [`CniError::details`] its `details`.
#[derive(Debug, thiserror::Error)]
pub enum CniError {
    /// `cniVersion` is missing or not supported.
    #[error("incompatible CNI version: {}", match .0 { Some(version) => format!("cniVersion is '{version}'"), None => "cniVersion is missing".to_owned() })]
    Version(Option<String>),
    /// The verb was added in a later version than the configuration's.
    #[error("incompatible CNI version: cniVersion is {version}, {} needs {}", verb.as_str(), verb.since())]
    Verb {
        /// Verb of the call.
        verb: Verb,
        /// Version of the configuration.
        version: CniVersion,
    },
    /// Environment variables are missing or invalid: all of them, one line each.
    #[error("invalid environment: {}", join_limited(.0))]
    InvalidEnvironment(Vec<String>),
    /// stdin could not be read.
    #[error("cannot read the network configuration from stdin: {0}")]
    Stdin(String),
    /// The configuration is not a JSON object, or is too large.
    #[error("cannot decode the network configuration: {0}")]
    Decode(String),
    /// Keys of the configuration are missing or invalid: all of them, one line each.
    #[error("invalid network configuration: {}", join_limited(.0))]
    InvalidConfig(Vec<String>),
    /// `CNI_NETNS` cannot be entered.
    #[error("{0}")]
    Netns(String),
    /// The runtime passes no annotations, and no agent is configured.
    #[error("cannot tell whether pod {0} is in the mesh: the container runtime passed no pod annotations")]
    NoAnnotations(String),
    /// Only the pod's spec says what to capture, and no agent is configured.
    #[error("cannot decide what to capture in pod {pod} from its annotations: {}", hints.join(", "))]
    NeedsSpec {
        /// `namespace/name`.
        pod: String,
        /// Annotations that show it, one line each.
        hints: Vec<String>,
    },
    /// Only the agent could tell, and it gave no answer.
    #[error("{}: {reason}", match purpose {
        QueryPurpose::Membership => format!("cannot tell whether pod {pod} is in the mesh: the container runtime passed no pod annotations"),
        QueryPurpose::Specification => format!("pod {pod} is in the mesh, but only its spec says what to capture"),
    })]
    AgentUnavailable {
        /// `namespace/name`.
        pod: String,
        /// Reason for the question.
        purpose: QueryPurpose,
        /// Failure of the question.
        reason: String,
    },
    /// The pod was injected, but the record of its injection was removed or changed.
    #[error("pod {pod} was injected, and the record of that was changed: {fault}")]
    StatusContradicted {
        /// `namespace/name`.
        pod: String,
        /// Description of the contradiction.
        fault: String,
    },
    /// The pod's spec has invalid settings.
    #[error("pod {pod} has an invalid setting: {}", join_limited(faults))]
    InvalidSpec {
        /// `namespace/name`.
        pod: String,
        /// One line for each.
        faults: Vec<String>,
    },
    /// The capture rules could not be installed.
    #[error("cannot install capture rules for pod {pod}: {reason}")]
    Install {
        /// `namespace/name`.
        pod: String,
        /// Error of the kernel.
        reason: String,
    },
    /// STATUS: the kernel has no nf_tables, or the plugin lacks the privilege.
    #[error("not available: {0}")]
    NotAvailable(String),
    /// The pod has invalid annotations.
    #[error("pod {pod} has invalid annotations: {}", join_limited(errors))]
    InvalidAnnotations {
        /// `namespace/name`.
        pod: String,
        /// One for each annotation.
        errors: Vec<SettingError>,
    },
    /// The pod uses settings that this version does not support.
    #[error("pod {pod} uses a setting that this version does not support: {}", join_limited(settings))]
    Unsupported {
        /// `namespace/name`.
        pod: String,
        /// One for each setting.
        settings: Vec<UnsupportedSetting>,
    },
    /// The backend does not support a setting.
    #[error("unsupported setting: {0}")]
    Backend(String),
    /// CHECK: the rules in the kernel differ from those that ADD installs.
    #[error("capture rules of pod {pod} have drifted: {}", join_limited(differences))]
    Drifted {
        /// `namespace/name`.
        pod: String,
        /// One line for each difference.
        differences: Vec<String>,
    },
    /// CHECK: the rules in the kernel could not be read.
    #[error("cannot read capture rules of pod {pod}: {reason}")]
    Unreadable {
        /// `namespace/name`.
        pod: String,
        /// Error of the kernel.
        reason: String,
    },
    /// A bug in the plugin.
    #[error("internal error: {0}")]
    Internal(String),
}

/// Reason to ask the agent about a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueryPurpose {
    /// To learn whether the pod is in the mesh.
    Membership,
    /// To learn what its spec says; the pod is known to be in the mesh.
    Specification,
}

impl CniError {
    /// Returns the `code` of the error object.
    pub fn code(&self) -> u32 {
        match self {
            Self::Version(_) | Self::Verb { .. } => 1,
            Self::InvalidEnvironment(_) => 4,
            Self::Stdin(_) => 5,
            Self::Decode(_) => 6,
            Self::InvalidConfig(_) => 7,
            Self::Netns(_) => 8,
            Self::NoAnnotations(_)
            | Self::NeedsSpec { .. }
            | Self::AgentUnavailable { .. }
            | Self::StatusContradicted { .. }
            | Self::Install { .. } => 11,
            Self::NotAvailable(_) => 50,
            // An upgrade of the node helps, not a change of the pod.
            Self::InvalidAnnotations { errors, .. } if is_newer_writer(errors) => 11,
            Self::InvalidAnnotations { .. } | Self::InvalidSpec { .. } => 100,
            Self::Unsupported { .. } | Self::Backend(_) => 101,
            Self::Drifted { .. } => 102,
            Self::Unreadable { .. } => 103,
            Self::Internal(_) => 199,
        }
    }

    /// Returns the `details` of the error object: what to do.
    pub fn details(&self) -> String {
        match self {
            Self::Version(_) | Self::Verb { .. } => {
                format!("weir-cni supports {}; set cniVersion of the conflist to one of them", CniVersion::names().join(", "))
            }
            Self::InvalidEnvironment(_) => "the container runtime has to set them (CNI specification, section 2)".to_owned(),
            Self::Stdin(_) | Self::Decode(_) => {
                "the container runtime has to write the plugin's configuration to stdin and close it".to_owned()
            }
            Self::InvalidConfig(_) => "fix the weir-cni entry of the conflist; docs/cni-plugin.md lists the keys".to_owned(),
            Self::Netns(_) => "CNI_NETNS has to be the path of the pod's own network namespace".to_owned(),
            Self::NoAnnotations(_) => format!(
                "the runtime has to support the capability {} (containerd 1.5, CRI-O 1.29 or newer); until it does, run weir-agent and name its agent_socket in the weir-cni entry, and list namespaces without a mesh in exclude_namespaces",
                weir_protocol::entry::CAPABILITY
            ),
            Self::AgentUnavailable { purpose, .. } => format!(
                "the kubelet retries; check that weir-agent runs on this node and that its log shows no error of the API server; {}",
                match purpose {
                    QueryPurpose::Membership => "namespaces without a mesh can be listed in exclude_namespaces",
                    QueryPurpose::Specification => "pods injected by Weir's webhook carry weir.dev/capture and need no agent",
                }
            ),
            Self::NeedsSpec { .. } => {
                "run weir-agent and name its agent_socket in the weir-cni entry, have the pod injected by Weir's webhook, which writes weir.dev/capture, or remove the setting".to_owned()
            }
            Self::StatusContradicted { .. } => {
                "recreate the pod, so that it is injected again; a pod that shall stay outside the mesh must not carry weir.dev/capture".to_owned()
            }
            Self::Install { .. } => {
                "the pod cannot start without its rules; this needs a kernel with nf_tables (nf_tables, nft_redir, nft_chain_nat) and the plugin needs CAP_SYS_ADMIN and CAP_NET_ADMIN".to_owned()
            }
            Self::NotAvailable(_) => {
                "load the kernel modules nf_tables, nft_redir and nft_chain_nat; the plugin needs CAP_NET_ADMIN".to_owned()
            }
            Self::InvalidAnnotations { errors, .. } if is_newer_writer(errors) => {
                "the plugin on this node is older than the webhook; upgrade weir-agent on this node, the kubelet retries".to_owned()
            }
            Self::InvalidAnnotations { .. } | Self::InvalidSpec { .. } => "fix the annotations and recreate the pod".to_owned(),
            Self::Unsupported { .. } | Self::Backend(_) => "remove the setting and recreate the pod".to_owned(),
            Self::Drifted { .. } => "another component changed them; recreate the pod".to_owned(),
            Self::Unreadable { .. } => "the plugin needs CAP_SYS_ADMIN and CAP_NET_ADMIN".to_owned(),
            Self::Internal(_) => "this is a bug in weir-cni; please report it".to_owned(),
        }
    }

    /// Returns the `msg` of the error object, limited to 4 KiB.
    pub fn message(&self) -> String {
        let mut text = self.to_string();
        if text.len() > MAX_MESSAGE_BYTES {
            text.truncate(text.floor_char_boundary(MAX_MESSAGE_BYTES));
            text.push_str("...");
        }
        text
    }

    /// Returns the error object for stdout, in the version of the configuration where that is known.
    pub fn to_json(&self, version: Option<CniVersion>) -> Vec<u8> {
        let object = ErrorObject {
            cni_version: version.unwrap_or(CniVersion::NEWEST).as_str(),
            code: self.code(),
            msg: self.message(),
            details: self.details(),
        };
        let mut json = serde_json::to_vec(&object).unwrap_or_default();
        json.push(b'\n');
        json
    }
}

/// Returns whether every error is about what only a newer version knows.
fn is_newer_writer(errors: &[SettingError]) -> bool {
    !errors.is_empty() && errors.iter().all(SettingError::is_newer_writer)
}

/// Error object of the CNI specification (section 5).
#[derive(Serialize)]
struct ErrorObject {
    #[serde(rename = "cniVersion")]
    cni_version: &'static str,
    code: u32,
    msg: String,
    details: String,
}

/// Joins at most [`MAX_SHOWN`] items and counts the rest.
fn join_limited<T: fmt::Display>(items: &[T]) -> String {
    let mut text = String::new();
    for (at, item) in items.iter().take(MAX_SHOWN).enumerate() {
        let _ = write!(text, "{}{item}", if at == 0 { "" } else { "; " });
    }
    if items.len() > MAX_SHOWN {
        let _ = write!(text, "; and {} more", items.len() - MAX_SHOWN);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_object_has_the_four_keys_of_the_specification() {
        let failure =
            CniError::InvalidEnvironment(vec!["CNI_NETNS is missing".to_owned(), "CNI_IFNAME is missing".to_owned()]);
        let json: serde_json::Value = serde_json::from_slice(&failure.to_json(Some(CniVersion::V0_4_0))).unwrap();
        assert_eq!(json["cniVersion"], "0.4.0");
        assert_eq!(json["code"], 4);
        assert_eq!(json["msg"], "invalid environment: CNI_NETNS is missing; CNI_IFNAME is missing");
        assert!(json["details"].as_str().is_some_and(|text| !text.is_empty()));
        assert_eq!(json.as_object().unwrap().len(), 4);
    }

    #[test]
    fn long_messages_are_cut_between_characters() {
        let text = CniError::Decode("é".repeat(9000)).message();
        assert!(text.len() <= MAX_MESSAGE_BYTES + 3 && text.ends_with("é..."), "{} bytes", text.len());
    }

    #[test]
    fn items_above_the_limit_are_counted() {
        let lines: Vec<String> = (0..10).map(|n| format!("d{n}")).collect();
        assert_eq!(join_limited(&lines), "d0; d1; d2; d3; d4; d5; d6; d7; and 2 more");
        assert_eq!(join_limited::<String>(&[]), "");
    }
}
