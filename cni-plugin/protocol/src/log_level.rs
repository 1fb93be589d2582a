//! Levels of the plugin's log, as the entry names them (`plugin_log_level`).

/// Severity of a log line; as a setting, the least severe that is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Reasons for decisions.
    Debug,
    /// Decisions.
    #[default]
    Info,
    /// Something is unusual, but the call continues.
    Warn,
    /// The call fails.
    Error,
    /// As a setting: write nothing.
    None,
}

impl LogLevel {
    /// Names of the levels, in the order of the variants.
    pub const NAMES: [&str; 5] = ["debug", "info", "warn", "error", "none"];

    /// Returns the level of that name; names are lower case.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Debug, Self::Info, Self::Warn, Self::Error, Self::None].into_iter().find(|level| level.name() == name)
    }

    /// Returns the name used in the entry.
    pub const fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_to_their_levels() {
        for name in LogLevel::NAMES {
            assert_eq!(LogLevel::parse(name).map(LogLevel::name), Some(name));
        }
        assert_eq!(LogLevel::parse("INFO"), None);
    }
}
