//! How a command fails: everything that is wrong, and the exit code.

use std::fmt;
use std::process::ExitCode;

/// Exit codes besides 0, the same for every command.
pub(crate) mod exit {
    /// The input holds something that was refused, or what was checked does not hold.
    pub(crate) const FINDINGS: u8 = 1;
    /// The command line is wrong, or a file cannot be read or written. clap uses the same.
    pub(crate) const USAGE: u8 = 2;
    /// Capture rules do not do their work. Istio's number, by which its repair controller knows such pods.
    pub(crate) const VALIDATION: u8 = 126;
}

/// All that is wrong, one message each.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    exit: u8,
    messages: Vec<String>,
}

impl Failure {
    /// Something in the input was refused.
    pub(crate) fn refused(messages: Vec<String>) -> Self {
        Self { exit: exit::FINDINGS, messages }
    }

    /// Something in one file was refused; every message says in which.
    pub(crate) fn refused_in(file: &str, messages: &[String]) -> Self {
        Self::refused(messages.iter().map(|message| format!("{file}: {message}")).collect())
    }

    /// Connections did not go the way that the rules should send them.
    pub(crate) fn validation(messages: Vec<String>) -> Self {
        Self { exit: exit::VALIDATION, messages }
    }

    /// The command line asks for what is not there.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self { exit: exit::USAGE, messages: vec![message.into()] }
    }

    /// The command line asks for several things that are not there.
    pub(crate) fn usage_all(messages: Vec<String>) -> Self {
        Self { exit: exit::USAGE, messages }
    }

    /// With one more message.
    pub(crate) fn and(mut self, message: String) -> Self {
        self.messages.push(message);
        self
    }

    /// What the process ends with.
    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.exit)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::usage(format!("{error:#}"))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.messages.iter().try_for_each(|message| writeln!(f, "weir: {message}"))
    }
}

/// Both results, or the failures of both.
///
/// # Errors
/// Where either failed.
pub(crate) fn both<A, B>(a: Result<A, Failure>, b: Result<B, Failure>) -> Result<(A, B), Failure> {
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
    fn failures_of_both_sides_are_kept_and_the_higher_code_counts() {
        let refused = Err::<(), _>(Failure::refused(vec!["a".to_owned()]));
        let failure = both(refused, Err::<(), _>(Failure::usage("b"))).unwrap_err();
        assert_eq!(failure.to_string(), "weir: a\nweir: b\n");
        assert_eq!(failure.exit, exit::USAGE);
    }
}
