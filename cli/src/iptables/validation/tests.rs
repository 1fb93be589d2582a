use iptables_rules::CaptureConfig;
use iptables_rules::config::{CidrSelection, DnsCapture, Group, InterfaceName, OwnerGroups};

use super::checks::{Expected, checks};
use super::*;

const PROXY: User = User { uid: 1337, gid: 1337 };
const APP: User = User { uid: 1000, gid: 1000 };

/// The checks of somebody without capabilities, as `direction, family: what -> expected`, without those of IPv6.
fn of(config: &CaptureConfig, we: User, anybody: bool) -> Vec<String> {
    let situation = Situation::new(config, we, anybody, false, 15002);
    let (checks, _) = checks(config, &situation);
    checks.iter().map(|check| format!("{check} -> {:?}", check.expected)).collect()
}

#[test]
fn the_proxys_user_shows_istios_connection_and_that_the_proxy_is_left_alone() {
    let dns = CaptureConfig { dns: DnsCapture::All, ..CaptureConfig::default() };
    insta::assert_snapshot!(of(&dns, PROXY, false).join("\n"));
}

#[test]
fn another_user_shows_the_applications_side_and_anybody_both() {
    let dns = CaptureConfig { dns: DnsCapture::All, ..CaptureConfig::default() };
    let app = of(&dns, APP, false);
    insta::assert_snapshot!(app.join("\n"));
    assert_eq!(of(&dns, User::ROOT, true).len(), of(&dns, PROXY, false).len() + app.len());
}

#[test]
fn ports_and_addresses_are_those_that_the_rules_treat_like_any_other() {
    let config = CaptureConfig {
        outbound_ports_exclude: vec![15002, 15100],
        outbound_cidrs_exclude: vec!["192.0.2.0/24".parse().unwrap()],
        ..CaptureConfig::default()
    };
    let checks = of(&config, APP, false);
    assert!(checks[0].contains("to 198.51.100.1:15101/tcp -> Arrives(15001)"), "{checks:?}");
    let listed = CaptureConfig {
        outbound_cidrs: CidrSelection::Only(vec!["10.96.0.0/12".parse().unwrap()]),
        ..CaptureConfig::default()
    };
    assert!(of(&listed, APP, false)[0].contains("to 10.96.0.1:15002/tcp"));
    let by_port = CaptureConfig {
        outbound_cidrs: CidrSelection::Only(vec![]),
        outbound_ports: vec![9200],
        ..CaptureConfig::default()
    };
    assert!(of(&by_port, APP, false)[0].contains("to 192.0.2.1:9200/tcp"));
    let nothing = CaptureConfig { outbound_cidrs: CidrSelection::Only(vec![]), ..CaptureConfig::default() };
    assert_eq!(of(&nothing, APP, false).len(), 1, "what the application says to itself");
}

#[test]
fn users_fit_the_lists_of_the_configuration() {
    let config = CaptureConfig {
        proxy_uids: vec![2000],
        proxy_gids: vec![2001],
        owner_groups: OwnerGroups::AllBut(vec![Group::Id(2000)]),
        ..CaptureConfig::default()
    };
    let situation = Situation::new(&config, User::ROOT, true, false, 15002);
    assert_eq!(situation.proxy, Some(User { uid: 2000, gid: 2001 }));
    assert_eq!(situation.app, Some(User { uid: 2001, gid: 2002 }));
    let only = CaptureConfig { owner_groups: OwnerGroups::Only(vec![Group::Id(7)]), ..config };
    assert_eq!(Situation::new(&only, APP, false, false, 15002).app, None);
    assert_eq!(Situation::new(&only, User { uid: 1, gid: 7 }, false, false, 15002).app, Some(User { uid: 1, gid: 7 }));
}

#[test]
fn what_cannot_be_shown_is_said() {
    let lo = CaptureConfig { exclude_interfaces: vec![InterfaceName::new("lo").unwrap()], ..CaptureConfig::default() };
    let notes =
        |config: &CaptureConfig, we| checks(config, &Situation::new(config, we, false, true, 15002)).1.join("\n");
    assert!(notes(&lo, PROXY).contains("lo is an excluded interface"));
    assert!(notes(&CaptureConfig::default(), PROXY).contains("this is the proxy's user"));
    assert!(notes(&CaptureConfig::default(), APP).contains("connections of the proxy: not tested"));
}

#[test]
fn the_advice_follows_from_what_works() {
    let config = CaptureConfig { dns: DnsCapture::All, ..CaptureConfig::default() };
    let (all, _) = checks(&config, &Situation::new(&config, PROXY, false, true, 15002));
    // Those that `fails` picks fail; the others work.
    let advised = |fails: &dyn Fn(&Check) -> bool| {
        let (failed, shown): (Vec<Check>, Vec<Check>) = all.iter().partition(|check| fails(check));
        let failed: Vec<_> = failed.into_iter().map(|check| (check, String::new())).collect();
        advice(&shown, &failed)
    };
    assert!(advised(&|check| check.needs_rules()).contains("no capture rules work here"));
    assert!(advised(&|check| check.needs_rules() && check.to.is_ipv6()).contains("IPv4 is captured, IPv6 is not"));
    assert!(advised(&|check| check.direction == Direction::Dns).contains("made without DNS capture"));
    assert!(advised(&|check| check.expected == Expected::StaysAway).contains("the rules are incomplete"));
}

#[test]
fn an_outcome_is_held_against_what_was_expected() {
    let config = CaptureConfig::default();
    let (all, _) = checks(&config, &Situation::new(&config, PROXY, false, false, 15002));
    let (redirected, left_alone) = (&all[0], &all[1]);
    let arrived = |port, original| Outcome::Arrived { port, original };
    assert_eq!(redirected.objection(&arrived(15006, Some(15002))), None);
    assert!(redirected.objection(&arrived(15006, Some(80))).unwrap().contains("as a connection to port 80"));
    assert!(
        redirected
            .objection(&arrived(15001, Some(15002)))
            .unwrap()
            .contains("arrived on port 15001; it should have arrived on port 15006")
    );
    assert!(redirected.objection(&Outcome::Elsewhere).is_some() && redirected.objection(&Outcome::Silent).is_some());
    assert!(left_alone.objection(&arrived(15006, Some(15002))).unwrap().contains("should not have been redirected"));
    for fine in [Outcome::Silent, Outcome::Elsewhere, Outcome::Refused(std::io::ErrorKind::ConnectionRefused.into())] {
        assert_eq!(left_alone.objection(&fine), None);
    }
}
