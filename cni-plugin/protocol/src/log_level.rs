//! Levels of the plugin's log, as the entry names them.

/// How much a line matters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Why something was decided.
    Debug,
    /// What was decided.
    #[default]
    Info,
    /// Something is odd, the call goes on.
    Warn,
    /// The call fails.
    Error,
    /// As a setting: nothing is logged.
    None,
}

impl Level {
    /// The names, in order.
    pub const NAMES: [&str; 5] = ["debug", "info", "warn", "error", "none"];

    /// The level of that name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Debug, Self::Info, Self::Warn, Self::Error, Self::None].into_iter().find(|level| level.name() == name)
    }

    /// As it stands in the configuration.
    pub const fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_its_names() {
        for name in Level::NAMES {
            assert_eq!(Level::parse(name).map(Level::name), Some(name));
        }
        assert_eq!(Level::parse("INFO"), None);
    }
}
