//! Rejects settings whose rules the kernel would refuse, or which would break the pod.

use std::borrow::Cow;
use std::net::Ipv4Addr;

use crate::CaptureConfig;
use crate::config::{Group, InterceptionMode, OwnerGroups};
use crate::{limits, names};

/// Routing tables of the kernel: unspecified, default, main, local (`linux/rtnetlink.h`).
const RESERVED_ROUTE_TABLES: [u32; 4] = [0, 253, 254, 255];

/// Prefix length of the network of loopback addresses (RFC 1122, 3.2.1.3).
const LOOPBACK_PREFIX: u8 = 8;

/// The id that means "none" in system calls (`chown(2)`); the owner match rejects it.
const NO_ID: u32 = u32::MAX;

/// Error returned for a setting that is valid, but not supported.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{setting}: {reason}")]
pub struct UnsupportedSetting {
    /// Name of the setting, as the user knows it.
    pub setting: &'static str,
    /// Why it is not supported.
    pub reason: Cow<'static, str>,
}

impl From<limits::LimitExceeded> for UnsupportedSetting {
    fn from(exceeded: limits::LimitExceeded) -> Self {
        Self { setting: exceeded.setting, reason: exceeded.reason().into() }
    }
}

/// Returns an error for every unsupported setting.
pub(super) fn check(config: &CaptureConfig) -> Result<(), Vec<UnsupportedSetting>> {
    let (groups_variable, named) = match &config.owner_groups {
        OwnerGroups::Only(groups) => (names::variable::OWNER_GROUPS, groups),
        OwnerGroups::AllBut(groups) => (names::variable::OWNER_GROUPS_EXCLUDE, groups),
    };
    let loopback = config.loopback;
    let no_id = |ids: &[u32]| ids.contains(&NO_ID);
    let mut findings = vec![
        (config.proxy_port == 0, "proxy port", "port 0 is not valid"),
        (config.inbound_port == 0, "inbound capture port", "port 0 is not valid"),
        (
            config.proxy_uids.is_empty() && config.proxy_gids.is_empty(),
            "proxy uid and gid",
            "at least one is required: without it the proxy's own traffic loops",
        ),
        (
            loopback.prefix_len() < LOOPBACK_PREFIX || loopback.addr().octets()[0] != Ipv4Addr::LOCALHOST.octets()[0],
            names::variable::LOOPBACK_CIDR,
            "must be within 127.0.0.0/8",
        ),
        (no_id(&config.proxy_uids), "proxy uid", "4294967295 is not a valid uid"),
        (no_id(&config.proxy_gids), "proxy gid", "4294967295 is not a valid gid"),
        (named.contains(&Group::Id(NO_ID)), groups_variable, "4294967295 is not a valid gid"),
    ];
    if config.mode == InterceptionMode::Tproxy {
        findings.extend([
            (config.tproxy_mark == 0, "TPROXY mark", "mark 0 matches every packet"),
            (
                config.tproxy_mark == names::TPROXY_OUTBOUND_MARK,
                "TPROXY mark",
                "mark 1338 is reserved for packets from the proxy to its own pod",
            ),
            (
                RESERVED_ROUTE_TABLES.contains(&config.tproxy_route_table),
                "TPROXY route table",
                "tables 0, 253, 254 and 255 are reserved by the kernel",
            ),
        ]);
    }
    let refused = findings.into_iter().filter(|(bad, ..)| *bad);
    let refused = refused.map(|(_, setting, reason)| UnsupportedSetting { setting, reason: reason.into() });
    let refused: Vec<_> = refused.chain(limits::exceeded(config).into_iter().map(UnsupportedSetting::from)).collect();
    if refused.is_empty() { Ok(()) } else { Err(refused) }
}
