//! The default configuration: 23 connections per family.

use std::net::SocketAddrV6;

use iptables_rules::CaptureConfig;
use weir_lab::{User, link};
use weir_tests::privileged;

use super::backend::Backend;
use super::world::{APP_USER, Case, Ip, Outcome, Side, World};

const PROXY_UID_OTHER_GID: User = User { uid: 1337, gid: 2000 };
const APP_UID_PROXY_GID: User = User { uid: 2000, gid: 1337 };

fn cases(ip: Ip) -> Vec<Case> {
    use Outcome::{Direct, Inbound, Outbound};
    let app = Side::Pod(APP_USER);
    let proxy = Side::Pod(User::PROXY);
    let (pod, peer, lo) = (ip.pod(), ip.peer(), ip.loopback());
    let into = |what, port, outcome| {
        let case = Case::new(what, Side::Peer, (pod, port), outcome);
        if outcome == Inbound { case.arriving_at(ip.redirected_to()) } else { case }
    };
    vec![
        Case::new("app calls out", app, (peer, 9000), Outbound).arriving_at(lo),
        Case::new("root calls out", Side::Pod(User::ROOT), (peer, 9000), Outbound).arriving_at(lo),
        Case::new("app calls a closed port", app, (peer, 9999), Outbound).arriving_at(lo),
        Case::new("app calls through the default route", app, (ip.service(), 9000), Outbound).arriving_at(lo),
        Case::new("proxy calls out", proxy, (peer, 9000), Direct),
        Case::new("proxy's user in another group calls out", Side::Pod(PROXY_UID_OTHER_GID), (peer, 9000), Direct),
        Case::new("proxy's group calls out", Side::Pod(APP_UID_PROXY_GID), (peer, 9000), Direct),
        into("peer calls the app", 8080, Inbound),
        into("peer calls a closed port", 7777, Inbound),
        into("peer calls the outbound port", 15001, Inbound),
        into("peer calls the inbound port", 15006, Inbound),
        into("peer calls the tunnel port", 15008, Direct),
        into("peer calls the status port", 15020, Direct),
        into("peer calls the health port", 15021, Direct),
        into("peer calls the metrics port", 15090, Direct),
        Case::new("app calls itself over loopback", app, (lo, 8080), Direct),
        Case::new("app calls its own pod", app, (pod, 8080), Direct),
        Case::new("proxy calls the app over loopback", proxy, (lo, 8080), Direct),
        Case::new("proxy calls its own tunnel port", proxy, (pod, 15008), Direct),
        Case::new("proxy passes an inbound connection on", proxy, (pod, 8080), Direct).from(ip.passthrough()),
        Case::new("proxy's group calls its own pod", Side::Pod(APP_UID_PROXY_GID), (pod, 8080), Direct),
        Case::new("proxy calls its own pod", proxy, (pod, 8080), Inbound).arriving_at(lo),
        Case::new("proxy's user in another group, own pod", Side::Pod(PROXY_UID_OTHER_GID), (pod, 8080), Inbound)
            .arriving_at(lo),
    ]
}

pub(crate) fn all_cases() -> Vec<Case> {
    let all: Vec<Case> = Ip::BOTH.into_iter().flat_map(cases).collect();
    assert_eq!(all.len(), 46);
    all
}

#[test]
fn every_connection_has_its_outcome() {
    if !privileged() {
        return;
    }
    for backend in Backend::all() {
        let world = World::new();
        backend.install(&world.pod, &CaptureConfig::default());
        world.check(&format!("{backend:?}"), &all_cases());
    }
}

/// The control: without rules, exactly the cases that need them fail.
#[test]
fn without_rules_nothing_is_captured() {
    if !privileged() {
        return;
    }
    let world = World::new();
    link::add_address(&world.pod, "lo", "::6/128".parse().unwrap()).unwrap();
    for case in all_cases() {
        // A connection to the inbound port arrives there without rules, too.
        let case =
            if case.to.port() == 15006 { Case { outcome: Outcome::Direct, arrives_at: None, ..case } } else { case };
        let held = world.try_case(&case);
        assert_eq!(held.is_ok(), case.outcome == Outcome::Direct, "without rules: {case}: {held:?}");
    }
}

#[test]
fn secondary_and_link_local_addresses_are_captured() {
    if !privileged() {
        return;
    }
    for backend in Backend::all() {
        let world = World::new();
        backend.install(&world.pod, &CaptureConfig::default());
        let mut cases: Vec<Case> = Ip::BOTH
            .map(|ip| {
                Case::new("secondary address", Side::Peer, (ip.pod_secondary(), 8080), Outcome::Inbound)
                    .arriving_at(ip.redirected_to())
            })
            .into();
        let address = link::link_local(&world.pod, "eth0").unwrap();
        let to = SocketAddrV6::new(address, 8080, 0, link::interface_index(&world.peer, "eth0").unwrap());
        // Redirection chooses an address of the same scope.
        let link_local = Case::new("link-local address", Side::Peer, (address.into(), 8080), Outcome::Inbound);
        cases.push(Case { to: to.into(), ..link_local }.arriving_at(address.into()));
        world.check(&format!("{backend:?}"), &cases);
    }
}
