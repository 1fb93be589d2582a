//! Every way in which a call can fail, with its code and the error object that goes to stdout.
//!
//! Codes below 100 are those of the CNI specification ("Error"), 8 is the reference library's, from 100 on they are ours.

use std::fmt::{self, Write as _};

use iptables_rules::annotations::AnnotationError;
use iptables_rules::plan::Unsupported;
use serde::Serialize;

use weir_protocol::version::{CniVersion, Verb};

/// How many differences or findings are spelled out in one message; the rest is counted.
const SHOWN: usize = 8;

/// Bytes of a message that are kept. The API server takes 1024 of an event, the runtime's log all of it.
const MAX_MESSAGE: usize = 4096;

/// Why a call failed. `Display` gives `msg`, [`Failure::advice`] gives `details`.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// `cniVersion` is none that we speak, or it is missing.
    #[error("incompatible CNI version: {}", match .0 { Some(version) => format!("cniVersion is '{version}'"), None => "cniVersion is missing".to_owned() })]
    Version(Option<String>),
    /// The verb came with a later version than the configuration's.
    #[error("incompatible CNI version: cniVersion is {version}, {} needs {}", verb.as_str(), verb.since())]
    Verb {
        /// The verb.
        verb: Verb,
        /// The configuration's version.
        version: CniVersion,
    },
    /// Environment variables are missing or cannot be taken: all of them, one line each.
    #[error("bad environment: {}", several(.0))]
    Environment(Vec<String>),
    /// The configuration could not be read.
    #[error("cannot read the network configuration from stdin: {0}")]
    Stdin(String),
    /// The configuration is no JSON object, or too large.
    #[error("cannot decode the network configuration: {0}")]
    Decode(String),
    /// Keys of the configuration are missing or cannot be taken: all of them, one line each.
    #[error("bad network configuration: {}", several(.0))]
    Config(Vec<String>),
    /// `CNI_NETNS` is no network namespace that could be entered.
    #[error("{0}")]
    Netns(String),
    /// The runtime hands over no annotations, so nobody can tell whether the pod is in the mesh.
    #[error("cannot tell whether pod {0} is in the mesh: the container runtime passed no pod annotations")]
    NoAnnotations(String),
    /// Only the pod's specification says what to do, and the plugin does not see it.
    #[error("pod {pod} needs more than its annotations say: {}", hints.join(", "))]
    NeedsSpec {
        /// `namespace/name`.
        pod: String,
        /// What points at it.
        hints: Vec<String>,
    },
    /// Only the agent could tell, and it did not.
    #[error("{}: {reason}", match undecided {
        Undecided::Membership => format!("cannot tell whether pod {pod} is in the mesh: the container runtime passed no pod annotations"),
        Undecided::Specification => format!("pod {pod} is in the mesh, and what to capture stands in its specification"),
    })]
    Agent {
        /// `namespace/name`.
        pod: String,
        /// What it was asked.
        undecided: Undecided,
        /// Why there is no answer.
        reason: String,
    },
    /// A specification that cannot be taken: all findings, one line each.
    #[error("pod {pod} is in the mesh, but cannot be taken as it is: {}", several(findings))]
    Specification {
        /// `namespace/name`.
        pod: String,
        /// All of them.
        findings: Vec<String>,
    },
    /// The kernel did not take the rules.
    #[error("pod {pod} is in the mesh, but its capture rules could not be installed: {reason}")]
    Install {
        /// `namespace/name`.
        pod: String,
        /// What the kernel said.
        reason: String,
    },
    /// The kernel has no nf_tables, or not for us.
    #[error("not available: {0}")]
    NotAvailable(String),
    /// Annotations of the pod that cannot be taken.
    #[error("pod {pod} is in the mesh, but its annotations cannot be taken: {}", several(errors))]
    Annotations {
        /// `namespace/name`.
        pod: String,
        /// All of them.
        errors: Vec<AnnotationError>,
    },
    /// Settings that are understood, but not carried out.
    #[error("pod {pod} asks for what this version does not carry out: {}", several(settings))]
    Unsupported {
        /// `namespace/name`.
        pod: String,
        /// All of them.
        settings: Vec<Unsupported>,
    },
    /// A setting that the backend does not carry out.
    #[error("this version does not carry out: {0}")]
    Backend(String),
    /// CHECK: the kernel holds other rules than ADD installed.
    #[error("the capture rules of pod {pod} are not as they should be: {}", several(differences))]
    Differs {
        /// `namespace/name`.
        pod: String,
        /// All of them.
        differences: Vec<String>,
    },
    /// CHECK: the kernel's rules could not be read.
    #[error("the capture rules of pod {pod} cannot be read: {reason}")]
    Unreadable {
        /// `namespace/name`.
        pod: String,
        /// What the kernel said.
        reason: String,
    },
    /// A defect of the plugin.
    #[error("internal error: {0}")]
    Internal(String),
}

/// What the agent was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Undecided {
    /// Whether the pod is in the mesh.
    Membership,
    /// What its specification says; that it is in the mesh is known.
    Specification,
}

impl Failure {
    /// Code of the error object.
    pub const fn code(&self) -> u32 {
        match self {
            Self::Version(_) | Self::Verb { .. } => 1,
            Self::Environment(_) => 4,
            Self::Stdin(_) => 5,
            Self::Decode(_) => 6,
            Self::Config(_) => 7,
            Self::Netns(_) => 8,
            Self::NoAnnotations(_) | Self::NeedsSpec { .. } | Self::Agent { .. } | Self::Install { .. } => 11,
            Self::NotAvailable(_) => 50,
            Self::Annotations { .. } | Self::Specification { .. } => 100,
            Self::Unsupported { .. } | Self::Backend(_) => 101,
            Self::Differs { .. } => 102,
            Self::Unreadable { .. } => 103,
            Self::Internal(_) => 199,
        }
    }

    /// What to do about it.
    pub fn advice(&self) -> String {
        match self {
            Self::Version(_) | Self::Verb { .. } => {
                format!("weir-cni speaks {}; set cniVersion of the conflist to one of them", CniVersion::names().join(", "))
            }
            Self::Environment(_) => "the container runtime has to set them (CNI specification, section 2)".to_owned(),
            Self::Stdin(_) | Self::Decode(_) => {
                "the container runtime has to write the plugin's configuration to stdin and close it".to_owned()
            }
            Self::Config(_) => "mend the weir-cni entry of the conflist; docs/cni-plugin.md lists the keys".to_owned(),
            Self::Netns(_) => "CNI_NETNS has to be the path of the pod's own network namespace".to_owned(),
            Self::NoAnnotations(_) => format!(
                "the runtime has to support the capability {} (containerd 1.5, CRI-O 1.29 or newer); until it does, run weir-agent and name its agent_socket in the weir-cni entry, and list namespaces without a mesh in exclude_namespaces",
                weir_protocol::entry::CAPABILITY
            ),
            Self::Agent { undecided, .. } => format!(
                "the kubelet tries again; see that weir-agent runs on this node and that its log names no trouble with the API server; {}",
                match undecided {
                    Undecided::Membership => "namespaces without a mesh can be listed in exclude_namespaces",
                    Undecided::Specification => "pods injected by Weir's webhook carry weir.dev/capture and need no agent",
                }
            ),
            Self::NeedsSpec { .. } => {
                "run weir-agent and name its agent_socket in the weir-cni entry, have the pod injected by Weir's webhook, which writes weir.dev/capture, or remove the setting".to_owned()
            }
            Self::Install { .. } => {
                "the pod is held back until its rules are in place; it needs a kernel with nf_tables (nf_tables, nft_redir, nft_chain_nat) and the plugin needs CAP_SYS_ADMIN and CAP_NET_ADMIN".to_owned()
            }
            Self::NotAvailable(_) => {
                "load the kernel modules nf_tables, nft_redir and nft_chain_nat; the plugin needs CAP_NET_ADMIN".to_owned()
            }
            Self::Annotations { .. } | Self::Specification { .. } => "correct the annotations and create the pod again".to_owned(),
            Self::Unsupported { .. } | Self::Backend(_) => "remove the setting and create the pod again".to_owned(),
            Self::Differs { .. } => "something else changed them; create the pod again".to_owned(),
            Self::Unreadable { .. } => "the plugin needs CAP_SYS_ADMIN and CAP_NET_ADMIN".to_owned(),
            Self::Internal(_) => "this is a defect of weir-cni; please report it".to_owned(),
        }
    }

    /// `msg` of the error object: the whole text, cut where somebody passed a megabyte of it.
    pub fn message(&self) -> String {
        let mut text = self.to_string();
        if text.len() > MAX_MESSAGE {
            text.truncate(text.floor_char_boundary(MAX_MESSAGE));
            text.push_str("...");
        }
        text
    }

    /// The error object for stdout, in the version of the configuration where that is known.
    pub fn to_json(&self, version: Option<CniVersion>) -> Vec<u8> {
        let object = ErrorObject {
            cni_version: version.unwrap_or(CniVersion::NEWEST).as_str(),
            code: self.code(),
            msg: self.message(),
            details: self.advice(),
        };
        let mut json = serde_json::to_vec(&object).unwrap_or_default();
        json.push(b'\n');
        json
    }
}

/// Error object of the CNI specification, section 5.
#[derive(Serialize)]
struct ErrorObject {
    #[serde(rename = "cniVersion")]
    cni_version: &'static str,
    code: u32,
    msg: String,
    details: String,
}

/// Joins the first few items and counts the rest.
fn several<T: fmt::Display>(items: &[T]) -> String {
    let mut text = String::new();
    for (at, item) in items.iter().take(SHOWN).enumerate() {
        let _ = write!(text, "{}{item}", if at == 0 { "" } else { "; " });
    }
    if items.len() > SHOWN {
        let _ = write!(text, "; and {} more", items.len() - SHOWN);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_the_four_keys_of_the_specification() {
        let failure = Failure::Environment(vec!["CNI_NETNS is missing".to_owned(), "CNI_IFNAME is missing".to_owned()]);
        let json: serde_json::Value = serde_json::from_slice(&failure.to_json(Some(CniVersion::V0_4_0))).unwrap();
        assert_eq!(json["cniVersion"], "0.4.0");
        assert_eq!(json["code"], 4);
        assert_eq!(json["msg"], "bad environment: CNI_NETNS is missing; CNI_IFNAME is missing");
        assert!(json["details"].as_str().is_some_and(|text| !text.is_empty()));
        assert_eq!(json.as_object().unwrap().len(), 4);
    }

    #[test]
    fn cuts_what_is_too_long_at_a_character() {
        let text = Failure::Decode("é".repeat(9000)).message();
        assert!(text.len() <= MAX_MESSAGE + 3 && text.ends_with("é..."), "{} bytes", text.len());
    }

    #[test]
    fn counts_what_it_does_not_spell_out() {
        let lines: Vec<String> = (0..10).map(|n| format!("d{n}")).collect();
        assert_eq!(several(&lines), "d0; d1; d2; d3; d4; d5; d6; d7; and 2 more");
        assert_eq!(several::<String>(&[]), "");
    }
}
