//! `weir-iptables` in a pod's namespace: it installs and removes rules, and validates them.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use weir_lab::{Netns, User, link, process};
use weir_tests::{TIMEOUT, bin, privileged};

use super::defaults;
use super::world::World;

/// The arguments of Istio's template with default values.
const DEFAULT_ARGS: [&str; 16] = [
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
/// Arguments that select a backend.
const BACKENDS: [&[&str]; 4] =
    [&[], &["--visibility", "iptables"], &["--backend", "iptables"], &["--force-iptables-binary", "legacy"]];

/// Exit status and standard error.
type ExitResult = (Option<i32>, String);

/// Runs `weir-iptables istio-iptables`, as Istio's templates spell it, with the default arguments and these in a namespace.
fn run(netns: &Netns, user: User, arguments: &[&str]) -> ExitResult {
    let mut command = Command::new(bin("weir-iptables"));
    command.arg("istio-iptables").args(DEFAULT_ARGS).args(arguments).env_clear().env("PATH", "/usr/sbin:/sbin");
    if user != User::ROOT {
        // A change of user takes all capabilities with it (capabilities(7)).
        command.uid(user.uid).gid(user.gid);
    }
    let output = netns.run(|| process::run(&mut command, b"", TIMEOUT)).unwrap().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn nft(netns: &Netns, commands: &str) -> String {
    let run = || process::run(Command::new("nft").args(["-f", "-"]), commands.as_bytes(), TIMEOUT);
    let output = netns.run(run).unwrap().unwrap();
    assert!(output.status.success(), "{commands}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Lists all rules of nft, iptables-nft and iptables-legacy, without counters.
fn list_rules(netns: &Netns) -> String {
    let mut all = nft(netns, "list ruleset");
    for program in ["iptables-legacy-save", "ip6tables-legacy-save"] {
        let output = netns.run(|| process::run(&mut Command::new(program), b"", TIMEOUT)).unwrap().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        all.extend(text.lines().filter(|line| line.starts_with("-A")).map(|line| format!("{line}\n")));
    }
    all
}

#[test]
fn istio_arguments_install_and_remove_the_default_rules() {
    if !privileged() {
        return;
    }
    for backend in BACKENDS {
        let world = World::new();
        let (code, stderr) = run(&world.pod, User::ROOT, backend);
        assert_eq!(code, Some(0), "{backend:?}: {stderr}");
        assert!(stderr.contains("installed capture rules") && stderr.contains("effective configuration: "), "{stderr}");
        world.check(&format!("{backend:?}"), &defaults::all_cases());
        let (code, stderr) = run(&world.pod, User::ROOT, backend);
        assert!(code == Some(0) && stderr.contains("already in place"), "{backend:?}: {stderr}");
        let (_, stderr) = run(&world.pod, User::ROOT, &[backend, &["--force-apply"]].concat());
        assert!(stderr.contains("replaced capture rules"), "{backend:?}: {stderr}");
        world.check(&format!("{backend:?}, again"), &defaults::all_cases());
        let (code, stderr) = run(&world.pod, User::ROOT, &[backend, &["--cleanup-only"]].concat());
        assert!(code == Some(0) && stderr.contains("removed the rules in "), "{backend:?}: {stderr}");
        assert!(!list_rules(&world.pod).contains("ISTIO"), "{}", list_rules(&world.pod));
    }
}

#[test]
fn dry_runs_and_invalid_arguments_change_nothing() {
    if !privileged() {
        return;
    }
    let pod = pod_with_peer().0;
    for arguments in [&["--dry-run"][..], &["--skip-rule-apply"], &["--cleanup-only"], &["--backend", "nft", "-d", "x"]]
    {
        run(&pod, User::ROOT, arguments);
        assert_eq!(list_rules(&pod), "", "{arguments:?}");
        let legacy = pod.run(|| std::fs::read_to_string("/proc/thread-self/net/ip_tables_names")).unwrap();
        assert_eq!(legacy.unwrap_or_default(), "", "{arguments:?}: looking for legacy tables created one");
    }
}

#[test]
fn reconcile_removes_rules_of_other_backends() {
    if !privileged() {
        return;
    }
    let pod = pod_with_peer().0;
    for backend in BACKENDS {
        assert_eq!(run(&pod, User::ROOT, backend).0, Some(0));
    }
    let (code, stderr) = run(&pod, User::ROOT, &[]);
    assert!(code == Some(0) && stderr.contains("pass --reconcile to remove them"), "{stderr}");
    let (code, stderr) = run(&pod, User::ROOT, &["--reconcile"]);
    assert!(code == Some(0) && stderr.matches("removed the rules in ").count() == 2, "{stderr}");
    let left = list_rules(&pod);
    assert!(
        left.contains("table inet weir")
            && !left.contains("-A ISTIO")
            && !left.contains("chain ISTIO_OUTPUT {\n\t\tmeta"),
        "{left}"
    );
    assert_eq!(left.matches("chain ISTIO_OUTPUT").count(), 1, "{left}");
}

/// Creates a pod with addresses and a default route, and its peer.
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

const APP: User = User::with_id(2000);
/// Users that may validate: the proxy without capabilities, the application, and root, which can act as both.
const VALIDATORS: [User; 3] = [User::PROXY, APP, User::ROOT];

fn validate(pod: &Netns, user: User, probe_timeout: &str, more: &[&str]) -> ExitResult {
    let args = ["--run-validation", "--skip-rule-apply", "--probe-timeout", probe_timeout];
    run(pod, user, &[&args, more].concat())
}

/// Validates as each of these users; all must fail with these words.
fn assert_validation_fails(pod: &Netns, users: &[User], more: &[&str], words: &[&str]) {
    for &user in users {
        let (code, stderr) = validate(pod, user, "1s", more);
        assert_eq!(code, Some(126), "{user:?} {more:?}: {stderr}");
        for word in words {
            assert!(stderr.contains(word), "{user:?} {more:?}: no {word:?} in {stderr}");
        }
    }
}

#[test]
fn validation_accepts_complete_rules_of_every_backend() {
    if !privileged() {
        return;
    }
    for backend in BACKENDS {
        for dns in [&[][..], &["--redirect-dns", "--capture-all-dns"], &["-m", "TPROXY"]] {
            let (pod, _peer) = pod_with_peer();
            let (code, stderr) = run(&pod, User::ROOT, &[backend, dns].concat());
            assert_eq!(code, Some(0), "{backend:?}: {stderr}");
            for user in VALIDATORS {
                let (code, stderr) = validate(&pod, user, "30s", dns);
                assert_eq!(code, Some(0), "{backend:?} {dns:?} {user:?}: {stderr}");
                let wanted =
                    if user == APP { ["outbound, IPv4", "outbound, IPv6"] } else { ["inbound, IPv4", "inbound, IPv6"] };
                for direction in wanted {
                    let ok = stderr.lines().any(|line| line.contains(direction) && line.ends_with(": ok"));
                    assert!(ok, "{user:?}: {stderr}");
                }
            }
        }
    }
}

#[test]
fn validation_finds_missing_rules() {
    if !privileged() {
        return;
    }
    let (pod, _peer) = pod_with_peer();
    assert_validation_fails(
        &pod,
        &VALIDATORS,
        &[],
        &["validation failed", "no capture rules work here", "IPv4", "IPv6"],
    );
    let (code, stderr) = validate(&pod, User::ROOT, "30s", &["-m", "NONE"]);
    assert_eq!(code, Some(0), "{stderr}");
}

#[test]
fn validation_finds_missing_ipv6_capture() {
    if !privileged() {
        return;
    }
    let (pod, _peer) = pod_with_peer();
    run(&pod, User::ROOT, &["--ipv6", "off"]);
    assert_validation_fails(&pod, &VALIDATORS, &[], &["IPv4 is captured, IPv6 is not"]);
    for user in VALIDATORS {
        assert_eq!(validate(&pod, user, "30s", &["--ipv6", "off"]).0, Some(0), "which is valid if configured");
    }
}

#[test]
fn validation_finds_missing_dns_capture() {
    if !privileged() {
        return;
    }
    let (pod, _peer) = pod_with_peer();
    run(&pod, User::ROOT, &[]);
    assert_validation_fails(
        &pod,
        &VALIDATORS,
        &["--redirect-dns", "--capture-all-dns"],
        &["DNS, IPv4", "made without DNS capture"],
    );
}

#[test]
fn validation_finds_flushed_chains() {
    if !privileged() {
        return;
    }
    // The empty chain, and the users that can detect it.
    for (chain, users) in [
        ("nat-output", &VALIDATORS[..]),
        ("ISTIO_OUTPUT", &VALIDATORS),
        ("ISTIO_IN_REDIRECT", &[User::PROXY, User::ROOT]),
        ("ISTIO_REDIRECT", &[APP, User::ROOT]),
        ("ISTIO_INBOUND", &[User::ROOT]),
        ("nat-prerouting", &[User::ROOT]),
    ] {
        let (pod, _peer) = pod_with_peer();
        run(&pod, User::ROOT, &[]);
        nft(&pod, &format!("flush chain inet weir {chain}"));
        assert_validation_fails(&pod, users, &[], &["validation failed"]);
    }
    // The source address of the proxy's inbound connections.
    let (pod, _peer) = pod_with_peer();
    run(&pod, User::ROOT, &[]);
    let delete = || process::run(Command::new("ip").args(["address", "del", "::6/128", "dev", "lo"]), b"", TIMEOUT);
    assert!(pod.run(delete).unwrap().unwrap().status.success());
    assert_validation_fails(&pod, &[User::PROXY], &[], &["inbound, IPv6", "::6"]);
}

#[test]
fn validation_finds_a_loop_of_the_proxy() {
    if !privileged() {
        return;
    }
    let (pod, _peer) = pod_with_peer();
    run(&pod, User::ROOT, &["-u", "4242"]);
    assert_validation_fails(
        &pod,
        &[User::PROXY],
        &[],
        &["outbound, IPv4: the proxy calls out", "it arrived on port 15001; it should not have been redirected"],
    );
}

/// Runs the command of a line of the unit of systemd, with the variables of its file and these, as systemd does.
fn run_unit(netns: &Netns, key: &str, variables: &[(&str, &str)]) -> ExitResult {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/systemd");
    let read = |name: &str| std::fs::read_to_string(format!("{dir}/{name}")).unwrap();
    let (unit, file) = (read("weir-iptables.service"), read("iptables.env"));
    let line = unit.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')).unwrap();
    let arguments = line.strip_prefix("/usr/local/bin/weir-iptables").unwrap().split_whitespace();
    let set = file.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once('='));
    let mut command = Command::new(bin("weir-iptables"));
    command.args(arguments).env_clear().env("PATH", "/usr/sbin:/sbin").envs(set).envs(variables.iter().copied());
    let output = netns.run(|| process::run(&mut command, b"", TIMEOUT)).unwrap().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn systemd_unit_starts_reloads_and_stops() {
    if !privileged() {
        return;
    }
    let (host, _peer) = pod_with_peer();
    let succeed = |key: &str, variables: &[(&str, &str)]| {
        let (code, stderr) = run_unit(&host, key, variables);
        assert_eq!(code, Some(0), "{key}: {stderr}");
        list_rules(&host)
    };
    let started = succeed("ExecStart", &[]);
    assert!(started.contains("15001") && !started.contains("8080"), "{started}");
    assert_eq!(succeed("ExecReload", &[]), started);
    let inbound = ("ISTIO_INBOUND_PORTS", "8080");
    let reloaded = succeed("ExecReload", &[inbound]);
    assert!(reloaded.contains("15001") && reloaded.contains("8080"), "{reloaded}");
    // A value that is rejected changes nothing.
    let (code, stderr) = run_unit(&host, "ExecReload", &[("ISTIO_INBOUND_PORTS", "80-90")]);
    assert_eq!(code, Some(1), "{stderr}");
    assert_eq!(list_rules(&host), reloaded);
    let stopped = succeed("ExecStop", &[inbound]);
    assert!(!stopped.contains("table inet weir"), "{stopped}");
}
