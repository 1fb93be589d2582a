use super::*;
use crate::config::{CidrSelection, DnsCapture, InterceptionMode, Ipv6Policy};
use crate::ruleset::RuleReason;
use crate::{CaptureConfig, RuleSet};

const APP: Owner = Owner { uid: 2000, gid: 2000 };
const PROXY: Owner = Owner { uid: 1337, gid: 1337 };

fn planned(config: &CaptureConfig) -> RuleSet {
    crate::plan(config).unwrap()
}

fn sent(owner: Owner, by: &str, to: &str) -> Packet {
    let to: std::net::SocketAddr = to.parse().unwrap();
    let source = if to.is_ipv4() { "10.0.0.2" } else { "fd00::2" };
    Packet {
        origin: PacketOrigin::Sent { interface: by.to_owned(), owner: Some(owner) },
        transport: Transport::Tcp,
        source: source.parse().unwrap(),
        source_port: 40000,
        destination: to.ip(),
        destination_port: to.port(),
        mark: 0,
        connection_mark: 0,
        state: ConntrackState::New,
    }
}

fn arriving(to: &str) -> Packet {
    let origin = PacketOrigin::Received { interface: "eth0".to_owned() };
    Packet { origin, source: "10.0.0.9".parse().unwrap(), ..sent(APP, "", to) }
}

fn disposition(config: &CaptureConfig, packet: &Packet) -> Disposition {
    planned(config).trace(packet).disposition
}

fn passes(interface: &str) -> Disposition {
    Disposition::Passes { interface: Some(interface.to_owned()) }
}

#[test]
fn default_rules_match_measurements() {
    let config = CaptureConfig::default();
    let (outbound, inbound) = (Disposition::Redirected { port: 15001 }, Disposition::Redirected { port: 15006 });
    for (packet, expected) in [
        (sent(APP, "eth0", "192.0.2.1:443"), &outbound),
        (sent(APP, "eth0", "[2001:db8::1]:443"), &outbound),
        (sent(APP, "eth0", "192.0.2.1:15020"), &passes("eth0")),
        (sent(PROXY, "eth0", "192.0.2.1:443"), &passes("eth0")),
        (sent(Owner { uid: 2000, gid: 1337 }, "eth0", "192.0.2.1:443"), &passes("eth0")),
        (sent(APP, "lo", "127.0.0.1:8080"), &passes("lo")),
        (sent(APP, "lo", "10.0.0.2:8080"), &passes("lo")),
        (sent(PROXY, "lo", "10.0.0.2:8080"), &inbound),
        (sent(PROXY, "lo", "10.0.0.2:15008"), &passes("lo")),
        (arriving("10.0.0.2:8080"), &inbound),
        (arriving("10.0.0.2:15008"), &Disposition::Passes { interface: None }),
        (arriving("10.0.0.2:15090"), &Disposition::Passes { interface: None }),
        (Packet { transport: Transport::Udp, ..sent(APP, "eth0", "192.0.2.1:53") }, &passes("eth0")),
    ] {
        assert_eq!(disposition(&config, &packet), *expected, "{packet:?}");
    }
}

#[test]
fn redirected_packet_is_not_translated_again_on_lo() {
    let trace = planned(&CaptureConfig::default()).trace(&sent(APP, "eth0", "192.0.2.1:443"));
    let places: Vec<_> = trace.tables.iter().map(|visit| (visit.hook, &*visit.table, visit.skip_reason)).collect();
    assert_eq!(
        places,
        [(Hook::Output, "nat", None), (Hook::Prerouting, "nat", Some("the connection has been redirected already"))]
    );
    let (table, rule) = trace.decided_by.unwrap();
    let visit = &trace.tables[table].rules[rule];
    assert_eq!((&*visit.chain, visit.depth, visit.reason), ("ISTIO_REDIRECT", 2, Some(RuleReason::Redirect)));
    assert_eq!(visit.result, RuleResult::Match(vec![Effect::Redirect(15001)]));
}

#[test]
fn uncaptured_sent_packet_is_not_captured_as_inbound() {
    let trace = planned(&CaptureConfig::default()).trace(&sent(APP, "lo", "10.0.0.2:8080"));
    assert_eq!(trace.disposition, passes("lo"));
    assert!(trace.tables.last().unwrap().skip_reason.unwrap().starts_with("OUTPUT decided"));
    let (table, rule) = trace.decided_by.unwrap();
    assert_eq!(trace.tables[table].rules[rule].reason, Some(RuleReason::AppLoopback));
}

#[test]
fn only_first_packets_are_translated() {
    let config = CaptureConfig::default();
    for state in [ConntrackState::Established, ConntrackState::Invalid] {
        let packet = Packet { state, ..arriving("10.0.0.2:8080") };
        assert_eq!(disposition(&config, &packet), Disposition::Passes { interface: None }, "{state}");
    }
    let invalid = Packet { state: ConntrackState::Invalid, ..arriving("10.0.0.2:8080") };
    assert_eq!(disposition(&CaptureConfig { drop_invalid: true, ..config }, &invalid), Disposition::Dropped);
}

#[test]
fn tproxy_marks_connections_and_exempts_the_proxy() {
    let config = CaptureConfig { mode: InterceptionMode::Tproxy, ..CaptureConfig::default() };
    let trace = planned(&config).trace(&arriving("10.0.0.2:8080"));
    assert_eq!((trace.disposition, trace.mark), (Disposition::Tproxied { port: 15006, redirected: None }, 1337));
    // The proxy calls the application with the address of the client and the mark, which is saved with the connection.
    let to_app = Packet { mark: 1337, source: "10.0.0.9".parse().unwrap(), ..sent(PROXY, "lo", "10.0.0.2:8080") };
    let trace = planned(&config).trace(&to_app);
    assert_eq!((trace.mark, trace.connection_mark), (1337, 1337));
    // The reply of the application is delivered locally because of the mark of its connection.
    let answer =
        Packet { connection_mark: 1337, state: ConntrackState::Established, ..sent(APP, "eth0", "10.0.0.9:40000") };
    let trace = planned(&config).trace(&answer);
    assert_eq!((trace.disposition, trace.mark), (passes("lo"), 1337));
}

#[test]
fn assigned_and_redirected_packet_keeps_the_socket() {
    let config = CaptureConfig {
        mode: InterceptionMode::Tproxy,
        reroute_interfaces: vec![crate::config::InterfaceName::new("eth0").unwrap()],
        ..CaptureConfig::default()
    };
    let expected = Disposition::Tproxied { port: 15006, redirected: Some(15001) };
    assert_eq!(disposition(&config, &arriving("10.0.0.2:8080")), expected);
}

#[test]
fn first_conntrack_zone_counts() {
    let config = CaptureConfig { dns: DnsCapture::All, ..CaptureConfig::default() };
    let dns = |owner| Packet { transport: Transport::Udp, ..sent(owner, "eth0", "192.0.2.1:53") };
    let trace = planned(&config).trace(&dns(APP));
    assert_eq!((trace.disposition, trace.zone), (Disposition::Redirected { port: 15053 }, 2));
    let trace = planned(&config).trace(&dns(PROXY));
    assert_eq!((trace.disposition, trace.zone), (passes("eth0"), 1));
}

#[test]
fn excluded_family_has_no_rules() {
    let config = CaptureConfig { ipv6: Ipv6Policy::Leave, ..CaptureConfig::default() };
    let trace = planned(&config).trace(&sent(APP, "eth0", "[2001:db8::1]:443"));
    assert_eq!((trace.disposition, trace.tables, trace.decided_by), (passes("eth0"), vec![], None));
}

#[test]
fn mismatch_names_the_condition() {
    let config = CaptureConfig {
        outbound_cidrs: CidrSelection::Only(vec!["10.0.0.0/8".parse().unwrap()]),
        ..CaptureConfig::default()
    };
    let trace = planned(&config).trace(&sent(APP, "eth0", "192.0.2.1:443"));
    assert_eq!((&trace.disposition, trace.decided_by), (&passes("eth0"), None));
    let last = trace.tables[0].rules.last().unwrap();
    assert_eq!(last.result, RuleResult::NoMatch("destination 192.0.2.1 is not in 10.0.0.0/8".to_owned()));
}

mod texts {
    use super::*;
    use crate::config::{Group, OwnerGroups};
    use crate::restore::{RestoreFamily, restore_text};

    /// Foreign rules, as `iptables-save` prints them.
    const FOREIGN: &str = "*nat\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:KUBE - [0:0]\n\
        -A PREROUTING -p icmp -j RETURN\n-A PREROUTING ! -p udp -m statistic --mode random --probability 0.5 -j KUBE\n\
        -A OUTPUT -j KUBE\n-A KUBE -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.1:80\nCOMMIT\n";

    #[test]
    fn unknown_conditions_and_actions_are_uncertain() {
        let chains = Chains::from_iptables_save(FOREIGN);
        let trace = chains.trace(&arriving("10.0.0.2:80"));
        assert_eq!(trace.uncertain_rules.len(), 1, "{:?}", trace.uncertain_rules);
        assert!(trace.uncertain_rules[0].contains("statistic --mode random"), "{:?}", trace.uncertain_rules);
        assert_eq!(
            chains.trace(&Packet { transport: Transport::Udp, ..arriving("10.0.0.2:80") }).uncertain_rules,
            [""; 0]
        );
        let trace = chains.trace(&sent(APP, "eth0", "192.0.2.1:80"));
        assert_eq!(trace.uncertain_rules, ["DNAT --to-destination 10.0.0.1:80"]);
    }

    #[test]
    fn inserts_and_policies_of_a_text_count() {
        let insert = "* nat\n-A OUTPUT -p tcp -j REDIRECT --to-ports 1\n-I OUTPUT 1 -p tcp -j RETURN\nCOMMIT\n";
        let policy = "*mangle\n:OUTPUT DROP [0:0]\n[7:8] -A OUTPUT -p tcp -m tcp --dport 80 -j ACCEPT\nCOMMIT\n";
        for (text, to, fate) in [
            (insert, "192.0.2.1:80", passes("eth0")),
            (policy, "192.0.2.1:80", passes("eth0")),
            (policy, "192.0.2.1:81", Disposition::Dropped),
        ] {
            assert_eq!(Chains::from_iptables_save(text).trace(&sent(APP, "eth0", to)).disposition, fate, "{text} {to}");
        }
    }

    proptest::proptest! {
        /// The plan and its parsed iptables text have the same disposition for every packet.
        #[test]
        fn plan_and_text_agree(
            config in crate::arbitrary::config_by_id(),
            packets in proptest::collection::vec(crate::arbitrary::packet(), 16),
        ) {
            let rules = planned(&config);
            for packet in packets.iter().map(|packet| packet.towards(&config)) {
                let planned = rules.trace(&packet);
                let family = if packet.destination.is_ipv4() { RestoreFamily::V4 } else { RestoreFamily::V6 };
                // A listing has no inserts, so the plan orders the rules.
                let text = saved_text(&rules, family, packet.destination);
                let routing = Chains { local_delivery: rules.routing.local_delivery, ..Chains::default() };
                let found = Chains::from_iptables_save(&text).merge(routing).trace(&packet);
                proptest::prop_assert_eq!(&found.uncertain_rules, &Vec::<String>::new());
                proptest::prop_assert_eq!(
                    (&found.disposition, found.mark, found.connection_mark, found.zone),
                    (&planned.disposition, planned.mark, planned.connection_mark, planned.zone)
                );
            }
        }
    }

    #[test]
    fn reasons_are_inferred_from_shapes() {
        let name = |name| crate::config::InterfaceName::new(name).unwrap();
        let base = CaptureConfig {
            outbound_cidrs_exclude: vec!["10.1.0.0/16".parse().unwrap(), "fd00:1::/32".parse().unwrap()],
            outbound_ports: vec![9000],
            outbound_ports_exclude: vec![15020, 1, 2, 3, 4, 5],
            inbound_ports_exclude: vec![15020, 15021, 15090, 7, 8],
            exclude_interfaces: vec![name("net1")],
            reroute_interfaces: vec![name("tap0")],
            owner_groups: OwnerGroups::AllBut(vec![Group::Id(3001)]),
            dns: DnsCapture::All,
            drop_invalid: true,
            ..CaptureConfig::default()
        };
        let only = CaptureConfig {
            inbound_ports: crate::config::PortSelection::Only(vec![80, 443]),
            outbound_cidrs: CidrSelection::Only(vec!["10.0.0.0/8".parse().unwrap()]),
            owner_groups: OwnerGroups::Only(vec![Group::Id(1)]),
            ..base.clone()
        };
        let tproxy = CaptureConfig { mode: InterceptionMode::Tproxy, ..base.clone() };
        for config in [base, only, tproxy] {
            let rules = planned(&config);
            let packet: std::net::IpAddr = [10, 0, 0, 2].into();
            let text = saved_text(&rules, RestoreFamily::V4, packet);
            let planned = Chains::from_rule_set(&rules, packet);
            let read = Chains::from_iptables_save(&text);
            for chain in &planned.chains {
                let same = read.chains.iter().find(|other| (&other.table, &other.name) == (&chain.table, &chain.name));
                let reasons = |chain: &Chain| chain.rules.iter().map(|rule| rule.reason).collect::<Vec<_>>();
                assert_eq!(reasons(same.unwrap()), reasons(chain), "{} {}", chain.table, chain.name);
            }
        }
    }

    /// Formats rules as `iptables-save` lists them, with inserts resolved.
    fn saved_text(rules: &RuleSet, family: RestoreFamily, packet: std::net::IpAddr) -> String {
        let mut text = String::new();
        for section in restore_text(rules, family).split("COMMIT\n") {
            let Some((header, lines)) = section.split_once('\n') else { continue };
            let table = crate::ruleset::Table::ALL.into_iter().find(|table| header == format!("* {}", table.name()));
            let mut chains: Vec<&str> = vec!["PREROUTING", "OUTPUT"];
            chains.extend(lines.lines().filter_map(|line| line.strip_prefix("-N ")));
            let mut listed = vec![header.to_owned()];
            listed.extend(chains.iter().map(|chain| format!(":{chain} - [0:0]")));
            for chain in chains {
                let ordered = rules.chain_rules(table.unwrap(), chain, packet);
                listed.extend(ordered.iter().map(|rule| format!("-A {chain} {}", crate::restore::rule_spec(rule))));
            }
            listed.push("COMMIT\n".to_owned());
            text += &listed.join("\n");
        }
        text
    }
}

#[test]
fn jumps_that_multiply_are_cut_off() {
    use std::fmt::Write as _;
    let mut save = "*nat\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT -j c0\n:c30 - [0:0]\n".to_owned();
    for number in 0..30 {
        let _ =
            write!(save, ":c{number} - [0:0]\n-A c{number} -j c{next}\n-A c{number} -j c{next}\n", next = number + 1);
    }
    let trace = Chains::from_iptables_save(&(save + "COMMIT\n")).trace(&sent(APP, "eth0", "192.0.2.1:80"));
    assert_eq!(trace.uncertain_rules, ["all after the first 200000 rules, which are not evaluated"]);
}
