//! Facts of this host, for what the options leave open.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

/// Sources of defaults; tests replace them.
pub(crate) struct HostInfo<'a> {
    /// Reads a variable of the environment.
    pub(crate) env: &'a dyn Fn(&str) -> Option<String>,
    /// Returns the id of a user (`/etc/passwd`).
    pub(crate) user: &'a dyn Fn(&str) -> Option<u32>,
    /// Returns the addresses of the DNS servers (`/etc/resolv.conf`).
    pub(crate) dns_servers: &'a dyn Fn() -> Vec<IpAddr>,
    /// Returns whether the kernel has no IPv6 at all.
    pub(crate) lacks_ipv6: &'a dyn Fn() -> bool,
}

impl HostInfo<'static> {
    pub(crate) fn of_this_host() -> Self {
        Self {
            env: &|name| std::env::var(name).ok(),
            user: &user,
            dns_servers: &dns_servers,
            lacks_ipv6: &|| !Path::new("/proc/sys/net/ipv6").exists(),
        }
    }
}

fn user(name: &str) -> Option<u32> {
    let passwd = fs::read_to_string("/etc/passwd").ok()?;
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?
    })
}

/// Returns the servers in their order, each once.
fn dns_servers() -> Vec<IpAddr> {
    let text = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        // A link-local address may carry its interface, which means nothing to a rule.
        (words.next() == Some("nameserver")).then(|| words.next()?.split('%').next()?.parse().ok())?
    });
    let mut addresses: Vec<IpAddr> = Vec::new();
    for server in servers {
        if !addresses.contains(&server) {
            addresses.push(server);
        }
    }
    addresses
}
