//! TPROXY mode and DNS capture.

use std::net::IpAddr;

use iptables_rules::CaptureConfig;
use iptables_rules::config::{DnsCapture, InterceptionMode};
use weir_lab::{Dial, TcpEcho, UdpEcho, User};
use weir_tests::privileged;

use super::backend::Backend;
use super::world::{APP_USER, Case, Ip, Outcome, Side, World};

/// DNS port of the Istio agent.
const AGENT: u16 = 15053;

#[test]
fn tproxy_keeps_both_addresses_of_inbound_connections() {
    if !privileged() {
        return;
    }
    let config = CaptureConfig {
        mode: InterceptionMode::Tproxy,
        inbound_ports_exclude: vec![8090, 15020, 15021, 15090],
        ..CaptureConfig::default()
    };
    for backend in Backend::all() {
        let world = World::with_transparent_proxy();
        backend.install(&world.pod, &config);
        for ip in Ip::BOTH {
            for (what, address, port) in [
                ("the app", ip.pod(), 8080),
                ("a closed port", ip.pod(), 7777),
                ("a secondary address", ip.pod_secondary(), 8080),
            ] {
                let seen =
                    Dial::new(User::ROOT, (address, port).into()).from(ip.peer()).connect_in(&world.peer).unwrap();
                let seen = seen.unwrap_or_else(|error| panic!("{backend:?}: peer calls {what}, {ip:?}: {error}"));
                assert_eq!(
                    (seen.port, seen.local, seen.peer.ip()),
                    (15006, (address, port).into(), ip.peer()),
                    "{backend:?}: peer calls {what}"
                );
            }
        }
        let cases: Vec<Case> = Ip::BOTH.into_iter().flat_map(cases_without_tproxy).collect();
        world.check(&format!("{backend:?}"), &cases);
    }
}

/// Connections that TPROXY does not change.
fn cases_without_tproxy(ip: Ip) -> Vec<Case> {
    use Outcome::{Direct, Outbound};
    let (app, proxy) = (Side::Pod(APP_USER), Side::Pod(User::PROXY));
    vec![
        Case::new("peer calls an excluded port", Side::Peer, (ip.pod(), 8090), Direct),
        Case::new("peer calls the health port", Side::Peer, (ip.pod(), 15021), Direct),
        Case::new("app calls out", app, (ip.peer(), 9000), Outbound),
        Case::new("proxy calls out", proxy, (ip.peer(), 9000), Direct),
        Case::new("app calls itself over loopback", app, (ip.loopback(), 8080), Direct),
        Case::new("app calls its own pod", app, (ip.pod(), 8080), Direct),
        Case::new("proxy passes an inbound connection on", proxy, (ip.pod(), 8080), Direct).from(ip.passthrough()),
    ]
}

/// A datagram and the port that must answer it.
struct Query {
    what: &'static str,
    user: User,
    to: (IpAddr, u16),
    answered_on: u16,
}

/// Sends the queries with every backend, and checks that TCP to port 53 is treated the same.
fn check_dns(dns: &DnsCapture, queries: impl Fn(Ip) -> Vec<Query>) {
    if !privileged() {
        return;
    }
    let config = CaptureConfig { dns: dns.clone(), ..CaptureConfig::default() };
    for backend in Backend::all() {
        let world = World::new();
        backend.install(&world.pod, &config);
        let at = |ip: fn(Ip) -> IpAddr, port: u16| Ip::BOTH.map(|family| (ip(family), port).into());
        let servers = [at(Ip::peer, 53), at(Ip::service, 53), at(Ip::peer, 9000)].concat();
        let _servers = UdpEcho::start(&world.peer, User::ROOT, &servers).unwrap();
        let _servers_tcp = TcpEcho::start(&world.peer, User::ROOT, &[53]).unwrap();
        let _agent = UdpEcho::start(&world.pod, User::PROXY, &at(Ip::loopback, AGENT)).unwrap();
        let _agent_tcp = TcpEcho::start(&world.pod, User::PROXY, &[AGENT]).unwrap();
        for query in Ip::BOTH.into_iter().flat_map(&queries) {
            let dial = Dial::new(query.user, query.to.into());
            let seen =
                dial.send_datagram_in(&world.pod).unwrap().map(|seen| seen.port).map_err(|error| error.to_string());
            assert_eq!(seen, Ok(query.answered_on), "{backend:?}: {} -> {:?} over UDP", query.what, query.to);
            if query.to.1 == 53 && query.to.0 != Ip::V4.loopback() && query.to.0 != Ip::V6.loopback() {
                let seen =
                    dial.connect_in(&world.pod).unwrap().map(|seen| seen.port).map_err(|error| error.to_string());
                let expected =
                    if query.answered_on == 53 && query.user == APP_USER { 15001 } else { query.answered_on };
                assert_eq!(seen, Ok(expected), "{backend:?}: {} -> {:?} over TCP", query.what, query.to);
            }
        }
    }
}

fn query(what: &'static str, user: User, to: (IpAddr, u16), answered_on: u16) -> Query {
    Query { what, user, to, answered_on }
}

#[test]
fn all_dns_requests_of_the_application_go_to_the_agent() {
    check_dns(&DnsCapture::All, |ip| {
        vec![
            query("app asks a server", APP_USER, (ip.peer(), 53), AGENT),
            query("app asks another server", APP_USER, (ip.service(), 53), AGENT),
            query("app asks a server on loopback", APP_USER, (ip.loopback(), 53), AGENT),
            query("agent asks a server", User::PROXY, (ip.peer(), 53), 53),
            query("app sends other datagrams", APP_USER, (ip.peer(), 9000), 9000),
        ]
    });
}

#[test]
fn dns_requests_to_listed_servers_go_to_the_agent() {
    let servers = Ip::BOTH.map(Ip::peer).to_vec();
    check_dns(&DnsCapture::Servers(servers), |ip| {
        vec![
            query("app asks a listed server", APP_USER, (ip.peer(), 53), AGENT),
            query("app asks another server", APP_USER, (ip.service(), 53), 53),
            query("agent asks a listed server", User::PROXY, (ip.peer(), 53), 53),
        ]
    });
}

/// The control: without rules every datagram arrives at its destination.
#[test]
fn without_rules_no_datagram_is_captured() {
    if !privileged() {
        return;
    }
    let world = World::new();
    for ip in Ip::BOTH {
        let to = (ip.peer(), 53).into();
        let _server = UdpEcho::start(&world.peer, User::ROOT, &[to]).unwrap();
        let seen = Dial::new(APP_USER, to).send_datagram_in(&world.pod).unwrap().unwrap();
        assert_eq!((seen.port, seen.local), (53, to));
    }
}
