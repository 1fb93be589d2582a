//! What can go wrong while a laboratory is set up.

use std::io;

/// A step that failed, and why.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {source}")]
pub struct LabError {
    /// What was being done, with the names of the things.
    pub step: String,
    /// The system's answer.
    pub source: io::Error,
}

impl LabError {
    pub(crate) fn new(step: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self { step: step.into(), source: source.into() }
    }
}

/// Adds to an I/O or system error what was being done.
pub(crate) trait During<T> {
    fn during(self, step: impl FnOnce() -> String) -> Result<T, LabError>;
}

impl<T, E: Into<io::Error>> During<T> for Result<T, E> {
    fn during(self, step: impl FnOnce() -> String) -> Result<T, LabError> {
        self.map_err(|source| LabError::new(step(), source))
    }
}
