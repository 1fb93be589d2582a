//! Reads the names of chains in legacy tables of iptables (x_tables) without a program of iptables. The image of the node agent has none, but
//! must detect rules that Istio's plugin installed with `iptables-legacy`.
//!
//! ```text
//! /proc/thread-self/net/ip_tables_names ─▶ existing tables ─getsockopt─▶ entries ─chains─▶ names
//! ```
//!
//! Only listed tables are read: reading others would create them.
//! Source: `linux/netfilter_ipv4/ip_tables.h`, `linux/netfilter_ipv6/ip6_tables.h`, `linux/netfilter/x_tables.h` (uapi).

use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::read_limits::ReadBudget;
use iptables_rules::names;
use iptables_rules::restore::RestoreFamily;

/// `IPT_SO_GET_INFO` and `IP6T_SO_GET_INFO`.
const GET_INFO: libc::c_int = 64;
/// `IPT_SO_GET_ENTRIES` and `IP6T_SO_GET_ENTRIES`.
const GET_ENTRIES: libc::c_int = 65;
/// `XT_TABLE_MAXNAMELEN`.
const NAME: usize = 32;
/// Size of `struct ipt_getinfo`: the name, a mask of hooks, two arrays of five offsets, the number of entries and their size.
const INFO: usize = NAME + 4 + 20 + 20 + 4 + 4;
/// Offset of the first entry in `struct ipt_get_entries`: the name and a size, aligned for 64-bit counters.
const ENTRIES: usize = NAME + 8;
/// Size of `struct xt_entry_target` before what a target adds.
const TARGET: usize = 32;
/// Maximum length of a chain's name with its terminator, `XT_FUNCTION_MAXNAMELEN`.
const CHAIN: usize = 30;
/// Name of the target at the head of a chain, and at the end of a table.
const ERROR: &[u8] = b"ERROR";

/// Returns whether there are legacy tables of a family in the calling thread's namespace. Asking iptables would create them.
pub(crate) fn has_tables(family: RestoreFamily) -> bool {
    let family = match family {
        RestoreFamily::V4 => &FAMILIES[0],
        RestoreFamily::V6 => &FAMILIES[1],
    };
    fs::read_to_string(family.listing).is_ok_and(|names| !names.trim().is_empty())
}

/// Constants of an address family.
#[derive(Debug)]
struct Family {
    /// Name of the family in nf_tables.
    name: &'static str,
    domain: AddressFamily,
    /// Level of the socket options.
    level: libc::c_int,
    /// File that lists the tables of the namespace.
    listing: &'static str,
    /// Offset of `target_offset` in an entry; `next_offset` follows.
    offsets: usize,
}

const FAMILIES: [Family; 2] = [
    Family {
        name: "ip",
        domain: AddressFamily::Inet,
        level: libc::IPPROTO_IP,
        listing: "/proc/thread-self/net/ip_tables_names",
        offsets: 88,
    },
    Family {
        name: "ip6",
        domain: AddressFamily::Inet6,
        level: libc::IPPROTO_IPV6,
        listing: "/proc/thread-self/net/ip6_tables_names",
        offsets: 140,
    },
];

/// Returns the legacy tables of the calling thread's namespace that have chains of the mesh, as `iptables-legacy FAMILY NAME`.
///
/// # Errors
/// Returns an error if the tables cannot be read, for example without `CAP_NET_ADMIN`. A kernel without legacy tables has none.
pub fn foreign_tables() -> io::Result<Vec<String>> {
    let mut found = Vec::new();
    for family in &FAMILIES {
        let Ok(listing) = fs::read_to_string(family.listing) else { continue };
        for table in listing.lines().filter(|line| !line.is_empty() && line.len() < NAME) {
            let entries = family.entries(table)?;
            if chains(&entries, family.offsets).iter().any(|chain| names::chain::ALL.contains(&chain.as_str())) {
                found.push(format!("iptables-legacy {} {table}", family.name));
            }
        }
    }
    Ok(found)
}

impl Family {
    /// Reads the entries of a table.
    fn entries(&self, table: &str) -> io::Result<Vec<u8>> {
        let socket = socket(self.domain, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)
            .or_else(|_| socket(self.domain, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None))?;
        let mut info = vec![0; INFO];
        info[..table.len()].copy_from_slice(table.as_bytes());
        get(&socket, self.level, GET_INFO, &mut info)?;
        let size: [u8; 4] = info[INFO - 4..].try_into().map_err(io::Error::other)?;
        ReadBudget::new().take_bytes(u32::from_ne_bytes(size) as usize)?;
        let mut answer = vec![0; ENTRIES + u32::from_ne_bytes(size) as usize];
        answer[..table.len()].copy_from_slice(table.as_bytes());
        answer[NAME..NAME + 4].copy_from_slice(&size);
        // EAGAIN if the table has been replaced between the two calls; the next check reads it.
        get(&socket, self.level, GET_ENTRIES, &mut answer)?;
        Ok(answer.split_off(ENTRIES))
    }
}

/// Calls `getsockopt` with a buffer that also contains the request; the kernel requires its exact length.
#[expect(unsafe_code, reason = "no crate offers this option; its length depends on an earlier answer")]
fn get(socket: &OwnedFd, level: libc::c_int, option: libc::c_int, buffer: &mut [u8]) -> io::Result<()> {
    let mut length = libc::socklen_t::try_from(buffer.len()).map_err(io::Error::other)?;
    // SAFETY: the kernel reads and writes at most `length` bytes of the buffer, which is borrowed exclusively for the call, and writes
    // the length back into a variable of its own type.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, option, buffer.as_mut_ptr().cast(), std::ptr::from_mut(&mut length))
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Returns the names of user-defined chains: each starts with an entry whose target is `ERROR`, followed by the name. Stops at invalid
/// entries.
fn chains(entries: &[u8], offsets: usize) -> Vec<String> {
    let short = |at: usize| Some(usize::from(u16::from_ne_bytes(entries.get(at..at + 2)?.try_into().ok()?)));
    let text = |at: usize, length: usize| {
        let bytes = entries.get(at..at + length)?;
        Some(&bytes[..bytes.iter().position(|byte| *byte == 0)?])
    };
    let mut found = Vec::new();
    let mut at = 0;
    while let (Some(target), Some(next)) = (short(at + offsets), short(at + offsets + 2)) {
        // The name of the target follows its size; the name of the chain follows the header of the target.
        let target = at + target;
        if text(target + 2, TARGET - 3) == Some(ERROR)
            && let Some(name) = text(target + TARGET, CHAIN)
            && name != ERROR
        {
            found.push(String::from_utf8_lossy(name).into_owned());
        }
        if next == 0 {
            break;
        }
        at += next;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{in_namespace, tool};

    #[test]
    fn finds_mesh_chains_in_tables_of_both_families() {
        in_namespace(|| {
            assert_eq!(foreign_tables().unwrap(), Vec::<String>::new());
            tool("iptables-legacy-restore", &[], "*nat\n:MINE - [0:0]\n-A OUTPUT -p tcp -j MINE\nCOMMIT\n");
            assert_eq!(foreign_tables().unwrap(), Vec::<String>::new(), "foreign chains");
            let istio = "*nat\n:ISTIO_OUTPUT - [0:0]\n-A OUTPUT -p tcp -m comment --comment x -j ISTIO_OUTPUT\n-A ISTIO_OUTPUT -j RETURN\nCOMMIT\n";
            tool("iptables-legacy-restore", &["--noflush"], istio);
            tool("ip6tables-legacy-restore", &[], &istio.replace("nat", "mangle"));
            assert_eq!(foreign_tables().unwrap(), ["iptables-legacy ip nat", "iptables-legacy ip6 mangle"]);
        });
    }

    #[test]
    fn stops_at_invalid_entries() {
        for offsets in FAMILIES.map(|family| family.offsets) {
            for length in [0, 1, offsets, offsets + 3, offsets + 4, 400] {
                for byte in [0, 1, 0x45, 0xff] {
                    assert_eq!(chains(&vec![byte; length], offsets), Vec::<String>::new(), "{length} of {byte}");
                }
            }
        }
    }
}
