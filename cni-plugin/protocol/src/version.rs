//! Versions of the CNI specification and the verbs they know.

use std::fmt;

/// A version of the CNI specification that this plugin speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CniVersion {
    /// 0.3.1, the oldest with chained results.
    V0_3_1,
    /// 0.4.0, brought CHECK.
    V0_4_0,
    /// 1.0.0, dropped `ips[].version`.
    V1_0_0,
    /// 1.1.0, brought STATUS and GC.
    V1_1_0,
}

impl CniVersion {
    /// Every version, oldest first.
    pub const ALL: [Self; 4] = [Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];
    /// The newest, reported where the input names none.
    pub const NEWEST: Self = Self::V1_1_0;

    /// As it stands in `cniVersion`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// The version of that name; names are compared exactly, as the reference library does.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.as_str() == name)
    }

    /// All names, for messages.
    pub fn names() -> [&'static str; 4] {
        Self::ALL.map(Self::as_str)
    }
}

impl fmt::Display for CniVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What the runtime asks for (`CNI_COMMAND`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Program the namespace.
    Add,
    /// The attachment goes away.
    Del,
    /// Is everything as ADD left it?
    Check,
    /// Could an ADD succeed now?
    Status,
    /// Forget what belongs to no attachment.
    Gc,
    /// Which versions are spoken?
    Version,
}

impl Verb {
    /// The verb of that name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Add, Self::Del, Self::Check, Self::Status, Self::Gc, Self::Version]
            .into_iter()
            .find(|verb| verb.as_str() == name)
    }

    /// As it stands in `CNI_COMMAND`.
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

    /// The version that brought the verb (CNI specification, changes by version).
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
    fn takes_exactly_the_four_versions() {
        for version in CniVersion::ALL {
            assert_eq!(CniVersion::parse(version.as_str()), Some(version));
        }
        for other in ["", "0.3.0", "1.0", "1.1.0 ", "v1.0.0", "1.2.0", "0.1.0"] {
            assert_eq!(CniVersion::parse(other), None, "{other:?}");
        }
    }

    #[test]
    fn knows_when_a_verb_came() {
        assert!(Verb::Check.since() > CniVersion::V0_3_1);
        assert!(Verb::Gc.since() > CniVersion::V1_0_0);
        assert_eq!(Verb::parse("add"), None);
        assert_eq!(Verb::parse("STATUS"), Some(Verb::Status));
    }
}
