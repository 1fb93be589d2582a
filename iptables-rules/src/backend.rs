//! Which way rules take into the kernel: the names that configurations use.

/// How rules get into the kernel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Backend {
    /// nf_tables, and iptables where the kernel has no nf_tables.
    #[default]
    Auto,
    /// nf_tables over netlink.
    Nft,
    /// The machine's `iptables-restore` and `ip6tables-restore`.
    Iptables,
}

impl Backend {
    /// The names, in the order of the variants.
    pub const NAMES: [&str; 3] = ["auto", "nft", "iptables"];

    /// The backend of that name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Auto, Self::Nft, Self::Iptables].into_iter().find(|backend| backend.name() == name)
    }

    /// As it stands in a configuration.
    pub const fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }
}

/// Who is meant to see the rules of the backend `nft`.
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

    /// The visibility of that name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Nft, Self::Iptables].into_iter().find(|visibility| visibility.name() == name)
    }

    /// As it stands in a configuration.
    pub const fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }
}
