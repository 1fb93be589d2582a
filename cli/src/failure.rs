//! Failures of commands: all messages, and the exit code.

use std::fmt;
use std::process::ExitCode;

use weir_iptables::IptablesError;

/// Exit codes besides 0, the same for every command.
pub(crate) mod exit {
    /// The input or the cluster has findings.
    pub(crate) const FINDINGS: u8 = 1;
    /// The command line is wrong, or a file or the cluster cannot be reached; clap uses the same.
    pub(crate) const USAGE: u8 = 2;
}

/// Everything that is wrong, one message each.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    exit: u8,
    messages: Vec<String>,
}

impl Failure {
    /// The input or the cluster has findings.
    pub(crate) fn findings(messages: Vec<String>) -> Self {
        Self { exit: exit::FINDINGS, messages }
    }

    /// One file has findings; every message names it.
    pub(crate) fn findings_in(file: &str, messages: &[String]) -> Self {
        Self::findings(messages.iter().map(|message| format!("{file}: {message}")).collect())
    }

    /// Wrong usage.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self { exit: exit::USAGE, messages: vec![message.into()] }
    }

    /// Wrong usage, in several ways.
    pub(crate) fn usage_all(messages: Vec<String>) -> Self {
        Self { exit: exit::USAGE, messages }
    }

    /// Adds a message.
    pub(crate) fn and(mut self, message: String) -> Self {
        self.messages.push(message);
        self
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.exit)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::usage(format!("{error:#}"))
    }
}

impl From<IptablesError> for Failure {
    fn from(error: IptablesError) -> Self {
        Self { exit: error.exit_code(), messages: error.messages() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.messages.iter().try_for_each(|message| writeln!(f, "weir: {message}"))
    }
}

/// Returns both results, or the failures of both.
///
/// # Errors
/// Either failed.
pub(crate) fn join<A, B>(a: Result<A, Failure>, b: Result<B, Failure>) -> Result<(A, B), Failure> {
    match (a, b) {
        (Ok(a), Ok(b)) => Ok((a, b)),
        (Err(failure), Ok(_)) | (Ok(_), Err(failure)) => Err(failure),
        (Err(mut a), Err(mut b)) => {
            a.messages.append(&mut b.messages);
            Err(Failure { exit: a.exit.max(b.exit), messages: a.messages })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn join_keeps_both_failures_and_the_higher_code() {
        let findings = Err::<(), _>(Failure::findings(vec!["a".to_owned()]));
        let failure = join(findings, Err::<(), _>(Failure::usage("b"))).unwrap_err();
        assert_eq!(failure.to_string(), "weir: a\nweir: b\n");
        assert_eq!(failure.exit, exit::USAGE);
    }
}
