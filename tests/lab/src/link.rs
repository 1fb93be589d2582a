//! Links, addresses and routes of a namespace, over rtnetlink. Every call has a bound.

use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use ipnet::IpNet;
use netlink_packet_route::address::AddressHeaderFlags;
use nix::net::if_::if_nametoindex;
use rtnetlink::{Handle, LinkUnspec, LinkVeth, RouteMessageBuilder};

use crate::Netns;
use crate::error::{During, LabError};

/// rtnetlink answers at once; this only keeps a broken kernel from hanging a test.
const BOUND: Duration = Duration::from_secs(5);

/// Sets a link up.
///
/// # Errors
/// When there is no such link.
pub fn up(netns: &Netns, link: &str) -> Result<(), LabError> {
    request(
        netns,
        || format!("link {link} up"),
        async |handle| {
            handle.link().set(LinkUnspec::new_with_index(index(link)?).up().build()).execute().await.map_err(answer)
        },
    )
}

/// Joins two namespaces by a pair of virtual Ethernet links, both up.
///
/// # Errors
/// When a name is taken or the kernel refuses.
pub fn veth(here: (&Netns, &str), there: (&Netns, &str)) -> Result<(), LabError> {
    let ((near, near_link), (far, far_link)) = (here, there);
    let far_fd = far.as_fd().as_raw_fd();
    request(
        near,
        || format!("veth pair {near_link} and {far_link}"),
        async |handle| {
            // The peer is made here under a passing name and takes its own on the way.
            let transit = format!("transit{far_fd}");
            handle.link().add(LinkVeth::new(near_link, &transit).build()).execute().await.map_err(answer)?;
            let moved = LinkUnspec::new_with_index(index(&transit)?).name(far_link).setns_by_fd(far_fd).build();
            handle.link().set(moved).execute().await.map_err(answer)
        },
    )?;
    up(near, near_link)?;
    up(far, far_link)
}

/// Adds an address, usable at once (no duplicate address detection).
///
/// # Errors
/// When there is no such link or the address is there already.
pub fn add_address(netns: &Netns, link: &str, address: IpNet) -> Result<(), LabError> {
    request(
        netns,
        || format!("address {address} on {link}"),
        async |handle| {
            let mut add = handle.address().add(index(link)?, address.addr(), address.prefix_len());
            if address.addr().is_ipv6() {
                add.message_mut().header.flags |= AddressHeaderFlags::Nodad;
            }
            add.execute().await.map_err(answer)
        },
    )
}

/// Adds a default route of the gateway's family.
///
/// # Errors
/// When the gateway is on no link, or there is such a route.
pub fn add_default_route(netns: &Netns, gateway: IpAddr) -> Result<(), LabError> {
    request(
        netns,
        || format!("default route via {gateway}"),
        async |handle| {
            let invalid = |error| io::Error::new(io::ErrorKind::InvalidInput, format!("{error}"));
            let any: IpAddr = if gateway.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
            let route = RouteMessageBuilder::<IpAddr>::new()
                .destination_prefix(any, 0)
                .map_err(invalid)?
                .gateway(gateway)
                .map_err(invalid)?
                .build();
            handle.route().add(route).execute().await.map_err(answer)
        },
    )
}

/// Index of a link: the scope of link-local addresses that are used through it.
///
/// # Errors
/// When there is no such link.
pub fn scope(netns: &Netns, link: &str) -> Result<u32, LabError> {
    netns.run(|| index(link))?.during(|| format!("scope in {}", netns.name()))
}

/// The link-local IPv6 address of a link.
///
/// # Errors
/// When it has none.
pub fn link_local(netns: &Netns, link: &str) -> Result<Ipv6Addr, LabError> {
    // One address a line: 32 hex digits, index, prefix length, scope (20 = link), flags, name (proc(5), if_inet6).
    let find = || -> io::Result<Ipv6Addr> {
        let table = std::fs::read_to_string("/proc/thread-self/net/if_inet6")?;
        let found = table.lines().find_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            match fields.as_slice() {
                [address, _, _, "20", _, name] if *name == link => u128::from_str_radix(address, 16).ok(),
                _ => None,
            }
        });
        found.map(Ipv6Addr::from).ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
    };
    netns.run(find)?.during(|| format!("link-local address of {link} in {}", netns.name()))
}

/// Index of a link in the namespace of the calling thread.
fn index(link: &str) -> io::Result<u32> {
    if_nametoindex(link).map_err(|error| io::Error::new(io::Error::from(error).kind(), format!("link {link}: {error}")))
}

fn answer(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other),
    }
}

/// One conversation with rtnetlink in a namespace: its socket and its runtime live on a thread in there.
fn request(
    netns: &Netns,
    step: impl Fn() -> String,
    work: impl AsyncFnOnce(Handle) -> io::Result<()> + Send,
) -> Result<(), LabError> {
    let step = || format!("{} in {}", step(), netns.name());
    let talk = || -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
        runtime.block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection()?;
            let connection = tokio::spawn(connection);
            let result = tokio::time::timeout(BOUND, work(handle)).await;
            connection.abort();
            result.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        })
    };
    netns.run(talk)?.during(step)
}
