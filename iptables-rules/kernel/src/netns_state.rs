//! Reads the capture rules of a network namespace, ours and foreign. Changes nothing: programs of iptables run only for existing tables, as
//! they create missing ones.
//!
//! ```text
//! nf_tables ───────────────────────────────▶ our tables, fingerprint, foreign tables ─┐
//! iptables-nft-save, iptables-legacy-save ─▶ texts ───────────────────────────────────┼─▶ NetnsState ─▶ ownership, Chains
//! rtnetlink ───────────────────────────────▶ addresses, locally delivered marks ──────┘
//! ```

use std::net::IpAddr;

use crate::iptables::{self, IptablesVariant};
use crate::legacy;
use crate::nft::{self, NftError, NftState, TableFamily};
use crate::route::{self, RouteError};
use iptables_rules::RuleSet;
use iptables_rules::config::{DnsCapture, InterceptionMode, Ipv6Policy};
use iptables_rules::names::{OWNER_COMMENT, chain};
use iptables_rules::restore::{RestoreFamily, parse};
use iptables_rules::ruleset::LocalDelivery;
use iptables_rules::trace::Chains;
use iptables_rules::{CaptureConfig, plan};

/// Tables of iptables, in nf_tables by their family.
const IPTABLES_TABLES: [&str; 5] = ["filter", "mangle", "nat", "raw", "security"];

/// Capture rules of a network namespace, and what they rely on.
#[derive(Debug, Clone, Default)]
pub struct NetnsState {
    /// Content of nf_tables.
    pub nft: NftState,
    /// Outputs of `iptables-save` and `ip6tables-save`.
    pub saved: Vec<SavedRules>,
    /// Addresses of the namespace, without those of the loopback networks.
    pub addresses: Vec<IpAddr>,
    /// Marks whose packets are delivered locally.
    pub local_deliveries: Vec<LocalDelivery>,
    /// Parts that cannot be read, and the reasons.
    pub unreadable: Vec<String>,
}

/// Rules of one variant of iptables and one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedRules {
    /// Variant of iptables.
    pub variant: IptablesVariant,
    /// Address family.
    pub family: RestoreFamily,
    /// Output of the program.
    pub text: String,
}

/// Owner of the capture rules in a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ownership {
    /// There are no capture rules.
    None,
    /// Ours, as they were installed.
    Ours,
    /// Ours, but changed, or without a fingerprint.
    OursDrifted,
    /// Ours, in tables of iptables.
    OursInIptables,
    /// Chains of the mesh from another installer, such as Istio's.
    Foreign,
    /// Our table, and chains of the mesh in tables of iptables.
    Mixed,
}

/// Error returned when a namespace cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum NetnsStateError {
    /// nf_tables failed.
    #[error(transparent)]
    Nft(#[from] NftError),
    /// rtnetlink failed.
    #[error(transparent)]
    Route(#[from] RouteError),
}

/// Reads the namespace of the calling thread (see [`crate::netns::run_in`]).
///
/// # Errors
/// See [`NetnsStateError`]. Tables of iptables that cannot be read are listed in [`NetnsState::unreadable`] instead.
pub fn read() -> Result<NetnsState, NetnsStateError> {
    let mut state = NetnsState::default();
    match nft::inspect() {
        Ok(inspected) => state.nft = inspected,
        Err(NftError::Unavailable(error)) => state.unreadable.push(format!("nf_tables: {error}")),
        Err(error) => return Err(error.into()),
    }
    for family in RestoreFamily::ALL {
        for variant in [IptablesVariant::Nft, IptablesVariant::Legacy] {
            if !state.has_tables(variant, family) {
                continue;
            }
            match iptables::save(variant, family) {
                Ok(text) => state.saved.push(SavedRules { variant, family, text }),
                Err(error) => state.unreadable.push(format!("rules of {}: {error}", family.tool())),
            }
        }
    }
    state.addresses = route::addresses()?;
    state.local_deliveries = route::local_deliveries()?;
    Ok(state)
}

impl NetnsState {
    /// Returns whether there are tables of a variant. Creates none.
    fn has_tables(&self, variant: IptablesVariant, family: RestoreFamily) -> bool {
        match variant {
            IptablesVariant::Nft => {
                let family = match family {
                    RestoreFamily::V4 => TableFamily::Ip,
                    RestoreFamily::V6 => TableFamily::Ip6,
                };
                self.nft.others.iter().any(|(at, name)| *at == family && IPTABLES_TABLES.contains(&name.as_str()))
            }
            IptablesVariant::Legacy => legacy::has_tables(family),
        }
    }

    /// Returns the owner of the rules.
    pub fn ownership(&self) -> Ownership {
        let lines = || self.saved.iter().flat_map(|saved| parse::parse(&saved.text).lines);
        let in_mesh = lines().any(|line| chain::ALL.contains(&line.chain));
        let commented = lines().any(|line| line.has("--comment", |comment| comment == OWNER_COMMENT));
        let ours = !self.nft.program.tables.is_empty();
        match (ours, in_mesh || commented) {
            (true, true) => Ownership::Mixed,
            (true, false) if self.nft.is_intact() == Some(true) => Ownership::Ours,
            (true, false) => Ownership::OursDrifted,
            (false, true) if commented => Ownership::OursInIptables,
            (false, true) => Ownership::Foreign,
            (false, false) => Ownership::None,
        }
    }

    /// Returns the names of tables that are neither ours nor of iptables.
    pub fn other_tables(&self) -> Vec<String> {
        let plain = |family: &TableFamily, name: &str| *family != TableFamily::Inet && IPTABLES_TABLES.contains(&name);
        let others = self.nft.others.iter().filter(|(family, name)| !plain(family, name));
        others.map(|(family, name)| format!("{} {name}", family.name())).collect()
    }

    /// Returns the chains of the family of the address `packet`.
    pub fn chains(&self, packet: IpAddr) -> Chains {
        let mut chains = nft::chains(&self.nft.program, packet);
        let family = if packet.is_ipv4() { RestoreFamily::V4 } else { RestoreFamily::V6 };
        for saved in self.saved.iter().filter(|saved| saved.family == family) {
            chains = chains.merge(Chains::from_iptables_save(&saved.text));
        }
        chains.with_local_delivery(&self.local_deliveries)
    }

    /// Finds the rules that were installed by comparing the fingerprint with those of common configurations.
    pub fn infer_installed(&self) -> Option<RuleSet> {
        let mut common = Vec::new();
        for mode in [InterceptionMode::Redirect, InterceptionMode::Tproxy] {
            for ipv6 in [Ipv6Policy::Capture, Ipv6Policy::Leave] {
                for dns in [DnsCapture::Off, DnsCapture::All] {
                    for drop_invalid in [false, true] {
                        let dns = dns.clone();
                        common.push(CaptureConfig { mode, ipv6, dns, drop_invalid, ..CaptureConfig::default() });
                    }
                }
            }
        }
        common.iter().filter_map(|config| plan(config).ok()).find(|rules| self.nft.was_installed_from(rules))
    }

    /// Compares the rules, and what they rely on, with the expected ones: one line per difference. The calling thread must be in the
    /// namespace that was read.
    pub fn differences(&self, expected: &RuleSet) -> Result<Vec<String>, NetnsStateError> {
        let mut lines = match self.ownership() {
            Ownership::Foreign | Ownership::OursInIptables => self.saved_differences(expected),
            Ownership::None if expected.is_empty() => Vec::new(),
            _ => nft::verify(expected)?,
        };
        lines.extend(route::verify(&expected.routing)?);
        Ok(lines)
    }

    fn saved_differences(&self, expected: &RuleSet) -> Vec<String> {
        RestoreFamily::ALL
            .into_iter()
            .flat_map(|family| {
                let texts = self.saved.iter().filter(|saved| saved.family == family).map(|saved| saved.text.as_str());
                iptables::compare_saved(&texts.collect::<Vec<_>>().join("\n"), expected, family)
            })
            .collect()
    }
}
