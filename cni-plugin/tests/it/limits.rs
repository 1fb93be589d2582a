//! Limits of the process, and hostile input.

use std::io::{Read as _, Write as _};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use iptables_rules::limits;
use serde_json::{Value, json};
use weir_cni::limits::{MAX_CALL_SECONDS, MAX_CPU_SECONDS, MAX_MEMORY_MIB};
use weir_cni::stdin;

use crate::call::{CAPABILITY, Call, STATUS, conf};

/// Starts the plugin without writing to its stdin.
fn start() -> Child {
    Command::new(env!("CARGO_BIN_EXE_weir-cni"))
        .env_clear()
        .env("CNI_COMMAND", "ADD")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Returns the soft and the hard limit of a process, once it has set its own.
fn limits_of(child: &Child, name: &str) -> (String, String) {
    let path = format!("/proc/{}/limits", child.id());
    let begun = Instant::now();
    loop {
        let text = std::fs::read_to_string(&path).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        let mut words = line.split_whitespace().map(str::to_owned);
        let found = (words.next().unwrap(), words.next().unwrap());
        if found.0 != "unlimited" || begun.elapsed() > Duration::from_secs(10) {
            return found;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn the_process_limits_itself_at_its_start() {
    let mut child = start();
    assert_eq!(limits_of(&child, "Max cpu time"), ("5".to_owned(), "6".to_owned()));
    assert_eq!(limits_of(&child, "Max address space"), ("268435456".to_owned(), "268435456".to_owned()));
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn documented_limits_are_those_of_the_code() {
    let docs = include_str!("../../../docs/cni-plugin.md");
    for row in [
        format!("| address space (`RLIMIT_AS`) | {MAX_MEMORY_MIB} MiB | 11 |"),
        format!("| processor time (`RLIMIT_CPU`) | {MAX_CPU_SECONDS} s | 11 |"),
        format!("| time for the whole call | {MAX_CALL_SECONDS} s, and `agent_timeout_ms` | 11 |"),
        format!("| stdin | {} MiB | 6 |", stdin::MAX_BYTES >> 20),
        format!("| time until stdin is closed | {} s | 5 |", stdin::MAX_WAIT.as_secs()),
        format!("| rules of a pod | {},000 | 101 |", limits::MAX_RULES / 1000),
    ] {
        assert!(docs.contains(&row), "not in docs/cni-plugin.md: {row}");
    }
    let docs = include_str!("../../../docs/annotations.md");
    for row in [
        format!(
            "| bytes of one annotation or variable | {},{:03} |",
            limits::MAX_VALUE_BYTES / 1000,
            limits::MAX_VALUE_BYTES % 1000
        ),
        format!("| interfaces of one list | {} |", limits::MAX_INTERFACES),
        format!("| ports of one list | {},000 |", limits::MAX_PORTS / 1000),
        format!("| CIDRs of one list | {},000 |", limits::MAX_CIDRS / 1000),
        format!("| DNS servers | {} |", limits::MAX_DNS_SERVERS),
        format!("| users, and groups, of the proxy | {} each |", limits::MAX_PROXY_IDS),
        format!("| rules of a pod in all | {},000 |", limits::MAX_RULES / 1000),
    ] {
        assert!(docs.contains(&row), "not in docs/annotations.md: {row}");
    }
}

#[test]
fn a_reached_limit_is_answered_with_code_11() {
    for (signal, part) in [("XCPU", "processor time"), ("ALRM", "deadline of 30 seconds"), ("ABRT", "memory limit")] {
        let mut child = start();
        limits_of(&child, "Max cpu time");
        let status = Command::new("kill").args([format!("-{signal}"), child.id().to_string()]).status().unwrap();
        assert!(status.success());
        let mut text = String::new();
        child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(1), "{signal}");
        let error: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(error["code"], 11);
        assert!(error["msg"].as_str().unwrap().contains(part), "{error}");
    }
}

#[test]
fn a_failed_allocation_is_answered() {
    // Room for the program, but not for a configuration of 4 MB and its copies.
    let mut large = conf("1.0.0", &[STATUS]);
    large["runtimeConfig"][CAPABILITY]["x"] = "x".repeat(4_000_000).into();
    let run = format!("ulimit -v 12000 && exec {}", env!("CARGO_BIN_EXE_weir-cni"));
    let mut child = Command::new("sh")
        .args(["-c", &run])
        .env_clear()
        .envs([("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", "c1"), ("CNI_IFNAME", "eth0"), ("CNI_NETNS", "/x")])
        .env("CNI_ARGS", "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // The plugin may end before it has read everything.
    let _ = child.stdin.take().unwrap().write_all(large.to_string().as_bytes());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(error["code"], 11, "{error}");
    assert!(error["msg"].as_str().unwrap().contains("memory limit of 256 MiB"), "{error}");
}

/// Capture annotations whose plan would be a product of their lists.
fn hostile_annotations() -> Vec<(&'static str, Value)> {
    let interfaces = |count: usize| (0..count).map(|n| format!("veth{n}")).collect::<Vec<_>>();
    let nets = |count: usize| (0..count).map(|n| format!("10.{}.{}.0/24", n / 256, n % 256)).collect::<Vec<_>>();
    vec![
        ("interfaces", json!({"v": 1, "rerouteInterfaces": interfaces(1500), "outboundCidrs": nets(1500)})),
        ("uid", json!({"v": 1, "proxyUids": (10_000..20_000).collect::<Vec<u32>>()})),
        ("interfaces", json!({"v": 1, "excludeInterfaces": interfaces(9000)})),
    ]
}

#[test]
fn hostile_annotations_are_refused_by_name_at_once() {
    for (name, value) in hostile_annotations() {
        let conf = conf("1.0.0", &[STATUS, ("weir.dev/capture", &value.to_string())]);
        let begun = Instant::now();
        let answer = Call::new("ADD").conf(&conf).run();
        // Ten times what a debug build takes.
        assert!(begun.elapsed() < Duration::from_secs(1), "{name}: {:?}", begun.elapsed());
        let error = answer.error();
        assert!([100, 101].map(Value::from).contains(&error["code"]), "{error}");
        assert!(error["msg"].as_str().unwrap().to_lowercase().contains(name), "{error}");
    }
}
