//! Error of this crate.

use std::io;

/// Error returned when an operation of the lab fails.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation}: {source}")]
pub struct LabError {
    /// The failed operation, with the names of its objects.
    pub operation: String,
    /// The error of the system.
    pub source: io::Error,
}

impl LabError {
    pub(crate) fn new(operation: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self { operation: operation.into(), source: source.into() }
    }
}

/// Adds the operation to an I/O or system error.
pub(crate) trait OperationContext<T> {
    fn operation(self, operation: impl FnOnce() -> String) -> Result<T, LabError>;
}

impl<T, E: Into<io::Error>> OperationContext<T> for Result<T, E> {
    fn operation(self, operation: impl FnOnce() -> String) -> Result<T, LabError> {
        self.map_err(|source| LabError::new(operation(), source))
    }
}
