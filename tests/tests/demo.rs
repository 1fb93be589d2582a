//! `weir demo` with the built binaries: every connection as expected, and the machine as it was before.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests may panic like tests")]

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
use weir_lab::process::{self, Guarded};
use weir_tests::{bin, envoy_or_skip, privileged};

/// Bound of a whole demo.
const BOUND: Duration = Duration::from_mins(2);

/// One demo at a time: each test compares the machine before and after.
static MACHINE: Mutex<()> = Mutex::new(());

/// What a demo must leave as it was.
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
            let output = process::run(Command::new(program).args(args), b"", BOUND).unwrap();
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

/// A demo to be run, recognizable by a variable that all of its processes inherit.
struct Demo {
    command: Command,
    mark: String,
    _alone: MutexGuard<'static, ()>,
}

impl Demo {
    fn new(name: &str) -> Self {
        let weir = bin("weir");
        let alone = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
        let mark = format!("{name}-{}", std::process::id());
        let mut command = Command::new(weir);
        command.arg("demo").env("WEIR_DEMO_TEST", &mark);
        Self { command, mark, _alone: alone }
    }

    /// Command lines of the demo's processes that are alive.
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
    let output = process::run(demo.command.arg("--json"), b"", BOUND).unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {stderr}\n{}", output.status, String::from_utf8_lossy(&output.stdout));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Everything that the report says must have been found, for both families.
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
fn every_connection_is_as_expected_and_nothing_is_left() {
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
fn the_same_holds_with_a_real_envoy() {
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
fn an_interrupted_demo_leaves_nothing() {
    if !privileged() {
        return;
    }
    // The demo is interrupted when it has just said this.
    for moment in ["The admission", "The network", "The processes", "The connections"] {
        let mut demo = Demo::new("interrupted");
        let before = Machine::now();
        let mut child = Guarded(demo.command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
        let stdout = BufReader::new(child.0.stdout.take().unwrap());
        let mut lines = stdout.lines().map_while(Result::ok);
        assert!(lines.any(|line| line.starts_with(moment)), "the demo never says {moment:?}");
        let signal = process::run(Command::new("kill").args(["-INT", &child.0.id().to_string()]), b"", BOUND).unwrap();
        assert!(signal.status.success());
        // What it still writes has to go somewhere.
        let rest: Vec<String> = lines.collect();
        let status = child.wait_until(Instant::now() + BOUND).unwrap().expect("an interrupted demo ends");
        assert_eq!(status.code(), Some(130), "interrupted at {moment:?}, it went on: {rest:?}");
        assert_eq!(demo.processes(), Vec::<String>::new(), "interrupted at {moment:?}");
        assert_eq!(Machine::now(), before, "interrupted at {moment:?}");
    }
}

#[test]
fn a_killed_demo_takes_its_processes_along() {
    if !privileged() {
        return;
    }
    let mut demo = Demo::new("killed");
    // The folder of one that is killed stays; here it goes with the test.
    let dir = tempfile::tempdir().unwrap();
    let mut child =
        Guarded(demo.command.env("TMPDIR", dir.path()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
    let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.starts_with("The connections")));
    assert!(demo.processes().len() > 1, "there are processes besides the demo itself: {:?}", demo.processes());
    child.0.kill().unwrap();
    child.0.wait().unwrap();
    // The kernel has told them to end by now; that they have ended takes a moment.
    let deadline = Instant::now() + Duration::from_secs(10);
    while !demo.processes().is_empty() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(demo.processes(), Vec::<String>::new());
}

#[test]
fn what_is_missing_is_named_all_at_once() {
    if !privileged() {
        return;
    }
    let mut demo = Demo::new("missing");
    let command = demo.command.env("CNI_PATH", "/nowhere").args(["--envoy", "/no/envoy"]);
    let output = process::run(command, b"", BOUND).unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    for named in ["bridge, host-local, portmap", "apt-get install containernetworking-plugins", "/no/envoy"] {
        assert!(stderr.contains(named), "{named} is not in: {stderr}");
    }
}

#[test]
fn without_root_it_says_so() {
    if !privileged() {
        return;
    }
    // A copy that anybody may execute, wherever the project lies.
    let dir = tempfile::tempdir().unwrap();
    let weir = dir.path().join("weir");
    fs::copy(bin("weir"), &weir).unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let output = process::run(Command::new(&weir).arg("demo").uid(65534).gid(65534), b"", BOUND).unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("network namespaces need root"), "{stderr}");
    assert!(stderr.contains("weir-webhook is neither beside weir nor in PATH"), "{stderr}");
}
