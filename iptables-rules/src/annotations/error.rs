/// Number of faults of one value that an error text names.
const MAX_SHOWN_FAULTS: usize = 5;

use crate::names::annotation;
use crate::text::truncate;

/// Error returned when a setting has an invalid value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid value '{value}' for {setting_source} '{name}': {reason}{}", self.advice())]
pub struct SettingError {
    /// Origin of the value.
    pub setting_source: SettingSource,
    /// Key of the annotation, or name of the variable or option.
    pub name: String,
    /// The value, truncated where it is long.
    pub value: String,
    /// Description of the fault.
    pub reason: String,
    /// Whether a newer version wrote the value; see [`Self::is_newer_writer`].
    newer_writer: bool,
}

/// Origin of a setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SettingSource {
    /// Annotation of the pod.
    Annotation,
    /// Environment variable of the proxy container.
    Variable,
    /// Command-line option.
    Flag,
}

impl std::fmt::Display for SettingSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Annotation => "annotation",
            Self::Variable => "variable",
            Self::Flag => "option",
        })
    }
}

impl SettingError {
    /// Creates an error about an annotation.
    pub fn annotation(name: &str, value: &str, reason: impl Into<String>) -> Self {
        Self::new(SettingSource::Annotation, name, value, reason)
    }

    /// Creates an error about an environment variable.
    pub fn variable(name: &str, value: &str, reason: impl Into<String>) -> Self {
        Self::new(SettingSource::Variable, name, value, reason)
    }

    /// Creates an error about a value with several faults; if there are many, the text names some and counts the rest.
    pub fn with_faults(setting_source: SettingSource, name: &str, value: &str, faults: &[String]) -> Self {
        Self::new(setting_source, name, value, join_faults(faults))
    }

    /// Creates an error about a value of `weir.dev/capture` that a newer version wrote.
    pub(crate) fn newer_writer(value: &str, reason: impl Into<String>) -> Self {
        Self { newer_writer: true, ..Self::annotation(annotation::CAPTURE, value, reason) }
    }

    /// Returns whether the value is from a newer version, so that an upgrade of the reader helps, and no change of the pod does.
    pub const fn is_newer_writer(&self) -> bool {
        self.newer_writer
    }

    fn advice(&self) -> &'static str {
        if self.newer_writer {
            "; the plugin on this node is older than the webhook that wrote this annotation; upgrade the node agent"
        } else {
            ""
        }
    }

    fn new(setting_source: SettingSource, name: &str, value: &str, reason: impl Into<String>) -> Self {
        Self {
            setting_source,
            name: name.to_owned(),
            value: truncate(value),
            reason: reason.into(),
            newer_writer: false,
        }
    }
}

/// Joins the faults of one value into one text; if there are many, it names some and counts the rest.
pub(crate) fn join_faults(faults: &[String]) -> String {
    let shown = faults.iter().take(MAX_SHOWN_FAULTS).map(String::as_str).collect::<Vec<_>>().join(", ");
    match faults.len().saturating_sub(MAX_SHOWN_FAULTS) {
        0 => shown,
        more => format!("{shown}, and {more} more"),
    }
}
