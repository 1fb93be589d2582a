//! Every file operation fails once, in every way: the node's network stays valid, and the next attempt ends as an undisturbed one.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nix::libc::{EIO, ENOSPC, EROFS};
use weir_agent::health::Health;
use weir_agent::install::file_system::{
    DirEntry, FileAttributes, FileStamp, FileSystem, OsFileSystem, TEMPORARY_PREFIX,
};
use weir_agent::install::installer::{InstallOutcome, Installer, Mode};
use weir_agent::install::network::is_configuration;
use weir_agent::install::{reconcile, uninstall};
use weir_agent::metrics::MetricsRegistry;
use weir_agent::node_event;
use weir_agent::task_context::TaskContext;
use weir_runtime::CancellationToken;

use crate::follow::until;

use super::node::{LIST, Node, SINGLE, types};

/// Fate of the operation.
#[derive(Debug, Clone, Copy)]
enum Fault {
    /// The disk is full: a part is written.
    Full,
    /// The disk turns read-only.
    ReadOnly,
    /// This one fails, the next works.
    Once,
    /// The process is killed before it.
    KilledBefore,
    /// The process is killed after it.
    KilledAfter,
    /// The process is killed while it writes.
    Torn,
    /// The operation panics, the next works.
    Panic,
}

const FAULTS: [Fault; 6] =
    [Fault::Full, Fault::ReadOnly, Fault::Once, Fault::KilledBefore, Fault::KilledAfter, Fault::Torn];

/// A file system on which the operation number `turn` fails.
#[derive(Clone)]
struct FaultyFileSystem {
    fault: Fault,
    turn: usize,
    done: Arc<AtomicUsize>,
}

impl FaultyFileSystem {
    fn new(fault: Fault, turn: usize) -> Self {
        Self { fault, turn, done: Arc::default() }
    }

    /// Returns whether the operation has failed.
    fn has_failed(&self) -> bool {
        self.done.load(Ordering::Relaxed) > self.turn
    }

    fn change(&self, torn: impl FnOnce(), act: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let number = self.done.fetch_add(1, Ordering::Relaxed);
        let error = |errno| Err(io::Error::from_raw_os_error(errno));
        if number < self.turn {
            return act();
        }
        match (self.fault, number == self.turn) {
            (Fault::Full, true) => {
                torn();
                error(ENOSPC)
            }
            (Fault::ReadOnly, _) => error(EROFS),
            (Fault::Full | Fault::Once | Fault::Panic, false) => act(),
            (Fault::KilledAfter, true) => act().and(error(EIO)),
            (Fault::Torn, true) => {
                torn();
                error(EIO)
            }
            (Fault::Panic, true) => panic!("of the test"),
            // A killed process does nothing any more.
            (Fault::Once | Fault::KilledBefore | Fault::KilledAfter | Fault::Torn, _) => error(EIO),
        }
    }
}

impl FileSystem for FaultyFileSystem {
    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        OsFileSystem.list(dir)
    }
    fn read(&self, path: &Path, max: u64) -> io::Result<Vec<u8>> {
        OsFileSystem.read(path, max)
    }
    fn attributes(&self, path: &Path) -> io::Result<FileAttributes> {
        OsFileSystem.attributes(path)
    }
    fn stamp(&self, path: &Path) -> io::Result<FileStamp> {
        OsFileSystem.stamp(path)
    }
    fn resolve(&self, path: &Path) -> io::Result<PathBuf> {
        OsFileSystem.resolve(path)
    }
    fn create(&self, path: &Path, bytes: &[u8], attributes: FileAttributes) -> io::Result<()> {
        let half = &bytes[..bytes.len() / 2];
        self.change(
            || drop(OsFileSystem.create(path, half, attributes)),
            || OsFileSystem.create(path, bytes, attributes),
        )
    }
    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.change(|| (), || OsFileSystem.link(from, to))
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.change(|| (), || OsFileSystem.rename(from, to))
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.change(|| (), || OsFileSystem.remove(path))
    }
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.change(|| (), || OsFileSystem.create_dir(path))
    }
    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.change(|| (), || OsFileSystem.remove_dir(path))
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.change(|| (), || OsFileSystem.sync_dir(path))
    }
}

/// A node before an attempt, and the flags of the attempt.
struct Start {
    what: &'static str,
    flags: &'static [&'static str],
    original: (&'static str, &'static str),
    /// Flags of an earlier installation by another version, where there was one.
    before: Option<&'static [&'static str]>,
}

const STARTS: [Start; 6] = [
    Start { what: "a list", flags: &[], original: ("10-a.conflist", LIST), before: None },
    Start { what: "a single plugin", flags: &[], original: ("10-a.conf", SINGLE), before: None },
    Start {
        what: "an update",
        flags: &["--exclude-namespaces=kube-system,infra"],
        original: ("10-a.conflist", LIST),
        before: Some(&[]),
    },
    Start { what: "our own list", flags: &["--cni-placement=owned"], original: ("10-a.conflist", LIST), before: None },
    Start {
        what: "from chained to our own list",
        flags: &["--cni-placement=owned"],
        original: ("10-a.conf", SINGLE),
        before: Some(&[]),
    },
    Start {
        what: "a configuration of our own",
        flags: &["--chained-cni-plugin=false"],
        original: ("10-a.conflist", LIST),
        before: None,
    },
];

impl Start {
    fn node(&self) -> Node {
        let node = Node::new();
        node.write(self.original.0, self.original.1);
        if let Some(flags) = self.before {
            let report = Installer::new(node.settings(flags), OsFileSystem).reconcile(Mode::Apply);
            assert!(matches!(report.outcome, InstallOutcome::Installed { .. }), "{report:?}");
            node.image("plugin 2, which is longer");
        }
        node
    }
}

/// Asserts what runtimes need at any moment: a valid network, and a complete binary if an entry names it.
fn assert_whole(node: &Node, context: &str) {
    let files = Node::files(&node.conf());
    let read: Vec<_> = files.iter().filter(|(name, _)| is_configuration(name)).collect();
    let networks: Vec<_> = read.iter().map(|(name, text)| (name, types(text))).collect();
    let first = networks.iter().find(|(_, types)| types.iter().any(|kind| kind == "bridge"));
    assert!(first.is_some(), "{context}: the node's network is gone: {:?}", files.keys());
    if networks.iter().any(|(_, types)| types.iter().any(|kind| kind == "weir-cni")) {
        let binary = std::fs::read_to_string(node.bin().join("weir-cni")).unwrap_or_default();
        let whole = ["plugin 1", "plugin 2, which is longer"].contains(&binary.as_str());
        assert!(whole, "{context}: an entry names a binary that is {binary:?}");
    }
}

fn assert_installed(node: &Node, start: &Start, context: &str) {
    let report = Installer::new(node.settings(start.flags), OsFileSystem).reconcile(Mode::Apply);
    assert!(matches!(report.outcome, InstallOutcome::Installed { .. }), "{context}: {report:?}");
    assert_whole(node, context);
    let after = Installer::new(node.settings(start.flags), OsFileSystem).reconcile(Mode::DryRun);
    assert!(matches!(after.outcome, InstallOutcome::Installed { .. }), "{context}: {after:?}");
    for dir in [node.conf(), node.bin()] {
        let left = Node::files(&dir).into_keys().find(|name| name.starts_with(TEMPORARY_PREFIX));
        assert_eq!(left, None, "{context}");
    }
    let versions = Node::files(&node.bin()).into_keys().filter(|name| name.starts_with("weir-cni-")).count();
    assert_eq!(versions, 1, "{context}");
}

fn assert_original(node: &Node, start: &Start, context: &str) {
    let done = uninstall::uninstall(&node.settings(start.flags), &OsFileSystem, Duration::ZERO);
    let done = done.unwrap_or_else(|wrong| panic!("{context}: {wrong:?}"));
    assert!(!matches!(done.binary, uninstall::BinaryRemoval::Kept(_)), "{context}: {done:?}");
    let (name, text) = start.original;
    assert_eq!(Node::files(&node.conf()), [(name.to_owned(), text.to_owned())].into(), "{context}");
    assert_eq!(Node::files(&node.bin()).into_keys().collect::<Vec<_>>(), ["bridge", "portmap"], "{context}");
}

#[test]
fn an_interrupted_installation_is_completed_by_the_next() {
    for start in &STARTS {
        for fault in FAULTS {
            for turn in 0.. {
                let context = format!("{}, {fault:?} at operation {turn}", start.what);
                let node = start.node();
                let file_system = FaultyFileSystem::new(fault, turn);
                let _ = Installer::new(node.settings(start.flags), file_system.clone()).reconcile(Mode::Apply);
                assert_whole(&node, &context);
                assert_installed(&node, start, &context);
                assert_original(&node, start, &context);
                if !file_system.has_failed() {
                    assert!(turn > 5, "{context}: there is more to do than that");
                    break;
                }
            }
        }
    }
}

#[test]
fn an_interrupted_uninstall_is_completed_by_the_next() {
    for start in &STARTS {
        for fault in FAULTS {
            for turn in 0.. {
                let context = format!("{} undone, {fault:?} at operation {turn}", start.what);
                let node = start.node();
                assert_installed(&node, start, &context);
                let file_system = FaultyFileSystem::new(fault, turn);
                let _ = uninstall::uninstall(&node.settings(start.flags), &file_system, Duration::ZERO);
                assert_whole(&node, &context);
                assert_original(&node, start, &context);
                if !file_system.has_failed() {
                    assert!(turn > 3, "{context}: there is more to do than that");
                    break;
                }
            }
        }
    }
}

#[test]
fn binary_stays_while_an_attachment_needs_it() {
    use base64::Engine as _;
    let node = STARTS[0].node();
    assert_installed(&node, &STARTS[0], "installed");
    let config =
        base64::engine::general_purpose::STANDARD.encode(std::fs::read(node.conf().join("10-a.conflist")).unwrap());
    let cached = node.results().join("net-1234-eth0");
    std::fs::write(&cached, format!(r#"{{"kind":"cniCacheV1","containerId":"1234","config":"{config}"}}"#)).unwrap();
    let done = uninstall::uninstall(&node.settings(&[]), &OsFileSystem, Duration::ZERO).unwrap();
    assert!(matches!(&done.binary, uninstall::BinaryRemoval::Kept(why) if why.contains("1 attachments")), "{done:?}");
    assert_eq!(done.files, ["10-a.conflist"]);
    assert!(node.bin().join("weir-cni").exists());
    std::fs::remove_file(cached).unwrap();
    assert_original(&node, &STARTS[0], "after the pod has gone");
}

#[tokio::test]
async fn a_reconcile_that_panics_is_retried() {
    let node = STARTS[0].node();
    let file_system = FaultyFileSystem::new(Fault::Panic, 0);
    let health = Health::default();
    let (node_events, _events) = node_event::channel();
    let shutdown = CancellationToken::new();
    let metrics = MetricsRegistry::default();
    let context = TaskContext { health: health.clone(), metrics, node_events, shutdown: shutdown.clone() };
    let task = reconcile::run(node.settings(&[]), file_system.clone(), Duration::from_hours(1), context);
    let task = tokio::spawn(task);
    until("installed after the panic", || health.readiness().ready).await;
    assert!(file_system.has_failed());
    shutdown.cancel();
    task.await.unwrap();
}
