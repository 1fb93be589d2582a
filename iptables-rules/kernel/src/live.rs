//! What a network namespace has of capture rules, whoever put them there. Reads, and changes nothing: the programs of iptables are asked
//! only for tables that are there, as asking for others makes them.
//!
//! ```text
//! nf_tables ──nft::inspect────────────▶ our tables, fingerprint, names of others ─┐
//! iptables-nft-save, iptables-legacy-save ─▶ texts, where there are such tables ──┼─▶ Live ─▶ findings, Chains to trace through
//! rtnetlink ──route::look──────────────▶ addresses, marks delivered locally ──────┘
//! ```

use std::fs;
use std::net::IpAddr;

use crate::iptables::{self, Variant};
use crate::nft::{self, Inspected, NftError, TableFamily};
use crate::route::{self, RouteError};
use iptables_rules::RuleSet;
use iptables_rules::config::{DnsCapture, InterceptionMode, Ipv6Policy};
use iptables_rules::names::chain;
use iptables_rules::restore::{RestoreFamily, parse};
use iptables_rules::ruleset::LocalDelivery;
use iptables_rules::trace::Chains;
use iptables_rules::{CaptureConfig, plan};

/// Tables of iptables, in nf_tables by their family.
const IPTABLES_TABLES: [&str; 5] = ["filter", "mangle", "nat", "raw", "security"];

/// What there is.
#[derive(Debug, Clone, Default)]
pub struct Live {
    /// nf_tables.
    pub nft: Inspected,
    /// Texts of `iptables-save` and `ip6tables-save`.
    pub saved: Vec<Saved>,
    /// Addresses of the namespace, without those of `lo` that every namespace has.
    pub addresses: Vec<IpAddr>,
    /// Marks that are delivered locally.
    pub deliveries: Vec<LocalDelivery>,
    /// What could not be read, in words.
    pub unread: Vec<String>,
}

/// The rules of one variant of iptables and one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saved {
    /// Which.
    pub variant: Variant,
    /// Of which family.
    pub family: RestoreFamily,
    /// As the program prints them.
    pub text: String,
}

/// Whose rules they are, by and large.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// There are none of a mesh.
    None,
    /// Ours, and as they were installed.
    Ours,
    /// Ours, but changed since, or without the mark that tells.
    Drifted,
    /// Chains of a mesh in the tables of iptables that carry our comment.
    OursInIptables,
    /// Chains of a mesh that somebody else installed, as Istio's own programs do.
    Foreign,
    /// Ours, and somebody else's as well.
    Both,
}

/// Why a namespace could not be read.
#[derive(Debug, thiserror::Error)]
pub enum LiveError {
    /// nf_tables did not answer.
    #[error(transparent)]
    Nft(#[from] NftError),
    /// Routing did not answer.
    #[error(transparent)]
    Route(#[from] RouteError),
}

/// Reads the namespace of the calling thread (see [`crate::netns::within`]).
///
/// # Errors
/// See [`LiveError`]. Tables of iptables that cannot be read are named in [`Live::unread`].
pub fn read() -> Result<Live, LiveError> {
    let mut live = Live::default();
    match nft::inspect() {
        Ok(inspected) => live.nft = inspected,
        Err(NftError::Unavailable(error)) => live.unread.push(format!("nf_tables: {error}")),
        Err(error) => return Err(error.into()),
    }
    for family in RestoreFamily::ALL {
        for variant in [Variant::Nft, Variant::Legacy] {
            if !live.has_tables(variant, family) {
                continue;
            }
            match iptables::saved(variant, family) {
                Ok(text) => live.saved.push(Saved { variant, family, text }),
                Err(error) => live.unread.push(format!("rules of {}: {error}", family.tool())),
            }
        }
    }
    live.addresses = route::addresses()?;
    live.deliveries = route::deliveries()?;
    Ok(live)
}

impl Live {
    /// Whether there are tables of a variant, asked in a way that makes none.
    fn has_tables(&self, variant: Variant, family: RestoreFamily) -> bool {
        let (of_nft, names) = match family {
            RestoreFamily::V4 => (TableFamily::Ip, "/proc/thread-self/net/ip_tables_names"),
            RestoreFamily::V6 => (TableFamily::Ip6, "/proc/thread-self/net/ip6_tables_names"),
        };
        match variant {
            Variant::Nft => {
                self.nft.others.iter().any(|(at, name)| *at == of_nft && IPTABLES_TABLES.contains(&name.as_str()))
            }
            Variant::Legacy => fs::read_to_string(names).is_ok_and(|names| !names.trim().is_empty()),
        }
    }

    /// Whose rules there are.
    pub fn standing(&self) -> Standing {
        let lines = || self.saved.iter().flat_map(|saved| parse::parse(&saved.text).lines);
        let in_mesh = lines().any(|line| chain::ALL.contains(&line.chain));
        let commented = lines().any(|line| line.has("--comment", |comment| comment == iptables::OWNER));
        let ours = !self.nft.program.tables.is_empty();
        match (ours, in_mesh || commented) {
            (true, true) => Standing::Both,
            (true, false) if self.nft.intact() == Some(true) => Standing::Ours,
            (true, false) => Standing::Drifted,
            (false, true) if commented => Standing::OursInIptables,
            (false, true) => Standing::Foreign,
            (false, false) => Standing::None,
        }
    }

    /// Tables that are neither ours nor those of iptables.
    pub fn other_tables(&self) -> Vec<String> {
        let plain = |family: &TableFamily, name: &str| *family != TableFamily::Inet && IPTABLES_TABLES.contains(&name);
        let others = self.nft.others.iter().filter(|(family, name)| !plain(family, name));
        others.map(|(family, name)| format!("{} {name}", family.name())).collect()
    }

    /// The rules as packets of the family of `packet` meet them.
    pub fn chains(&self, packet: IpAddr) -> Chains {
        let mut chains = nft::chains(&self.nft.program, packet);
        let family = if packet.is_ipv4() { RestoreFamily::V4 } else { RestoreFamily::V6 };
        for saved in self.saved.iter().filter(|saved| saved.family == family) {
            chains = chains.with(Chains::saved(&saved.text));
        }
        chains.deliver(&self.deliveries)
    }

    /// The rules that were installed, where the fingerprint is that of a usual configuration: nothing else in a namespace tells.
    pub fn installed(&self) -> Option<RuleSet> {
        let mut usual = Vec::new();
        for mode in [InterceptionMode::Redirect, InterceptionMode::Tproxy] {
            for ipv6 in [Ipv6Policy::Capture, Ipv6Policy::Leave] {
                for dns in [DnsCapture::Off, DnsCapture::All] {
                    for drop_invalid in [false, true] {
                        let dns = dns.clone();
                        usual.push(CaptureConfig { mode, ipv6, dns, drop_invalid, ..CaptureConfig::default() });
                    }
                }
            }
        }
        usual.iter().filter_map(|config| plan(config).ok()).find(|rules| self.nft.was(rules))
    }

    /// What differs from the rules that should be there, one line each, and from what they rely on. Acts on the namespace of the
    /// calling thread, which has to be the one that was read.
    ///
    /// # Errors
    /// See [`LiveError`].
    pub fn differences(&self, expected: &RuleSet) -> Result<Vec<String>, LiveError> {
        let mut lines = match self.standing() {
            Standing::Foreign | Standing::OursInIptables => self.saved_differences(expected),
            Standing::None if expected.is_empty() => Vec::new(),
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
                iptables::differences_of(&texts.collect::<Vec<_>>().join("\n"), expected, family)
            })
            .collect()
    }
}
