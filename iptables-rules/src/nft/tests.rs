//! The backend against the real kernel, in network namespaces of the tests' own. As root only.

use std::io::Write as _;
use std::process::{Command, Stdio};

use nix::sched::{CloneFlags, unshare};

use super::*;
use crate::config::{CidrSelection, DnsCapture, InterceptionMode, Ipv6Policy, PortSelection};
use crate::{CaptureConfig, plan};

/// Runs a test in a network namespace that ends with it. Without root it is skipped on a developer's machine, and fails in CI.
fn in_namespace(test: impl FnOnce() + Send) {
    if !nix::unistd::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "tests of network namespaces need root");
        eprintln!("skipped: needs root");
        return;
    }
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            test();
        });
        if let Err(panic) = inside.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

fn nft(input: &str) -> String {
    let (ok, out, err) = try_nft(input, &["-f", "-"]);
    assert!(ok, "nft refused:\n{err}\n{input}");
    out
}

fn try_nft(input: &str, arguments: &[&str]) -> (bool, String, String) {
    let mut child = Command::new("nft")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.success(), text(output.stdout), text(output.stderr))
}

fn rules(config: &CaptureConfig) -> RuleSet {
    plan(config).unwrap()
}

fn v4_only() -> CaptureConfig {
    CaptureConfig { ipv6: Ipv6Policy::Leave, ..CaptureConfig::default() }
}

/// One of everything: several families, lists beyond the limit, interfaces, groups.
fn varied() -> Vec<CaptureConfig> {
    let cidrs = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<ipnet::IpNet>>();
    vec![
        CaptureConfig::default(),
        v4_only(),
        CaptureConfig {
            inbound_ports_exclude: vec![15020, 15021, 15090, 22, 3306, 5432],
            outbound_ports_exclude: vec![15020, 1, 2, 3, 4, 5],
            outbound_cidrs_exclude: cidrs(&[
                "10.0.0.0/8",
                "10.1.0.0/16",
                "172.16.0.0/12",
                "192.168.0.0/16",
                "100.64.0.0/10",
                "255.0.0.0/8",
                "fd00::/8",
            ]),
            ..CaptureConfig::default()
        },
        CaptureConfig {
            inbound_ports: PortSelection::Only(vec![8080, 8443]),
            outbound_cidrs: CidrSelection::Only(cidrs(&["10.96.0.0/12", "172.16.0.0/13", "fd00:10::/33", "0.0.0.0/0"])),
            outbound_ports: vec![9200],
            reroute_interfaces: vec![crate::config::InterfaceName::new("tap0").unwrap()],
            exclude_interfaces: vec![crate::config::InterfaceName::new("net1").unwrap()],
            proxy_uids: vec![1337, 0, 4_294_967_294],
            ..CaptureConfig::default()
        },
        CaptureConfig { mode: InterceptionMode::Tproxy, drop_invalid: true, ..CaptureConfig::default() },
        CaptureConfig { dns: DnsCapture::All, ..CaptureConfig::default() },
        CaptureConfig {
            dns: DnsCapture::Servers(vec!["10.0.0.10".parse().unwrap(), "fd00::10".parse().unwrap()]),
            mode: InterceptionMode::Tproxy,
            ..v4_only()
        },
    ]
}

#[test]
fn creates_once_then_leaves_alone() {
    in_namespace(|| {
        for layout in [Layout::Inet, Layout::PerFamily] {
            for config in varied() {
                let rules = rules(&config);
                assert_eq!(apply_as(&rules, layout).unwrap(), Applied::Created);
                assert_eq!(read_back().unwrap(), lower(&rules, layout).unwrap(), "{config:?}");
                assert_eq!(apply_as(&rules, layout).unwrap(), Applied::Unchanged);
                assert!(remove().unwrap());
                assert!(!remove().unwrap());
            }
        }
    });
}

#[test]
fn text_loads_in_nft_as_the_same_program() {
    in_namespace(|| {
        for config in varied() {
            for layout in [Layout::Inet, Layout::PerFamily] {
                let program = lower(&rules(&config), layout).unwrap();
                nft(&program.to_string());
                assert_eq!(read_back().unwrap().to_string(), program.to_string());
                assert_eq!(read_back().unwrap(), program);
                assert!(remove().unwrap());
            }
        }
    });
}
