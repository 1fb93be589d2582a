//! Connections between two namespaces without rules.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};

use weir_lab::{ConnectionInfo, Dial, Netns, TcpEcho, User, link, privilege};

struct Pair {
    near: Netns,
    far: Netns,
}

fn connected_pair() -> Pair {
    let (near, far) = (Netns::new("near").unwrap(), Netns::new("far").unwrap());
    link::veth((&near, "eth0"), (&far, "eth0")).unwrap();
    for (netns, host) in [(&near, 2), (&far, 1)] {
        link::add_address(netns, "eth0", format!("10.76.0.{host}/24").parse().unwrap()).unwrap();
        link::add_address(netns, "eth0", format!("fd76::{host}/64").parse().unwrap()).unwrap();
    }
    for gateway in ["10.76.0.1", "fd76::1"] {
        link::add_default_route(&near, gateway.parse().unwrap()).unwrap();
    }
    Pair { near, far }
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

#[test]
fn listener_replies_with_connection_info() {
    if !privilege::available_or_skip() {
        return;
    }
    let pair = connected_pair();
    let _echo = TcpEcho::start(&pair.far, User::with_id(2000), &[9000]).unwrap();
    for (to, from) in [("10.76.0.1:9000", "10.76.0.2"), ("[fd76::1]:9000", "fd76::2")] {
        let ConnectionInfo { port, local, peer, .. } =
            Dial::new(User::with_id(2000), address(to)).connect_in(&pair.near).unwrap().unwrap();
        assert_eq!((port, local, peer.ip()), (9000, address(to), from.parse::<IpAddr>().unwrap()));
    }
}

#[test]
fn source_address_can_be_set() {
    if !privilege::available_or_skip() {
        return;
    }
    let pair = connected_pair();
    let _echo = TcpEcho::start(&pair.near, User::ROOT, &[8080]).unwrap();
    link::add_address(&pair.near, "lo", "::6/128".parse().unwrap()).unwrap();
    for (to, from) in [("10.76.0.2:8080", "127.0.0.6"), ("[fd76::2]:8080", "::6")] {
        let from: IpAddr = from.parse().unwrap();
        let info = Dial::new(User::PROXY, address(to)).from(from).connect_in(&pair.near).unwrap().unwrap();
        assert_eq!(info.peer.ip(), from);
    }
}

#[test]
fn closed_port_refuses_connections() {
    if !privilege::available_or_skip() {
        return;
    }
    let pair = connected_pair();
    let answer = Dial::new(User::ROOT, address("[fd76::1]:9000")).connect_in(&pair.near).unwrap();
    assert_eq!(answer.unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn error_names_port_in_use() {
    if !privilege::available_or_skip() {
        return;
    }
    let pair = connected_pair();
    let _echo = TcpEcho::start(&pair.near, User::ROOT, &[8080]).unwrap();
    let Err(error) = TcpEcho::start(&pair.near, User::ROOT, &[8080]) else { panic!("two listeners on one port") };
    assert!(error.to_string().starts_with("cannot listen on port 8080 in near: "), "{error}");
}

#[test]
fn only_the_thread_becomes_another_user() {
    if !privilege::available_or_skip() {
        return;
    }
    let pair = connected_pair();
    let ids = || {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = |name: &str| status.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
        (line("Uid:"), line("Gid:"))
    };
    let before = ids();
    // real, effective, saved, file system
    let inside = pair.near.run_as(User { uid: 2000, gid: 1337 }, ids).unwrap();
    assert_eq!(inside, ("Uid:\t0\t0\t0\t2000".to_owned(), "Gid:\t0\t0\t0\t1337".to_owned()));
    assert_eq!(ids(), before);
}
