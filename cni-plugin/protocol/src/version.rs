//! Versions of the CNI specification, and the verbs of each.

use std::fmt;

/// A version of the CNI specification that the plugin supports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CniVersion {
    /// 0.3.1, the oldest with `prevResult`.
    V0_3_1,
    /// 0.4.0, added CHECK.
    V0_4_0,
    /// 1.0.0, removed `ips[].version`.
    V1_0_0,
    /// 1.1.0, added STATUS and GC.
    V1_1_0,
}

impl CniVersion {
    /// Every supported version, oldest first.
    pub const ALL: [Self; 4] = [Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];
    /// The newest supported version, used in answers to input that names none.
    pub const NEWEST: Self = Self::V1_1_0;

    /// Returns the value of `cniVersion`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// Returns the version of that name, compared exactly as in the reference library.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.as_str() == name)
    }

    /// Returns the names of all supported versions, for messages.
    pub fn names() -> [&'static str; 4] {
        Self::ALL.map(Self::as_str)
    }
}

impl fmt::Display for CniVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Operation that the runtime requests (`CNI_COMMAND`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Install the capture rules.
    Add,
    /// Release an attachment.
    Del,
    /// Check that the rules are as ADD installed them.
    Check,
    /// Check that ADD would succeed now.
    Status,
    /// Release what belongs to no valid attachment.
    Gc,
    /// Print the supported versions.
    Version,
}

impl Verb {
    /// Returns the verb of that name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Add, Self::Del, Self::Check, Self::Status, Self::Gc, Self::Version]
            .into_iter()
            .find(|verb| verb.as_str() == name)
    }

    /// Returns the value of `CNI_COMMAND`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Status => "STATUS",
            Self::Gc => "GC",
            Self::Version => "VERSION",
        }
    }

    /// Returns the version that added the verb (CNI specification, changes by version).
    pub const fn since(self) -> CniVersion {
        match self {
            Self::Add | Self::Del | Self::Version => CniVersion::V0_3_1,
            Self::Check => CniVersion::V0_4_0,
            Self::Status | Self::Gc => CniVersion::V1_1_0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_four_supported_versions_parse() {
        for version in CniVersion::ALL {
            assert_eq!(CniVersion::parse(version.as_str()), Some(version));
        }
        for other in ["", "0.3.0", "1.0", "1.1.0 ", "v1.0.0", "1.2.0", "0.1.0"] {
            assert_eq!(CniVersion::parse(other), None, "{other:?}");
        }
    }

    #[test]
    fn verbs_have_the_version_that_added_them() {
        assert!(Verb::Check.since() > CniVersion::V0_3_1);
        assert!(Verb::Gc.since() > CniVersion::V1_0_0);
        assert_eq!(Verb::parse("add"), None);
        assert_eq!(Verb::parse("STATUS"), Some(Verb::Status));
    }
}
