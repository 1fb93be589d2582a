//! Backends that write rules into the kernel, by the names that configurations use.

/// Way in which rules are written into the kernel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Backend {
    /// nf_tables, and iptables where the kernel has no nf_tables.
    #[default]
    Auto,
    /// nf_tables over netlink.
    Nft,
    /// The programs `iptables-restore` and `ip6tables-restore` of the host.
    Iptables,
}

impl Backend {
    /// The names, in the order of the variants.
    pub const NAMES: [&str; 3] = ["auto", "nft", "iptables"];

    /// Parses the name of a backend.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Auto, Self::Nft, Self::Iptables].into_iter().find(|backend| backend.name() == name)
    }

    /// Returns the name that configurations use.
    pub const fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }
}

/// Which tools see the rules of the backend `nft`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Visibility {
    /// `nft`: a table of our own.
    #[default]
    Nft,
    /// `iptables-save` and `ip6tables-save` too: the tables and expressions of iptables-nft.
    Iptables,
}

impl Visibility {
    /// The names, in the order of the variants.
    pub const NAMES: [&str; 2] = ["nft", "iptables"];

    /// Parses the name of a visibility.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Nft, Self::Iptables].into_iter().find(|visibility| visibility.name() == name)
    }

    /// Returns the name that configurations use.
    pub const fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_its_own_names() {
        assert!(Backend::NAMES.iter().all(|name| Backend::parse(name).is_some_and(|found| found.name() == *name)));
        assert!(
            Visibility::NAMES.iter().all(|name| Visibility::parse(name).is_some_and(|found| found.name() == *name))
        );
        assert_eq!(Backend::parse("ipset"), None);
    }
}
