//! The parts of the kernel that can hold rules of ours or of Istio's own programs: inspected and cleared without creating anything.

use std::fmt;

use iptables_rules::RuleSet;
use iptables_rules::backend::{Backend, Visibility};
use iptables_rules::restore::RestoreFamily;

use super::{BackendError, BackendOptions};
use crate::iptables::{self, IptablesVariant};
use crate::legacy;
use crate::nft::{self, iptables_compat};

/// A part of the kernel that holds rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RuleStore {
    /// The table `inet weir` (or `ip weir` and `ip6 weir`).
    Own,
    /// The tables of iptables-nft.
    IptablesNft,
    /// x_tables, the tables of iptables-legacy.
    IptablesLegacy,
}

impl fmt::Display for RuleStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Own => "table inet weir",
            Self::IptablesNft => "the tables of iptables-nft",
            Self::IptablesLegacy => "the tables of iptables-legacy",
        })
    }
}

impl RuleStore {
    /// All stores.
    pub const ALL: [Self; 3] = [Self::Own, Self::IptablesNft, Self::IptablesLegacy];

    /// Returns whether the store holds rules of ours, or chains with Istio's names.
    ///
    /// # Errors
    /// When the store cannot be read, for example without `CAP_NET_ADMIN`.
    pub fn has_rules(self) -> Result<bool, BackendError> {
        let nothing = RuleSet::default();
        Ok(match self {
            Self::Own => nft::is_available() && !nft::verify(&nothing)?.is_empty(),
            Self::IptablesNft => nft::is_available() && !iptables_compat::verify(&nothing)?.is_empty(),
            Self::IptablesLegacy => {
                legacy::has_tables(RestoreFamily::V4)
                    && !iptables::verify(&nothing, Some(IptablesVariant::Legacy))?.is_empty()
            }
        })
    }

    /// Removes the rules that [`has_rules`](Self::has_rules) reports; `false` where there were none.
    pub fn clear(self) -> Result<bool, BackendError> {
        if !self.has_rules()? {
            return Ok(false);
        }
        Ok(match self {
            Self::Own => nft::remove()?,
            Self::IptablesNft => iptables_compat::remove()?,
            Self::IptablesLegacy => iptables::remove(Some(IptablesVariant::Legacy))?,
        })
    }

    /// Returns whether these options write to this store. May run a program of iptables to learn its variant.
    ///
    /// # Errors
    /// When the options need programs of iptables and there are none.
    pub fn is_target_of(self, options: BackendOptions) -> Result<bool, BackendError> {
        let by_nft = match options.backend {
            Backend::Nft => true,
            Backend::Iptables => false,
            Backend::Auto => nft::is_available(),
        };
        let target = match (by_nft, options.visibility) {
            (true, Visibility::Nft) => Self::Own,
            (true, Visibility::Iptables) => Self::IptablesNft,
            (false, _) => match iptables::detect_variant(options.variant)? {
                IptablesVariant::Nft => Self::IptablesNft,
                IptablesVariant::Legacy => Self::IptablesLegacy,
            },
        };
        Ok(self == target)
    }
}
