use crate::text::truncate;

/// How many faults of one value an error text names.
const MAX_SHOWN_FAULTS: usize = 5;

/// Error returned when a setting has an invalid value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid value '{value}' for {setting_source} '{name}': {reason}")]
pub struct SettingError {
    /// Where the value was given.
    pub setting_source: SettingSource,
    /// Key of the annotation, or name of the variable or option.
    pub name: String,
    /// The value, truncated where it is long.
    pub value: String,
    /// What is wrong with the value.
    pub reason: String,
}

/// Where a setting is given.
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

    fn new(setting_source: SettingSource, name: &str, value: &str, reason: impl Into<String>) -> Self {
        Self { setting_source, name: name.to_owned(), value: truncate(value), reason: reason.into() }
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
