//! `weir iptables` as a process in a pod's namespace: what it installs, what it takes away, and what its validation finds.

use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::Duration;

use weir_lab::{Netns, User, link, process};
use weir_tests::{bin, privileged};

use crate::defaults;
use crate::world::World;

/// The arguments of Istio's template with its default values.
const DEFAULT: [&str; 16] = [
    "-p",
    "15001",
    "-z",
    "15006",
    "-u",
    "1337",
    "-m",
    "REDIRECT",
    "-i",
    "*",
    "-x",
    "",
    "-b",
    "*",
    "-d",
    "15090,15021,15020",
];
/// Ways to install that differ for the kernel.
const METHODS: [&[&str]; 4] =
    [&[], &["--visibility", "iptables"], &["--backend", "iptables"], &["--force-iptables-binary", "legacy"]];

/// How a run ended, and what it wrote on standard error.
type Ended = (Option<i32>, String);

/// Runs `weir istio-iptables` with the default arguments and these in a namespace.
fn run(netns: &Netns, user: User, arguments: &[&str]) -> Ended {
    let mut command = Command::new(bin("weir"));
    command.arg("istio-iptables").args(DEFAULT).args(arguments).env_clear().env("PATH", "/usr/sbin:/sbin");
    if user != User::ROOT {
        // A change of user takes all capabilities with it (capabilities(7)).
        command.uid(user.uid).gid(user.gid);
    }
    let output = netns.run(|| process::run(&mut command, b"", Duration::from_mins(1))).unwrap().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn nft(netns: &Netns, commands: &str) -> String {
    let run = || process::run(Command::new("nft").args(["-f", "-"]), commands.as_bytes(), Duration::from_secs(20));
    let output = netns.run(run).unwrap().unwrap();
    assert!(output.status.success(), "{commands}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Everything that both kinds of iptables and nft list, without counters and the lines that change by themselves.
fn everything(netns: &Netns) -> String {
    let mut all = nft(netns, "list ruleset");
    for program in ["iptables-legacy-save", "ip6tables-legacy-save"] {
        let output =
            netns.run(|| process::run(&mut Command::new(program), b"", Duration::from_secs(20))).unwrap().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        all.extend(text.lines().filter(|line| line.starts_with("-A")).map(|line| format!("{line}\n")));
    }
    all
}

#[test]
fn the_well_known_arguments_capture_what_they_should() {
    if !privileged() {
        return;
    }
    for method in METHODS {
        let world = World::new();
        let (code, said) = run(&world.pod, User::ROOT, method);
        assert_eq!(code, Some(0), "{method:?}: {said}");
        assert!(said.contains("capture rules installed") && said.contains("effective configuration: "), "{said}");
        world.check(&format!("{method:?}"), &defaults::all_cases());
        let (code, said) = run(&world.pod, User::ROOT, method);
        assert!(code == Some(0) && said.contains("in place already"), "{method:?}: {said}");
        let (_, said) = run(&world.pod, User::ROOT, &[method, &["--force-apply"]].concat());
        assert!(said.contains("capture rules replaced"), "{method:?}: {said}");
        world.check(&format!("{method:?}, again"), &defaults::all_cases());
        let (code, said) = run(&world.pod, User::ROOT, &[method, &["--cleanup-only"]].concat());
        assert!(code == Some(0) && said.contains("removed the rules in "), "{method:?}: {said}");
        assert!(!everything(&world.pod).contains("ISTIO"), "{}", everything(&world.pod));
    }
}

#[test]
fn what_does_not_apply_changes_nothing() {
    if !privileged() {
        return;
    }
    let pod = pod_with_peer().0;
    for arguments in [&["--dry-run"][..], &["--skip-rule-apply"], &["--cleanup-only"], &["--backend", "nft", "-d", "x"]]
    {
        run(&pod, User::ROOT, arguments);
        assert_eq!(everything(&pod), "", "{arguments:?}");
        let legacy = pod.run(|| std::fs::read_to_string("/proc/thread-self/net/ip_tables_names")).unwrap();
        assert_eq!(legacy.unwrap_or_default(), "", "{arguments:?}: a legacy table was made by looking for it");
    }
}

#[test]
fn reconciling_takes_away_what_other_backends_left() {
    if !privileged() {
        return;
    }
    let pod = pod_with_peer().0;
    for method in METHODS {
        assert_eq!(run(&pod, User::ROOT, method).0, Some(0));
    }
    let (code, said) = run(&pod, User::ROOT, &[]);
    assert!(code == Some(0) && said.contains("--reconcile removes them"), "{said}");
    let (code, said) = run(&pod, User::ROOT, &["--reconcile"]);
    assert!(code == Some(0) && said.matches("removed the rules in ").count() == 2, "{said}");
    let left = everything(&pod);
    assert!(
        left.contains("table inet weir")
            && !left.contains("-A ISTIO")
            && !left.contains("chain ISTIO_OUTPUT {\n\t\tmeta"),
        "{left}"
    );
    assert_eq!(left.matches("chain ISTIO_OUTPUT").count(), 1, "{left}");
}

/// A pod with addresses and a route out, and the other end of its link.
fn pod_with_peer() -> (Netns, Netns) {
    let (pod, peer) = (Netns::new("pod").unwrap(), Netns::new("peer").unwrap());
    link::veth((&pod, "eth0"), (&peer, "eth0")).unwrap();
    for (netns, address) in
        [(&pod, "10.77.0.2/24"), (&pod, "fd77::2/64"), (&peer, "10.77.0.1/24"), (&peer, "fd77::1/64")]
    {
        link::add_address(netns, "eth0", address.parse().unwrap()).unwrap();
    }
    for gateway in ["10.77.0.1", "fd77::1"] {
        link::add_default_route(&pod, gateway.parse().unwrap()).unwrap();
    }
    (pod, peer)
}

const APP: User = User::of(2000);
/// Whoever may ask: the proxy without capabilities, the application, and root, who can be both.
const ALL: [User; 3] = [User::PROXY, APP, User::ROOT];

fn validate(pod: &Netns, user: User, more: &[&str]) -> Ended {
    run(pod, user, &[&["--run-validation", "--skip-rule-apply", "--probe-timeout", "1s"], more].concat())
}

/// Validates as each of these users; all must fail and say these words.
fn refused_by(pod: &Netns, users: &[User], more: &[&str], words: &[&str]) {
    for &user in users {
        let (code, said) = validate(pod, user, more);
        assert_eq!(code, Some(126), "{user:?} {more:?}: {said}");
        for word in words {
            assert!(said.contains(word), "{user:?} {more:?}: no {word:?} in {said}");
        }
    }
}

#[test]
fn validation_is_content_with_complete_rules_of_every_backend() {
    if !privileged() {
        return;
    }
    for method in METHODS {
        for dns in [&[][..], &["--redirect-dns", "--capture-all-dns"], &["-m", "TPROXY"]] {
            let (pod, _peer) = pod_with_peer();
            let (code, said) = run(&pod, User::ROOT, &[method, dns].concat());
            assert_eq!(code, Some(0), "{method:?}: {said}");
            for user in ALL {
                let (code, said) = validate(&pod, user, dns);
                assert_eq!(code, Some(0), "{method:?} {dns:?} {user:?}: {said}");
                let wanted =
                    if user == APP { ["outbound, IPv4", "outbound, IPv6"] } else { ["inbound, IPv4", "inbound, IPv6"] };
                for direction in wanted {
                    let ok = said.lines().any(|line| line.contains(direction) && line.ends_with(": ok"));
                    assert!(ok, "{user:?}: {said}");
                }
            }
        }
    }
}

#[test]
fn validation_finds_that_there_are_no_rules() {
    if !privileged() {
        return;
    }
    let (pod, _peer) = pod_with_peer();
    refused_by(&pod, &ALL, &[], &["validation failed", "no capture rules work here", "IPv4", "IPv6"]);
    let (code, said) = validate(&pod, User::ROOT, &["-m", "NONE"]);
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn validation_finds_that_only_ipv4_is_captured() {
    if !privileged() {
        return;
    }
    let (pod, _peer) = pod_with_peer();
    run(&pod, User::ROOT, &["--ipv6", "off"]);
    refused_by(&pod, &ALL, &[], &["IPv4 is captured, IPv6 is not"]);
    for user in ALL {
        assert_eq!(validate(&pod, user, &["--ipv6", "off"]).0, Some(0), "and that is fine where it is wanted");
    }
}

#[test]
fn validation_finds_that_dns_is_not_captured() {
    if !privileged() {
        return;
    }
    let (pod, _peer) = pod_with_peer();
    run(&pod, User::ROOT, &[]);
    refused_by(&pod, &ALL, &["--redirect-dns", "--capture-all-dns"], &["DNS, IPv4", "made without DNS capture"]);
}

#[test]
fn validation_finds_what_was_flushed() {
    if !privileged() {
        return;
    }
    // Which chain is empty, and who can tell.
    for (chain, users) in [
        ("nat-output", &ALL[..]),
        ("ISTIO_OUTPUT", &ALL),
        ("ISTIO_IN_REDIRECT", &[User::PROXY, User::ROOT]),
        ("ISTIO_REDIRECT", &[APP, User::ROOT]),
        ("ISTIO_INBOUND", &[User::ROOT]),
        ("nat-prerouting", &[User::ROOT]),
    ] {
        let (pod, _peer) = pod_with_peer();
        run(&pod, User::ROOT, &[]);
        nft(&pod, &format!("flush chain inet weir {chain}"));
        refused_by(&pod, users, &[], &["validation failed"]);
    }
    // The address that the proxy's inbound connections come from.
    let (pod, _peer) = pod_with_peer();
    run(&pod, User::ROOT, &[]);
    let delete = || {
        process::run(Command::new("ip").args(["address", "del", "::6/128", "dev", "lo"]), b"", Duration::from_secs(20))
    };
    assert!(pod.run(delete).unwrap().unwrap().status.success());
    refused_by(&pod, &[User::PROXY], &[], &["inbound, IPv6", "::6"]);
}

/// A loop: the proxy's own traffic comes back to it.
#[test]
fn validation_finds_that_the_proxy_would_call_itself() {
    if !privileged() {
        return;
    }
    let (pod, _peer) = pod_with_peer();
    run(&pod, User::ROOT, &["-u", "4242"]);
    refused_by(
        &pod,
        &[User::PROXY],
        &[],
        &["outbound, IPv4: the proxy calls out", "it arrived on port 15001; it should not have been redirected"],
    );
}
