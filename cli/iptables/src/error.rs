use std::io;

use weir_kernel::backend::BackendError;
use weir_kernel::netns::NetnsError;

/// Error returned by [`run`](crate::run).
#[derive(Debug, thiserror::Error)]
pub enum IptablesError {
    /// Options or variables are invalid or contradict each other; one message each.
    #[error("{}", .0.join("\n"))]
    InvalidOptions(Vec<String>),
    /// The kernel or a program of iptables did not do what it was asked.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The network namespace cannot be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The text of a dry run cannot be written.
    #[error("cannot write {to}: {error}")]
    Output {
        /// The file, or standard output.
        to: String,
        /// Reason for the fault.
        error: io::Error,
    },
    /// Connections did not go where the rules should send them; one message each, and what to do.
    #[error("{}", .0.join("\n"))]
    ValidationFailed(Vec<String>),
}

impl IptablesError {
    /// Returns the exit status: 1, 2 for output that cannot be written, and 126 for a failed validation.
    ///
    /// 126 is Istio's number, by which its repair controller recognises pods without rules.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::InvalidOptions(_) | Self::Backend(_) | Self::Netns(_) => 1,
            Self::Output { .. } => 2,
            Self::ValidationFailed(_) => 126,
        }
    }

    /// Returns the messages, one for each finding.
    pub fn messages(&self) -> Vec<String> {
        match self {
            Self::InvalidOptions(messages) | Self::ValidationFailed(messages) => messages.clone(),
            other => vec![other.to_string()],
        }
    }
}
