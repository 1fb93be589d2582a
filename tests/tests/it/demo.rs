//! `weir-demo` with the built binaries: every connection as expected, and the machine as it was before.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;
use weir_lab::process::{self, ChildGuard};
use weir_tests::{bin, envoy_or_skip, privileged, wait_until};

/// Bound of a whole demo.
const DEMO_TIMEOUT: Duration = Duration::from_mins(2);

/// Serializes the tests: each compares the machine before and after.
static MACHINE: Mutex<()> = Mutex::new(());

/// What a demo must not change.
#[derive(Debug, PartialEq, Eq)]
struct Machine {
    namespaces: BTreeSet<PathBuf>,
    links: String,
    rules: String,
    mounts: String,
    temporary: BTreeSet<PathBuf>,
}

impl Machine {
    fn now() -> Self {
        let text = |program: &str, args: &[&str]| {
            let output = process::run(Command::new(program).args(args), b"", DEMO_TIMEOUT).unwrap();
            assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap()
        };
        let entries = |dir: &str| fs::read_dir(dir).into_iter().flatten().map(|entry| entry.unwrap().path()).collect();
        let all_temporary: BTreeSet<PathBuf> = entries(std::env::temp_dir().to_str().unwrap());
        Self {
            namespaces: entries("/run/netns"),
            links: text("ip", &["-brief", "address"]),
            rules: text("nft", &["list", "ruleset"]),
            mounts: fs::read_to_string("/proc/self/mounts").unwrap(),
            temporary: all_temporary
                .into_iter()
                .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("weir-demo-")))
                .collect(),
        }
    }
}

/// A demo with a variable that all of its processes inherit, by which they are found.
struct Demo {
    command: Command,
    mark: String,
    _alone: MutexGuard<'static, ()>,
}

impl Demo {
    fn new(name: &str) -> Self {
        let binary = bin("weir-demo");
        let alone = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
        let mark = format!("{name}-{}", std::process::id());
        let mut command = Command::new(binary);
        command.env("WEIR_DEMO_TEST", &mark);
        Self { command, mark, _alone: alone }
    }

    /// Returns the command lines of the demo's running processes.
    fn processes(&self) -> Vec<String> {
        let mark = format!("WEIR_DEMO_TEST={}", self.mark);
        let belongs = |environment: Vec<u8>| environment.split(|byte| *byte == 0).any(|entry| entry == mark.as_bytes());
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            if fs::read(entry.path().join("environ")).is_ok_and(belongs) {
                found.push(fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default().replace('\0', " "));
            }
        }
        found
    }
}

fn report(demo: &mut Demo) -> Value {
    let output = process::run(demo.command.arg("--json"), b"", DEMO_TIMEOUT).unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {stderr}\n{}", output.status, String::from_utf8_lossy(&output.stdout));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Asserts that the report has all connections of both families, with the expected results.
fn assert_complete(report: &Value) {
    assert_eq!(report["ok"], true);
    let flows = report["flows"].as_array().unwrap();
    let wrong: Vec<&Value> =
        flows.iter().filter(|flow| flow["ok"] != true || flow["got"] != flow["expected"]).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
    for family in ["IPv4", "IPv6"] {
        let ways = |way: &str| flows.iter().filter(|flow| flow["family"] == family && flow["got"] == way).count();
        assert_eq!((ways("inbound"), ways("outbound"), ways("direct")), (1, 1, 5), "{family}");
    }
    let checks = report["checks"].as_array().unwrap();
    assert_eq!(checks.len(), 5);
    assert!(checks.iter().all(|check| check["ok"] == true), "{checks:?}");
    let annotations = &report["admission"]["added_annotations"];
    assert!(annotations["weir.dev/capture"].is_string() && annotations["sidecar.istio.io/status"].is_string());
    assert!(report["add"]["median_microseconds"].as_u64().unwrap() > 0);
}

#[test]
fn demo_succeeds_and_leaves_nothing() {
    if !privileged() {
        return;
    }
    let mut demo = Demo::new("whole");
    demo.command.env_remove("WEIR_ENVOY");
    let before = Machine::now();
    let report = report(&mut demo);
    assert_complete(&report);
    assert_eq!(report["sidecar"], "built-in passthrough proxy");
    assert_eq!(demo.processes(), Vec::<String>::new());
    assert_eq!(Machine::now(), before);
}

#[test]
fn demo_succeeds_with_envoy() {
    let Some(envoy) = envoy_or_skip() else { return };
    let mut demo = Demo::new("envoy");
    demo.command.arg("--envoy").arg(envoy);
    let before = Machine::now();
    let report = report(&mut demo);
    assert_complete(&report);
    assert!(report["sidecar"].as_str().unwrap().starts_with("Envoy "), "{}", report["sidecar"]);
    assert_eq!(demo.processes(), Vec::<String>::new());
    assert_eq!(Machine::now(), before);
}

#[test]
fn interrupted_demo_leaves_nothing() {
    if !privileged() {
        return;
    }
    // The demo is interrupted when it has just printed this heading.
    for moment in ["The admission", "The network", "The processes", "The connections"] {
        let mut demo = Demo::new("interrupted");
        let before = Machine::now();
        let mut child = ChildGuard(demo.command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
        let stdout = BufReader::new(child.0.stdout.take().unwrap());
        let mut lines = stdout.lines().map_while(Result::ok);
        assert!(lines.any(|line| line.starts_with(moment)), "the demo never prints {moment:?}");
        let signal =
            process::run(Command::new("kill").args(["-INT", &child.0.id().to_string()]), b"", DEMO_TIMEOUT).unwrap();
        assert!(signal.status.success());
        // Its output must be read until it exits.
        let rest: Vec<String> = lines.collect();
        let status = child.wait_until(Instant::now() + DEMO_TIMEOUT).unwrap().expect("an interrupted demo exits");
        assert_eq!(status.code(), Some(130), "interrupted at {moment:?}, it went on: {rest:?}");
        assert_eq!(demo.processes(), Vec::<String>::new(), "interrupted at {moment:?}");
        assert_eq!(Machine::now(), before, "interrupted at {moment:?}");
    }
}

#[test]
fn killed_demo_leaves_no_processes() {
    if !privileged() {
        return;
    }
    let mut demo = Demo::new("killed");
    // A killed demo leaves its temporary directory, which the test removes.
    let dir = tempfile::tempdir().unwrap();
    let mut child = ChildGuard(
        demo.command.env("TMPDIR", dir.path()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap(),
    );
    let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.starts_with("The connections")));
    assert!(demo.processes().len() > 1, "there are processes besides the demo itself: {:?}", demo.processes());
    child.0.kill().unwrap();
    child.0.wait().unwrap();
    wait_until("its processes are gone", || {
        let processes = demo.processes();
        if processes.is_empty() { Ok(()) } else { Err(format!("{processes:?}")) }
    });
}

#[test]
fn everything_missing_is_named_at_once() {
    if !privileged() {
        return;
    }
    let mut demo = Demo::new("missing");
    let command = demo.command.env("CNI_PATH", "/nowhere").args(["--envoy", "/no/envoy"]);
    let output = process::run(command, b"", DEMO_TIMEOUT).unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    for named in ["bridge, host-local, portmap", "apt-get install containernetworking-plugins", "/no/envoy"] {
        assert!(stderr.contains(named), "{named} is not in: {stderr}");
    }
}

#[test]
fn demo_without_root_says_what_it_needs() {
    if !privileged() {
        return;
    }
    // A copy that every user may execute.
    let dir = tempfile::tempdir().unwrap();
    let binary = dir.path().join("weir-demo");
    fs::copy(bin("weir-demo"), &binary).unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let output = process::run(Command::new(&binary).uid(65534).gid(65534), b"", DEMO_TIMEOUT).unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("network namespaces need root"), "{stderr}");
    assert!(stderr.contains("weir-webhook is neither beside weir-demo nor in PATH"), "{stderr}");
}
