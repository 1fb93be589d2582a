//! Output formats that several commands share.

use clap::ValueEnum;

/// Format of a command's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputFormat {
    /// Text for people
    Text,
    /// One JSON document
    Json,
}

/// Format of a report about workloads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ReportFormat {
    /// Text for people
    Text,
    /// One JSON document
    Json,
    /// SARIF 2.1.0, for annotations of pull requests
    Sarif,
    /// One self-contained page, also for phones and dark mode
    Html,
}
