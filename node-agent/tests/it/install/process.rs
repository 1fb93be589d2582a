//! The agent's process: restores its entry, backs off under contention, shares the node with another agent, leaves all installed at its end.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use weir_agent::install::file_system::TEMPORARY_PREFIX;

use super::node::{LIST, Node, SINGLE, types};

/// Limit for anything that should happen soon, on a busy machine.
const TIMEOUT: Duration = Duration::from_mins(1);
const POLL: Duration = Duration::from_millis(10);

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + TIMEOUT;
    while !holds() {
        assert!(Instant::now() < end, "not within {TIMEOUT:?}: {what}");
        thread::sleep(POLL);
    }
}

/// A running agent.
struct Agent {
    child: Child,
    health: u16,
    monitoring: u16,
}

/// Returns a free port below 32768, where the kernel takes none for connections.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let base = 16_000 + u16::try_from(std::process::id() % 14_000).unwrap();
    loop {
        let port = base + NEXT.fetch_add(1, Ordering::Relaxed);
        if TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok() {
            return port;
        }
    }
}

impl Agent {
    fn start(node: &Node, more: &[&str]) -> Self {
        let (health, monitoring) = (free_port(), free_port());
        let child = Command::new(env!("CARGO_BIN_EXE_weir-agent"))
            .args(node.flags(more))
            .args([format!("--health-port={health}"), format!("--monitoring-port={monitoring}")])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, health, monitoring }
    }

    fn ask(port: u16, request: &str) -> Option<String> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()?;
        stream.set_read_timeout(Some(TIMEOUT)).ok()?;
        stream.write_all(format!("{request} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    }

    fn readiness(&self) -> String {
        Self::ask(self.health, "GET /readyz").unwrap_or_default()
    }

    /// Returns whether the condition `install` is ok.
    fn is_installed(&self) -> bool {
        self.readiness().contains("[+]install: ")
    }

    fn metric(&self, name: &str) -> u64 {
        let text = Self::ask(self.monitoring, "GET /metrics").unwrap_or_default();
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.and_then(|value| value.parse().ok()).unwrap_or(0)
    }

    fn signal(&mut self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    fn end(&mut self, signal: Signal) {
        self.signal(signal);
        eventually("the agent ends", || self.child.try_wait().unwrap().is_some());
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn once(node: &Node, command: &str, more: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_weir-agent")).arg(command).args(node.flags(more)).output().unwrap()
}

/// Returns whether the entry is the last of this list, right now.
fn has_entry(node: &Node, name: &str) -> bool {
    fs::read_to_string(node.conf().join(name)).is_ok_and(|text| {
        serde_json::from_str::<serde_json::Value>(&text).is_ok()
            && types(&text).last().is_some_and(|kind| kind == "weir-cni")
    })
}

#[test]
fn changes_of_others_are_reverted_or_followed() {
    let node = Node::new();
    let agent = Agent::start(&node, &[]);
    eventually("no network is a named reason", || agent.readiness().contains("no network configuration in"));

    node.write("20-b.conflist", LIST);
    eventually("the network arrives", || has_entry(&node, "20-b.conflist") && agent.is_installed());
    node.write("20-b.conflist", LIST);
    eventually("the entry comes back", || has_entry(&node, "20-b.conflist"));
    fs::remove_file(node.bin().join("weir-cni")).unwrap();
    eventually("the plugin comes back", || node.bin().join("weir-cni").exists());

    // A network that sorts first, written slowly.
    let mut file = fs::File::create(node.conf().join("10-a.conf")).unwrap();
    for half in [&SINGLE[..20], &SINGLE[20..]] {
        file.write_all(half.as_bytes()).unwrap();
        file.sync_all().unwrap();
    }
    drop(file);
    eventually("the preempting network is followed", || has_entry(&node, "10-a.conflist"));
    // Other files, none of which is a network.
    node.write("05-bad.conf", "{");
    node.write("06-huge.conflist", &"x".repeat(2 << 20));
    nix::unistd::mkfifo(&node.conf().join("07-pipe.conf"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    std::os::unix::fs::symlink("/nowhere", node.conf().join("08-link.conflist")).unwrap();
    eventually("each is named", || {
        let readiness = agent.readiness();
        readiness.contains("05-bad.conf") && readiness.contains("sorts first")
    });
    // The network is removed and installed again.
    for name in ["10-a.conflist", "20-b.conflist"] {
        fs::remove_file(node.conf().join(name)).unwrap();
    }
    eventually("it is missed", || agent.readiness().contains("[-]install: waiting for a network configuration"));
    node.write("20-b.conflist", LIST);
    eventually("it is back", || has_entry(&node, "20-b.conflist") && agent.is_installed());
    assert!(agent.metric("weir_agent_config_drift_total{change=\"missing\"}") >= 1);
    assert_eq!(agent.metric("weir_agent_installed"), 1);
}

#[test]
fn a_replaced_directory_is_watched_again() {
    let node = Node::new();
    node.write("10-a.conflist", LIST);
    let agent = Agent::start(&node, &["--check-interval=500ms"]);
    eventually("installed", || agent.is_installed());
    fs::remove_dir_all(node.conf()).unwrap();
    eventually("it is missed", || !agent.is_installed());
    fs::create_dir(node.conf()).unwrap();
    node.write("10-a.conflist", LIST);
    eventually("installed into the new one", || has_entry(&node, "10-a.conflist"));
    node.write("10-a.conflist", LIST);
    eventually("and kept there", || has_entry(&node, "10-a.conflist"));
}

#[test]
fn ten_rewrites_per_second_are_reported_as_contention() {
    let node = Node::new();
    node.write("10-a.conflist", LIST);
    let agent = Agent::start(&node, &[]);
    eventually("installed", || agent.is_installed());
    let writes = || agent.metric("weir_agent_config_drift_total{change=\"missing\"}");
    let start = Instant::now();
    while agent.metric("weir_agent_config_contentions_total") == 0 {
        assert!(start.elapsed() < TIMEOUT, "contention is not detected");
        node.write("10-a.conflist", LIST);
        thread::sleep(Duration::from_millis(100));
    }
    // Five restores are free, then the delays are 1 s, 2 s, 4 s: in 5 s there is room for three more.
    let start = Instant::now();
    let before = writes();
    while start.elapsed() < Duration::from_secs(5) {
        node.write("10-a.conflist", LIST);
        thread::sleep(Duration::from_millis(100));
    }
    let more = writes() - before;
    assert!(more <= 4 + start.elapsed().as_secs() / 30, "{more} answers in {:?}", start.elapsed());
    let readiness = agent.readiness();
    assert!(readiness.contains("[!]contention: another component keeps changing the CNI configuration"), "{readiness}");
    assert_eq!(agent.metric("weir_agent_config_contended"), 1);
    eventually("the entry is there when the other gives up", || {
        has_entry(&node, "10-a.conflist") && agent.is_installed()
    });
}

#[test]
fn signals_remove_nothing() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGKILL] {
        let node = Node::new();
        node.write("10-a.conflist", LIST);
        let mut agent = Agent::start(&node, &[]);
        eventually("installed", || agent.is_installed());
        let before = (Node::files(&node.conf()), Node::files(&node.bin()));
        agent.end(signal);
        assert_eq!((Node::files(&node.conf()), Node::files(&node.bin())), before, "{signal}");
    }
}

#[test]
fn the_newer_of_two_agents_installs_until_it_dies() {
    let node = Node::new();
    node.write("10-a.conflist", LIST);
    let says = |word: &str| fs::read_to_string(node.conf().join("10-a.conflist")).is_ok_and(|text| text.contains(word));
    let old = Agent::start(&node, &["--exclude-namespaces=old"]);
    eventually("the first installs", || old.is_installed() && says("\"old\""));
    let mut new = Agent::start(&node, &["--exclude-namespaces=new"]);
    eventually("the second takes over", || new.is_installed() && says("\"new\""));
    eventually("the first knows", || old.readiness().contains("[+]install: a newer agent"));
    // While both are alive only the newer one restores the file.
    node.write("10-a.conflist", LIST);
    eventually("the second puts it back", || says("\"new\""));
    assert!(old.metric("weir_agent_config_drift_total{change=\"different\"}") == 0);
    new.end(Signal::SIGKILL);
    eventually("the first takes over again", || says("\"old\""));
}

#[test]
fn a_running_agent_respects_an_uninstall() {
    let node = Node::new();
    node.write("10-a.conf", SINGLE);
    let mut agent = Agent::start(&node, &[]);
    eventually("installed", || agent.is_installed());
    for _ in 0..2 {
        let output = once(&node, "uninstall", &["--wait=0s"]);
        assert!(output.status.success(), "{output:?}");
    }
    eventually("the agent knows", || agent.readiness().contains("`weir-agent uninstall` ran on this node"));
    assert_eq!(Node::files(&node.conf()), BTreeMap::from([("10-a.conf".to_owned(), SINGLE.to_owned())]));
    assert!(!node.bin().join("weir-cni").exists());
    agent.end(Signal::SIGTERM);
    // Without libcni's cache the attachments are unknown: the plugin stays, with a record beside it.
    let cache = node.results();
    node.image("plugin 2");
    assert!(once(&node, "install", &["--wait=30s"]).status.success());
    fs::remove_dir(&cache).unwrap();
    let output = once(&node, "uninstall", &["--wait=0s"]);
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("kept the plugin"), "{output:?}");
    assert!(node.bin().join("weir-cni").exists() && node.conf().join("10-a.conf").exists());
    let record = fs::read_to_string(node.bin().join("weir-cni.kept")).unwrap();
    assert!(record.contains("cannot list attachments"), "{record}");
    let agent = Agent::start(&node, &[]);
    eventually("a restarted agent installs again", || agent.is_installed() && has_entry(&node, "10-a.conflist"));
    assert!(!node.bin().join("weir-cni.kept").exists(), "the record is of an uninstalled plugin");
}

#[test]
fn install_subcommand_installs_once() {
    let node = Node::new();
    let output = once(&node, "install", &["--wait=0s"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("no network configuration in"), "{output:?}");
    node.write("10-a.conflist", LIST);
    let output = once(&node, "install", &["--wait=30s"]);
    assert!(output.status.success(), "{output:?}");
    assert!(has_entry(&node, "10-a.conflist"));
    let output = once(&node, "install", &["--chained-cni-plugin=false", "--owned-cni-config"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}

/// Kills at random moments. `WEIR_KILL_ROUNDS` makes it longer.
#[test]
fn a_killed_installation_leaves_a_working_node() {
    let rounds = std::env::var("WEIR_KILL_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(20_u64);
    let node = Node::new();
    let mut killed_early = 0;
    for round in 0..rounds {
        // Every round has another entry and plugin, every third a rewritten network.
        node.image(&format!("plugin {round}"));
        if round % 3 == 0 {
            node.write("10-a.conflist", LIST);
        }
        let flags = node.flags(&["--wait=30s", &format!("--exclude-namespaces=round-{round}")]);
        let mut child = Command::new(env!("CARGO_BIN_EXE_weir-agent"))
            .arg("install")
            .args(flags)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        thread::sleep(Duration::from_micros(round * 7919 % 40_000));
        let _ = child.kill();
        killed_early += u64::from(!child.wait().unwrap().success());

        let list = fs::read_to_string(node.conf().join("10-a.conflist")).unwrap();
        let kinds = types(&list);
        assert!(
            kinds == ["bridge", "portmap"] || kinds == ["bridge", "portmap", "weir-cni"],
            "round {round}: {kinds:?}"
        );
        if kinds.len() == 3 {
            let plugin = fs::read_to_string(node.bin().join("weir-cni")).unwrap();
            assert!(plugin.starts_with("plugin "), "round {round}: {plugin:?}");
        }
    }
    eprintln!("{killed_early} of {rounds} were killed before they had ended");
    assert!(once(&node, "install", &["--wait=30s"]).status.success());
    for folder in [node.conf(), node.bin()] {
        assert!(Node::files(&folder).keys().all(|name| !name.starts_with(TEMPORARY_PREFIX)));
    }
    assert!(once(&node, "uninstall", &["--wait=0s"]).status.success());
    assert_eq!(Node::files(&node.conf()), BTreeMap::from([("10-a.conflist".to_owned(), LIST.to_owned())]));
}
