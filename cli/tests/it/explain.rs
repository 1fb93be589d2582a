//! `weir explain`.

use std::process::Command;
use std::time::Duration;

use iptables_rules::config::{DnsCapture, InterceptionMode};
use iptables_rules::restore::{RestoreFamily, restore_text};
use iptables_rules::{CaptureConfig, plan};
use serde_json::{Value, json};
use weir_kernel::{nft, route};
use weir_lab::{Netns, process};

use crate::run::{Run, weir};

fn annotations(items: &Value, args: &[&str]) -> Run {
    weir(&[&["explain", "--annotations", "-"], args].concat(), &items.to_string())
}

fn outcome(items: &Value, packet: &[&str]) -> String {
    let run = annotations(items, packet);
    assert_eq!(run.code, 0, "{}", run.stderr);
    run.stdout.lines().find_map(|line| line.strip_prefix("=> ")).expect("an outcome").to_owned()
}

#[test]
fn trace_ends_with_a_sentence_that_names_the_setting() {
    let items = json!({
        "traffic.sidecar.istio.io/excludeOutboundIPRanges": "10.1.0.0/16",
        "traffic.sidecar.istio.io/excludeInboundPorts": "9000",
    });
    for (packet, sentence) in [
        (&["--to", "10.2.0.1:443"][..], "Captured: redirected to port 15001 (the proxy, outbound)"),
        (&["--to", "10.1.0.1:443"], "traffic.sidecar.istio.io/excludeOutboundIPRanges"),
        (&["--from", "outside", "--to", "9000"], "traffic.sidecar.istio.io/excludeInboundPorts"),
        (&["--from", "outside", "--to", "[fd00::10]:80"], "Captured: redirected to port 15006 (the proxy, inbound)"),
        (&["--from", "proxy", "--to", "[2001:db8::1]:80/udp"], "the proxy's own traffic"),
        (&["--uid", "1337", "--to", "10.2.0.1:443"], "the proxy's own traffic"),
        (&["--to", "127.0.0.1:80"], "the application calls its own pod"),
        (&["--to", "10.2.0.1:443", "--state", "established"], "trace that one with --state new"),
    ] {
        let found = outcome(&items, packet);
        assert!(found.contains(sentence), "{packet:?}: {found}");
    }
}

#[test]
fn all_invalid_packet_options_are_reported() {
    let items = json!({});
    let packet = [
        "--from",
        "outside",
        "--to",
        "127.0.0.1:0",
        "--uid",
        "-",
        "--in-interface",
        "",
        "--mark",
        "0xg",
        "--source",
        "::x",
        "--connection-mark",
        "7",
        "--pod-ip",
        "::",
        "--out-interface",
        "eth0",
    ];
    let run = annotations(&items, &packet);
    assert_eq!((run.code, run.stdout.as_str()), (1, ""));
    for option in
        ["--to", "--uid", "--in-interface", "--mark", "--source", "--connection-mark", "--pod-ip", "--out-interface"]
    {
        assert!(run.stderr.contains(&format!("weir: {option}")), "{option}: {}", run.stderr);
    }
    for (to, reason) in [
        ("10.0.0.1", "has no port"),
        ("example.com:80", "names are not resolved"),
        ("fd00::1:x:80", "IPv6 with a port is [ADDRESS]:PORT"),
        ("10.0.0.1:80/sctp", "is not one of tcp, udp, icmp"),
        ("80", "a port alone is enough only with --from outside"),
        ("0.0.0.0:80", "not a unicast address"),
        ("10.0.0.1:80 ", "is not a port"),
        ("[fd00::1]80", "has something other than :PORT"),
    ] {
        let run = annotations(&items, &["--to", to]);
        assert_eq!(run.code, 1, "{to}: {}", run.stdout);
        assert!(run.stderr.contains(reason), "{to}: {}", run.stderr);
    }
    let run = annotations(&items, &["--source", "fd00::1", "--to", "10.0.0.1:80"]);
    assert!(run.stderr.contains("different families"), "{}", run.stderr);
}

#[test]
fn summary_names_the_setting_of_every_exclusion() {
    let items = json!({
        "traffic.sidecar.istio.io/excludeOutboundPorts": "9001",
        "traffic.sidecar.istio.io/includeOutboundIPRanges": "10.0.0.0/8",
        "traffic.sidecar.istio.io/excludeInterfaces": "net1",
        "weir.dev/ipv6": "leave",
    });
    let run = annotations(&items, &["--format", "json"]);
    let document: Value = serde_json::from_str(&run.stdout).unwrap();
    let excluded = document["subjects"][0]["summary"]["notCaptured"].as_array().unwrap();
    for (what, setting) in [
        ("outbound TCP and UDP to port 9001", "traffic.sidecar.istio.io/excludeOutboundPorts"),
        ("every other address", "traffic.sidecar.istio.io/includeOutboundIPRanges"),
        ("traffic over net1", "traffic.sidecar.istio.io/excludeInterfaces"),
        ("all IPv6 traffic", "weir.dev/ipv6"),
    ] {
        let found = excluded.iter().find(|entry| entry["what"].as_str().unwrap().contains(what));
        assert_eq!(found.unwrap_or_else(|| panic!("{what}: {excluded:?}"))["setting"], setting);
    }
}

#[test]
fn run_of_rules_without_match_is_one_line() {
    let ranges: Vec<String> = (0..5000_u32).map(|n| format!("10.{}.{}.0/30", n / 200, n % 200)).collect();
    let items = json!({"traffic.sidecar.istio.io/excludeOutboundIPRanges": ranges.join(",")});
    let run = annotations(&items, &["--to", "192.0.2.1:443"]);
    assert!(run.stdout.contains("5000 rules, none matches"), "{}", run.stdout);
    assert!(run.stdout.lines().count() < 80);
}

#[test]
fn svg_is_complete_and_small_with_long_lists() {
    let ranges: Vec<String> = (0..5000_u32).map(|n| format!("10.{}.{}.0/30", n / 200, n % 200)).collect();
    let items = json!({"traffic.sidecar.istio.io/excludeOutboundIPRanges": ranges.join(",")});
    for packet in
        [&["--to", "[2001:db8::1]:443"][..], &["--to", "192.0.2.1:443"], &["--from", "outside", "--to", "80"], &[]]
    {
        let svg = annotations(&items, &[&["--format", "svg"], packet].concat()).stdout;
        assert!(svg.starts_with("<svg xmlns=") && svg.ends_with("</svg>\n"), "{packet:?}");
        assert!(svg.len() < 30_000, "{packet:?}: {} bytes", svg.len());
        assert_eq!(svg.matches("<g").count(), svg.matches("</g>").count(), "{packet:?}");
        assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count(), "{packet:?}");
        // Self-contained, with both colour schemes.
        assert_eq!(svg.matches("http").count(), 1, "only the name space: {packet:?}");
        assert!(svg.contains("prefers-color-scheme:dark"));
        assert_eq!(svg.contains("class=\"onfill\""), !packet.is_empty(), "{packet:?}");
    }
}

/// State of a network namespace, as other tools see it.
fn state(netns: &Netns) -> String {
    let listing = tool(netns, "nft", &["list", "ruleset"], "");
    let legacy = netns.run(|| std::fs::read_to_string("/proc/thread-self/net/ip_tables_names").unwrap_or_default());
    listing + &legacy.unwrap()
}

fn tool(netns: &Netns, program: &str, arguments: &[&str], input: &str) -> String {
    let run = || process::run(Command::new(program).args(arguments), input.as_bytes(), Duration::from_secs(20));
    let output = netns.run(run).unwrap().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Explains a network namespace, which must not change it.
fn explain(netns: &Netns, args: &[&str]) -> (i32, Value) {
    let before = state(netns);
    let path = netns.path().display().to_string();
    let run = weir(&[&["explain", "--netns", &path, "--format", "json"], args].concat(), "{}");
    assert_eq!(state(netns), before, "reading changed the namespace");
    let document: Value = serde_json::from_str(&run.stdout).unwrap_or_else(|error| panic!("{error}: {}", run.stderr));
    (run.code, document["subjects"][0].clone())
}

fn install(netns: &Netns, config: &CaptureConfig) {
    let rules = plan(config).unwrap();
    netns.run(|| nft::apply(&rules)).unwrap().unwrap();
    netns.run(|| route::apply(&rules.routing)).unwrap().unwrap();
}

#[test]
fn state_of_a_network_namespace_is_explained() {
    if !weir_lab::privilege::available_or_skip() {
        return;
    }
    let netns = Netns::new("explained").unwrap();
    let standing = |explained: &(i32, Value)| explained.1["namespace"]["standing"].as_str().unwrap().to_owned();

    let nothing = explain(&netns, &["--to", "192.0.2.1:443"]);
    assert_eq!((nothing.0, standing(&nothing).as_str()), (0, "none"));
    let items = |explained: &(i32, Value), key: &str| explained.1["summary"][key].to_string();
    assert!(items(&explain(&netns, &[]), "notCaptured").contains("all traffic: there are no capture rules"));
    assert_eq!(nothing.1["trace"]["outcome"], "passes");
    assert_eq!(explain(&netns, &["--annotations", "-"]).0, 1, "the rules are missing");

    install(&netns, &CaptureConfig::default());
    let ours = explain(&netns, &["--to", "192.0.2.1:443"]);
    assert_eq!((ours.0, standing(&ours).as_str()), (0, "ours"));
    assert_eq!((&ours.1["trace"]["outcome"], &ours.1["trace"]["port"]), (&json!("redirected"), &json!(15001)));
    assert_eq!(explain(&netns, &["--annotations", "-"]).0, 0);

    // The fingerprint of a usual configuration is known, so that the difference is too.
    tool(&netns, "nft", &["flush", "chain", "inet", "weir", "ISTIO_REDIRECT"], "");
    let drifted = explain(&netns, &["--to", "192.0.2.1:443"]);
    assert_eq!((drifted.0, standing(&drifted).as_str()), (1, "drifted"));
    let differences = drifted.1["namespace"]["differences"].to_string();
    assert!(differences.contains("rule 1 of chain ISTIO_REDIRECT is missing"), "{differences}");
    assert_eq!(drifted.1["trace"]["outcome"], "passes", "the kernel's rules count, not the planned ones");
    for args in [&[][..], &["--annotations", "-"]] {
        let summary = explain(&netns, args);
        let excluded = items(&summary, "notCaptured");
        assert!(excluded.contains("outbound TCP to every address"), "the summary agrees with the trace: {excluded}");
        assert!(items(&summary, "captured").contains("inbound TCP to ports"), "{}", items(&summary, "captured"));
    }

    install(&netns, &CaptureConfig::default());
    tool(&netns, "nft", &["-f", "-"], "table inet weir { flags dormant; }");
    let dormant = explain(&netns, &["--to", "192.0.2.1:443"]);
    assert_eq!((standing(&dormant).as_str(), &dormant.1["trace"]["outcome"]), ("drifted", &json!("passes")));

    tool(&netns, "nft", &["flush", "table", "inet", "weir"], "");
    assert_eq!(standing(&explain(&netns, &[])), "drifted");

    tool(&netns, "nft", &["delete", "table", "inet", "weir"], "");
    tool(&netns, "nft", &["add", "table", "inet", "somebody"], "");
    let others = explain(&netns, &[]);
    assert_eq!(
        (standing(&others).as_str(), &others.1["namespace"]["otherTables"]),
        ("none", &json!(["inet somebody"]))
    );

    let text = restore_text(&plan(&CaptureConfig::default()).unwrap(), RestoreFamily::V4);
    tool(&netns, "iptables-nft-restore", &["--noflush"], &text);
    let foreign = explain(&netns, &["--from", "outside", "--to", "8080"]);
    assert_eq!((foreign.0, standing(&foreign).as_str()), (0, "foreign"));
    let captured = items(&explain(&netns, &[]), "captured");
    assert!(captured.contains("(IPv4): redirected to port 15001 by foreign rules"), "{captured}");
    assert_eq!((&foreign.1["trace"]["outcome"], &foreign.1["trace"]["port"]), (&json!("redirected"), &json!(15006)));

    install(&netns, &CaptureConfig::default());
    let both = explain(&netns, &[]);
    assert_eq!((both.0, standing(&both).as_str()), (1, "both"));
}

#[test]
fn tproxy_trace_has_marks_and_zones() {
    if !weir_lab::privilege::available_or_skip() {
        return;
    }
    let netns = Netns::new("transparent").unwrap();
    let config = CaptureConfig { mode: InterceptionMode::Tproxy, dns: DnsCapture::All, ..CaptureConfig::default() };
    install(&netns, &config);
    let (_, explained) = explain(&netns, &["--from", "outside", "--to", "8080"]);
    assert_eq!((&explained["trace"]["outcome"], &explained["trace"]["mark"]), (&json!("tproxied"), &json!(1337)));
    let (_, explained) = explain(&netns, &["--to", "192.0.2.53:53/udp"]);
    assert_eq!((&explained["trace"]["port"], &explained["trace"]["zone"]), (&json!(15053), &json!(2)));
    let answer = ["--to", "192.0.2.9:40000", "--state", "established", "--connection-mark", "1337"];
    let (_, explained) = explain(&netns, &answer);
    assert!(explained["trace"]["sentence"].as_str().unwrap().contains("stays in the pod"), "{explained}");
}

#[test]
fn invalid_network_namespaces_are_errors() {
    for (args, reason) in [
        (["--netns", "/run/netns/no-such"], "No such file"),
        (["--netns", "/etc/passwd"], "not a namespace"),
        (["--netns", "/proc/self/ns/uts"], "not a network namespace"),
        (["--pid", "4194305"], "process not found"),
    ] {
        if args[1].contains("uts") && !weir_lab::privilege::available_or_skip() {
            continue;
        }
        let run = weir(&[&["explain"], &args[..]].concat(), "");
        assert_eq!((run.code, run.stdout.as_str()), (2, ""), "{args:?}");
        assert!(run.stderr.contains(reason), "{args:?}: {}", run.stderr);
    }
}
