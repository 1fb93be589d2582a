//! What a configuration must not ask for, because the rules would be refused by the kernel, or would harm the pod.

use std::net::Ipv4Addr;

use super::Unsupported;
use crate::CaptureConfig;
use crate::config::{Group, InterceptionMode, MAX_INCLUDED_GROUPS, OwnerGroups};
use crate::names;

/// Routing tables that the kernel itself uses: unspecified, default, main, local (`linux/rtnetlink.h`).
const RESERVED_ROUTE_TABLES: [u32; 4] = [0, 253, 254, 255];

/// Networks of loopback addresses: no shorter prefix (RFC 1122, 3.2.1.3).
const LOOPBACK_PREFIX: u8 = 8;

/// The id that means "none" in system calls (`chown(2)`); the owner match refuses it.
const NO_ID: u32 = u32::MAX;

/// Everything that [`super::plan`] refuses.
pub(super) fn check(config: &CaptureConfig) -> Result<(), Vec<Unsupported>> {
    let (groups_variable, named, most) = match &config.owner_groups {
        OwnerGroups::Only(groups) => (names::variable::OWNER_GROUPS, groups, MAX_INCLUDED_GROUPS),
        OwnerGroups::AllBut(groups) => (names::variable::OWNER_GROUPS_EXCLUDE, groups, usize::MAX),
    };
    let loopback = config.loopback;
    let no_id = |ids: &[u32]| ids.contains(&NO_ID);
    let mut findings = vec![
        (config.proxy_port == 0, "proxy port", "no connection can be sent to port 0"),
        (config.inbound_port == 0, "inbound capture port", "no connection can be sent to port 0"),
        (
            config.proxy_uids.is_empty() && config.proxy_gids.is_empty(),
            "proxy uid and gid",
            "with neither, traffic of the proxy would be sent back to the proxy for ever",
        ),
        (
            loopback.prefix_len() < LOOPBACK_PREFIX || loopback.addr().octets()[0] != Ipv4Addr::LOCALHOST.octets()[0],
            names::variable::LOOPBACK_CIDR,
            "is not within 127.0.0.0/8",
        ),
        (no_id(&config.proxy_uids), "proxy uid", "4294967295 is no user"),
        (no_id(&config.proxy_gids), "proxy gid", "4294967295 is no group"),
        (named.contains(&Group::Id(NO_ID)), groups_variable, "4294967295 is no group"),
        (named.len() > most, groups_variable, "names more than 64 groups"),
    ];
    if config.mode == InterceptionMode::Tproxy {
        findings.extend([
            (config.tproxy_mark == 0, "TPROXY mark", "0 is the mark of every other packet"),
            (
                config.tproxy_mark == names::TPROXY_OUTBOUND_MARK,
                "TPROXY mark",
                "1338 marks packets from the proxy to the pod itself",
            ),
            (
                RESERVED_ROUTE_TABLES.contains(&config.tproxy_route_table),
                "TPROXY route table",
                "0, 253, 254 and 255 are the kernel's own",
            ),
        ]);
    }
    let refused: Vec<_> = findings
        .into_iter()
        .filter(|(bad, ..)| *bad)
        .map(|(_, setting, reason)| Unsupported { setting, reason })
        .collect();
    if refused.is_empty() { Ok(()) } else { Err(refused) }
}
