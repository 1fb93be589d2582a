use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd as _;

use iptables_rules::names::address::PASSTHROUGH_V6;
use nix::sys::socket::sockopt::SendTimeout;
use nix::sys::socket::{self, SockFlag, SockType, SockaddrStorage, setsockopt, socket};
use nix::sys::time::{TimeVal, TimeValLike as _};

use super::*;
use crate::testing::{in_namespace, tool};

const PASSTHROUGH: IpAddr = IpAddr::V6(PASSTHROUGH_V6);

fn routing() -> Routing {
    Routing {
        lo_addresses: vec!["::6/128".parse().unwrap()],
        local_delivery: Some(LocalDelivery { mark: 1337, table: 133 }),
    }
}

fn ip(command: &str) -> String {
    tool("ip", &command.split(' ').collect::<Vec<_>>(), "")
}

fn addresses_only() -> Routing {
    Routing { local_delivery: None, ..routing() }
}

/// Returns the peer's address of a connection from `::6` to the namespace itself, as the proxy makes it.
fn connect_from_passthrough() -> io::Result<IpAddr> {
    let server = TcpListener::bind("[::1]:0")?;
    let client = socket(socket::AddressFamily::Inet6, SockType::Stream, SockFlag::empty(), None)?;
    setsockopt(&client, SendTimeout, &TimeVal::seconds(2))?; // also of `connect`
    socket::bind(client.as_raw_fd(), &SockaddrStorage::from(SocketAddr::from((PASSTHROUGH, 0))))?;
    socket::connect(client.as_raw_fd(), &SockaddrStorage::from(server.local_addr()?))?;
    Ok(server.accept()?.1.ip())
}

#[test]
fn adds_address_to_loopback_that_is_up() {
    in_namespace(|| {
        ip("link set lo up");
        let routing = addresses_only();
        assert_eq!(verify(&routing).unwrap(), ["address ::6/128 is missing on lo"]);
        for _ in 0..2 {
            assert_eq!(apply(&routing).unwrap(), RoutingOutcome::Complete);
            assert_eq!(ip("-6 -o addr show dev lo to ::6").lines().count(), 1);
            assert_eq!(verify(&routing).unwrap(), Vec::<String>::new());
        }
        assert_eq!(connect_from_passthrough().unwrap(), PASSTHROUGH);
        assert_eq!(std::fs::read_to_string("/proc/sys/net/ipv6/ip_nonlocal_bind").unwrap(), "0\n");
    });
}

#[test]
fn loopback_plugin_finds_no_address_of_ours() {
    in_namespace(|| {
        let routing = addresses_only();
        assert_eq!(verify(&routing).unwrap(), ["address ::6/128 is missing on lo"]);
        assert_eq!(apply(&routing).unwrap(), RoutingOutcome::Complete);
        // The plugin brings lo up, then checks its addresses.
        let seen = tool("ip", &["-batch", "-"], "link set lo up\naddr show dev lo\n");
        assert!(seen.contains("127.0.0.1/8") && seen.contains("::1/128") && !seen.contains("::6/128"), "{seen}");
        assert_eq!(verify(&routing).unwrap(), Vec::<String>::new());
        assert_eq!(connect_from_passthrough().unwrap(), PASSTHROUGH);
    });
}

#[test]
fn passthrough_is_missing_after_loopback_was_down() {
    in_namespace(|| {
        let routing = addresses_only();
        apply(&routing).unwrap();
        for _ in 0..2 {
            ip("link set lo down");
            ip("link set lo up");
            assert_eq!(verify(&routing).unwrap(), ["address ::6/128 is missing on lo"]);
            assert_eq!(apply(&routing).unwrap(), RoutingOutcome::Complete);
            assert_eq!(verify(&routing).unwrap(), Vec::<String>::new());
            assert_eq!(connect_from_passthrough().unwrap(), PASSTHROUGH);
        }
        // 127.0.0.1 stays on an interface that went down.
        ip("link set lo down");
        assert_eq!(apply(&routing).unwrap(), RoutingOutcome::Complete);
        assert!(!ip("-6 addr show dev lo").contains("::6/128"));
        assert_eq!(connect_from_passthrough().unwrap(), PASSTHROUGH);
    });
}

#[test]
fn passthrough_is_missing_where_sockets_cannot_bind_to_it() {
    in_namespace(|| {
        let routing = addresses_only();
        apply(&routing).unwrap();
        std::fs::write("/proc/sys/net/ipv6/ip_nonlocal_bind", "0").unwrap();
        assert_eq!(verify(&routing).unwrap(), ["address ::6/128 is missing on lo"]);
        apply(&routing).unwrap();
        assert_eq!(verify(&routing).unwrap(), Vec::<String>::new());
        assert_eq!(connect_from_passthrough().unwrap(), PASSTHROUGH);
    });
}

#[test]
fn sets_up_local_delivery_once() {
    in_namespace(|| {
        ip("link set lo up");
        let routing = routing();
        assert_eq!(
            verify(&routing).unwrap(),
            [
                "address ::6/128 is missing on lo",
                "rule fwmark 1337 lookup 133 is missing",
                "route local default dev lo table 133 is missing",
                "rule -6 fwmark 1337 lookup 133 is missing",
                "route -6 local default dev lo table 133 is missing",
            ]
        );
        for _ in 0..3 {
            assert_eq!(apply(&routing).unwrap(), RoutingOutcome::Complete);
            assert_eq!(verify(&routing).unwrap(), Vec::<String>::new());
        }
        for family in ["-4", "-6"] {
            assert_eq!(ip(&format!("{family} rule show")).matches("fwmark 0x539 lookup 133").count(), 1);
            assert_eq!(ip(&format!("{family} route show table 133")).matches("local default dev lo").count(), 1);
        }
    });
}

#[test]
fn existing_rule_is_not_duplicated() {
    in_namespace(|| {
        ip("link set lo up");
        ip("rule add priority 77 fwmark 1337 lookup 133");
        ip("rule add priority 78 fwmark 1337/0xff lookup 133");
        let routing = Routing { lo_addresses: Vec::new(), ..routing() };
        apply(&routing).unwrap();
        assert_eq!(ip("rule show").matches("fwmark 0x539 lookup 133").count(), 1);
        assert_eq!(ip("-6 rule show").matches("fwmark").count(), 0, "no rule for IPv6");
    });
}

#[test]
fn disabled_ipv6_is_reported() {
    in_namespace(|| {
        ip("link set lo up");
        // /proc/sys/net shows the namespace of the reading thread.
        std::fs::write("/proc/sys/net/ipv6/conf/lo/disable_ipv6", "1").unwrap();
        assert_eq!(apply(&addresses_only()).unwrap(), RoutingOutcome::WithoutIpv6);
        assert_eq!(apply(&routing()).unwrap(), RoutingOutcome::WithoutIpv6);
        assert!(ip("rule show").contains("fwmark 0x539"));
    });
}

#[test]
fn local_delivery_brings_loopback_up() {
    in_namespace(|| {
        assert_eq!(apply(&routing()).unwrap(), RoutingOutcome::Complete);
        assert_eq!(verify(&routing()).unwrap(), Vec::<String>::new());
    });
}

#[test]
fn error_names_the_failed_operation() {
    in_namespace(|| {
        ip("link set lo up");
        let multicast = Routing { lo_addresses: vec!["ff02::1/128".parse().unwrap()], local_delivery: None };
        assert_eq!(
            apply(&multicast).unwrap_err().to_string(),
            "cannot add address ff02::1/128 to lo: Cannot assign requested address (os error 99)"
        );
    });
}
