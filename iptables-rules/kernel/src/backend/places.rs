//! Where rules of ours, or of Istio's own program, can stand: looked at and cleaned without creating anything.

use std::fmt;
use std::fs;

use super::{Backend, BackendError, Method, Visibility};
use crate::iptables::{self as restore, Variant};
use crate::nft::{self, visible};
use iptables_rules::RuleSet;

/// A part of the kernel that holds rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The table `inet weir` (or `ip weir` and `ip6 weir`).
    Own,
    /// The tables of iptables-nft.
    IptablesNft,
    /// x_tables, the tables of iptables-legacy.
    IptablesLegacy,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Own => "table inet weir",
            Self::IptablesNft => "the tables of iptables-nft",
            Self::IptablesLegacy => "the tables of iptables-legacy",
        })
    }
}

impl Place {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Own, Self::IptablesNft, Self::IptablesLegacy];

    /// Whether it holds rules of ours, or chains that are called like Istio's.
    ///
    /// # Errors
    /// When it cannot be looked at, for example for want of `CAP_NET_ADMIN`.
    pub fn is_used(self) -> Result<bool, BackendError> {
        let nothing = RuleSet::default();
        Ok(match self {
            Self::Own => nft::answers() && !nft::verify(&nothing)?.is_empty(),
            Self::IptablesNft => nft::answers() && !visible::verify(&nothing)?.is_empty(),
            Self::IptablesLegacy => legacy_tables() && !restore::verify(&nothing, Some(Variant::Legacy))?.is_empty(),
        })
    }

    /// Removes what [`is_used`](Self::is_used) speaks of.
    ///
    /// # Errors
    /// See [`BackendError`].
    pub fn clear(self) -> Result<bool, BackendError> {
        if !self.is_used()? {
            return Ok(false);
        }
        Ok(match self {
            Self::Own => nft::remove()?,
            Self::IptablesNft => visible::remove()?,
            Self::IptablesLegacy => restore::remove(Some(Variant::Legacy))?,
        })
    }

    /// Whether the method writes here. The programs of iptables are asked for their variant, so this may run one.
    ///
    /// # Errors
    /// Where there are no programs of iptables, but the method needs them.
    pub fn is_of(self, method: Method) -> Result<bool, BackendError> {
        let by_nft = match method.backend {
            Backend::Nft => true,
            Backend::Iptables => false,
            Backend::Auto => nft::answers(),
        };
        let of = match (by_nft, method.visibility) {
            (true, Visibility::Nft) => Self::Own,
            (true, Visibility::Iptables) => Self::IptablesNft,
            (false, _) => match restore::variant_found(method.variant)? {
                Variant::Nft => Self::IptablesNft,
                Variant::Legacy => Self::IptablesLegacy,
            },
        };
        Ok(self == of)
    }
}

/// Whether somebody uses legacy tables in the namespace of the calling thread. Asking iptables would create them.
pub(crate) fn legacy_tables() -> bool {
    fs::read_to_string("/proc/thread-self/net/ip_tables_names").is_ok_and(|names| !names.is_empty())
}
