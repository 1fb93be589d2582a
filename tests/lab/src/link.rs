//! Links, addresses and routes of a namespace, over rtnetlink.

use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use ipnet::IpNet;
use netlink_packet_route::address::AddressHeaderFlags;
use nix::net::if_::if_nametoindex;
use rtnetlink::{Handle, LinkUnspec, LinkVeth, RouteMessageBuilder};

use crate::Netns;
use crate::error::{LabError, OperationContext};

/// Timeout of one call; rtnetlink replies at once.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Sets a link up.
pub fn set_up(netns: &Netns, link: &str) -> Result<(), LabError> {
    request(
        netns,
        || format!("set up link {link}"),
        async |handle| {
            handle.link().set(LinkUnspec::new_with_index(index(link)?).up().build()).execute().await.map_err(io_error)
        },
    )
}

/// Connects two namespaces with a veth pair, both ends up.
pub fn veth(here: (&Netns, &str), there: (&Netns, &str)) -> Result<(), LabError> {
    let ((near, near_link), (far, far_link)) = (here, there);
    let far_fd = far.as_fd().as_raw_fd();
    request(
        near,
        || format!("create veth pair {near_link} and {far_link}"),
        async |handle| {
            // The peer is created here with a temporary name, and renamed when it is moved.
            let transit = format!("transit{far_fd}");
            handle.link().add(LinkVeth::new(near_link, &transit).build()).execute().await.map_err(io_error)?;
            let moved = LinkUnspec::new_with_index(index(&transit)?).name(far_link).setns_by_fd(far_fd).build();
            handle.link().set(moved).execute().await.map_err(io_error)
        },
    )?;
    set_up(near, near_link)?;
    set_up(far, far_link)
}

/// Adds an address to a link that is up, without duplicate address detection, and waits until packets to it are delivered.
pub fn add_address(netns: &Netns, link: &str, address: IpNet) -> Result<(), LabError> {
    request(
        netns,
        || format!("add address {address} to {link}"),
        async |handle| {
            let mut add = handle.address().add(index(link)?, address.addr(), address.prefix_len());
            if address.addr().is_ipv6() {
                add.message_mut().header.flags |= AddressHeaderFlags::Nodad;
            }
            add.execute().await.map_err(io_error)?;
            // The kernel inserts the local route of an IPv6 address later, in a work queue (`addrconf_dad_work`, net/ipv6/addrconf.c).
            while let IpAddr::V6(address) = address.addr()
                && !has_local_route(address)?
            {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            Ok(())
        },
    )
}

/// Returns whether the namespace of the calling thread has a local route to an address.
fn has_local_route(address: Ipv6Addr) -> io::Result<bool> {
    const RTF_LOCAL: u32 = 0x8000_0000; // linux/ipv6_route.h
    let destination = format!("{:032x} 80 ", address.to_bits());
    // One route per line: destination and source with their prefix lengths, gateway, metric, two counters, flags, link.
    let table = std::fs::read_to_string("/proc/thread-self/net/ipv6_route")?;
    Ok(table.lines().filter(|line| line.starts_with(&destination)).any(|line| {
        let flags = line.split_whitespace().nth(8).and_then(|flags| u32::from_str_radix(flags, 16).ok());
        flags.is_some_and(|flags| flags & RTF_LOCAL != 0)
    }))
}

/// Adds a default route of the gateway's family.
pub fn add_default_route(netns: &Netns, gateway: IpAddr) -> Result<(), LabError> {
    request(
        netns,
        || format!("add default route via {gateway}"),
        async |handle| {
            let invalid = |error| io::Error::new(io::ErrorKind::InvalidInput, format!("{error}"));
            let any: IpAddr = if gateway.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
            let route = RouteMessageBuilder::<IpAddr>::new()
                .destination_prefix(any, 0)
                .map_err(invalid)?
                .gateway(gateway)
                .map_err(invalid)?
                .build();
            handle.route().add(route).execute().await.map_err(io_error)
        },
    )
}

/// Returns the index of a link, which is also the scope of its link-local addresses.
pub fn interface_index(netns: &Netns, link: &str) -> Result<u32, LabError> {
    netns.run(|| index(link))?.operation(|| format!("find the index of {link} in {}", netns.name()))
}

/// Returns the link-local IPv6 address of a link.
pub fn link_local(netns: &Netns, link: &str) -> Result<Ipv6Addr, LabError> {
    // One address per line: 32 hex digits, index, prefix length, scope (20 = link), flags, name (proc(5), if_inet6).
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
    netns.run(find)?.operation(|| format!("find the link-local address of {link} in {}", netns.name()))
}

/// Returns the index of a link in the namespace of the calling thread.
fn index(link: &str) -> io::Result<u32> {
    if_nametoindex(link).map_err(|error| io::Error::new(io::Error::from(error).kind(), format!("link {link}: {error}")))
}

fn io_error(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other),
    }
}

/// Calls rtnetlink in a namespace, with a socket and a runtime on a thread in it.
fn request(
    netns: &Netns,
    operation: impl Fn() -> String,
    work: impl AsyncFnOnce(Handle) -> io::Result<()> + Send,
) -> Result<(), LabError> {
    let operation = || format!("{} in {}", operation(), netns.name());
    let call = || -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
        runtime.block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection()?;
            let connection = tokio::spawn(connection);
            let result = tokio::time::timeout(TIMEOUT, work(handle)).await;
            connection.abort();
            result.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        })
    };
    netns.run(call)?.operation(operation)
}
