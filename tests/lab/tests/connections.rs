//! Two namespaces, a cable between them, and connections over it, without any rule.
#![allow(clippy::unwrap_used, reason = "helpers of tests may panic like tests")]

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};

use weir_lab::{Dial, Echo, Netns, Sighting, User, link, privilege};

struct Cable {
    near: Netns,
    far: Netns,
}

fn cable() -> Cable {
    let (near, far) = (Netns::new("near").unwrap(), Netns::new("far").unwrap());
    link::veth((&near, "eth0"), (&far, "eth0")).unwrap();
    for (netns, host) in [(&near, 2), (&far, 1)] {
        link::add_address(netns, "eth0", format!("10.76.0.{host}/24").parse().unwrap()).unwrap();
        link::add_address(netns, "eth0", format!("fd76::{host}/64").parse().unwrap()).unwrap();
    }
    for gateway in ["10.76.0.1", "fd76::1"] {
        link::add_default_route(&near, gateway.parse().unwrap()).unwrap();
    }
    Cable { near, far }
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

#[test]
fn a_listener_tells_what_it_saw() {
    if !privilege::available_or_skip() {
        return;
    }
    let cable = cable();
    let _echo = Echo::start(&cable.far, User::of(2000), &[9000]).unwrap();
    for (to, from) in [("10.76.0.1:9000", "10.76.0.2"), ("[fd76::1]:9000", "fd76::2")] {
        let Sighting { port, local, peer, .. } =
            Dial::new(User::of(2000), address(to)).go(&cable.near).unwrap().unwrap();
        assert_eq!((port, local, peer.ip()), (9000, address(to), from.parse::<IpAddr>().unwrap()));
    }
}

#[test]
fn the_source_address_can_be_chosen() {
    if !privilege::available_or_skip() {
        return;
    }
    let cable = cable();
    let _echo = Echo::start(&cable.near, User::ROOT, &[8080]).unwrap();
    link::add_address(&cable.near, "lo", "::6/128".parse().unwrap()).unwrap();
    for (to, from) in [("10.76.0.2:8080", "127.0.0.6"), ("[fd76::2]:8080", "::6")] {
        let from: IpAddr = from.parse().unwrap();
        let sighting = Dial::new(User::PROXY, address(to)).from(from).go(&cable.near).unwrap().unwrap();
        assert_eq!(sighting.peer.ip(), from);
    }
}

#[test]
fn a_closed_port_is_refused() {
    if !privilege::available_or_skip() {
        return;
    }
    let cable = cable();
    let answer = Dial::new(User::ROOT, address("[fd76::1]:9000")).go(&cable.near).unwrap();
    assert_eq!(answer.unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn a_taken_port_is_named() {
    if !privilege::available_or_skip() {
        return;
    }
    let cable = cable();
    let _echo = Echo::start(&cable.near, User::ROOT, &[8080]).unwrap();
    let Err(error) = Echo::start(&cable.near, User::ROOT, &[8080]) else { panic!("two listeners on one port") };
    assert!(error.to_string().starts_with("listening on port 8080 in near: "), "{error}");
}

#[test]
fn a_thread_becomes_another_user_and_the_process_does_not() {
    if !privilege::available_or_skip() {
        return;
    }
    let cable = cable();
    let ids = || {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = |name: &str| status.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
        (line("Uid:"), line("Gid:"))
    };
    let before = ids();
    // real, effective, saved, file system
    let inside = cable.near.run_as(User { uid: 2000, gid: 1337 }, ids).unwrap();
    assert_eq!(inside, ("Uid:\t0\t0\t0\t2000".to_owned(), "Gid:\t0\t0\t0\t1337".to_owned()));
    assert_eq!(ids(), before);
}
