use iptables_rules::CaptureConfig;
use iptables_rules::config::{CidrSelection, DnsCapture, Group, InterfaceName, OwnerGroups};

use super::check::{ConnectionResult, Expected};
use super::plan::{TestIdentities, checks};
use super::*;
use crate::identity::Identity;

const ROOT: Identity = Identity { uid: 0, gid: 0 };
const PROXY: Identity = Identity { uid: 1337, gid: 1337 };
const APP: Identity = Identity { uid: 1000, gid: 1000 };

/// The IPv4 checks, as `direction, family: what -> expected`.
fn of(config: &CaptureConfig, own: Identity, can_change_user: bool) -> Vec<String> {
    let identities = TestIdentities::new(config, own, can_change_user, false, 15002);
    let (checks, _) = checks(config, &identities);
    checks.iter().map(|check| format!("{check} -> {:?}", check.expected)).collect()
}

#[test]
fn proxy_user_verifies_inbound_capture_and_its_own_exclusion() {
    let dns = CaptureConfig { dns: DnsCapture::All, ..CaptureConfig::default() };
    insta::assert_snapshot!(of(&dns, PROXY, false).join("\n"));
}

#[test]
fn another_user_verifies_outbound_capture() {
    let dns = CaptureConfig { dns: DnsCapture::All, ..CaptureConfig::default() };
    let app = of(&dns, APP, false);
    insta::assert_snapshot!(app.join("\n"));
    assert_eq!(of(&dns, ROOT, true).len(), of(&dns, PROXY, false).len() + app.len());
}

#[test]
fn ports_and_addresses_are_not_treated_specially_by_rules() {
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
fn identities_fit_the_configured_users_and_groups() {
    let config = CaptureConfig {
        proxy_uids: vec![2000],
        proxy_gids: vec![2001],
        owner_groups: OwnerGroups::AllBut(vec![Group::Id(2000)]),
        ..CaptureConfig::default()
    };
    let identities = TestIdentities::new(&config, ROOT, true, false, 15002);
    assert_eq!(identities.proxy, Some(Identity { uid: 2000, gid: 2001 }));
    assert_eq!(identities.app, Some(Identity { uid: 2001, gid: 2002 }));
    let only = CaptureConfig { owner_groups: OwnerGroups::Only(vec![Group::Id(7)]), ..config };
    assert_eq!(TestIdentities::new(&only, APP, false, false, 15002).app, None);
    assert_eq!(
        TestIdentities::new(&only, Identity { uid: 1, gid: 7 }, false, false, 15002).app,
        Some(Identity { uid: 1, gid: 7 })
    );
}

#[test]
fn what_cannot_be_tested_is_noted() {
    let lo = CaptureConfig { exclude_interfaces: vec![InterfaceName::new("lo").unwrap()], ..CaptureConfig::default() };
    let notes = |config: &CaptureConfig, own| {
        checks(config, &TestIdentities::new(config, own, false, true, 15002)).1.join("\n")
    };
    assert!(notes(&lo, PROXY).contains("lo is an excluded interface"));
    assert!(notes(&CaptureConfig::default(), PROXY).contains("outbound traffic of the proxy's user is never captured"));
    assert!(notes(&CaptureConfig::default(), APP).contains("connections of the proxy: not tested"));
}

#[test]
fn advice_follows_from_what_works() {
    let config = CaptureConfig { dns: DnsCapture::All, ..CaptureConfig::default() };
    let (all, _) = checks(&config, &TestIdentities::new(&config, PROXY, false, true, 15002));
    // Those that `fails` picks fail; the others work.
    let advised = |fails: &dyn Fn(&Check) -> bool| {
        let (failed, shown): (Vec<Check>, Vec<Check>) = all.iter().partition(|check| fails(check));
        let failed: Vec<_> = failed.into_iter().map(|check| (check, String::new())).collect();
        advice(&shown, &failed)
    };
    assert!(advised(&|check| check.needs_rules()).contains("no capture rules work here"));
    assert!(advised(&|check| check.needs_rules() && check.to.is_ipv6()).contains("IPv4 is captured, IPv6 is not"));
    assert!(advised(&|check| check.direction == Direction::Dns).contains("made without DNS capture"));
    assert!(advised(&|check| check.expected == Expected::NotCaptured).contains("the rules are incomplete"));
}

#[test]
fn results_are_compared_with_expectations() {
    let config = CaptureConfig::default();
    let (all, _) = checks(&config, &TestIdentities::new(&config, PROXY, false, false, 15002));
    let (redirected, left_alone) = (&all[0], &all[1]);
    let arrived = |port, original| ConnectionResult::Arrived { port, original };
    assert_eq!(redirected.mismatch(&arrived(15006, Some(15002))), None);
    assert!(redirected.mismatch(&arrived(15006, Some(80))).unwrap().contains("as a connection to port 80"));
    assert!(
        redirected
            .mismatch(&arrived(15001, Some(15002)))
            .unwrap()
            .contains("arrived on port 15001; it should have arrived on port 15006")
    );
    assert!(
        redirected.mismatch(&ConnectionResult::ArrivedElsewhere).is_some()
            && redirected.mismatch(&ConnectionResult::TimedOut).is_some()
    );
    assert!(left_alone.mismatch(&arrived(15006, Some(15002))).unwrap().contains("should not have been redirected"));
    for fine in [
        ConnectionResult::TimedOut,
        ConnectionResult::ArrivedElsewhere,
        ConnectionResult::Refused(std::io::ErrorKind::ConnectionRefused.into()),
    ] {
        assert_eq!(left_alone.mismatch(&fine), None);
    }
}
