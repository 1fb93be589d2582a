//! Finds the network namespace of a pod. Each candidate still has to contain the pod's addresses (`inspect.rs`).
//!
//! 1. `CNI_NETNS` as reported by the plugin;
//! 2. the runtime's state of the sandbox, also for CRI-O without a pause process, and while every container is in back-off;
//! 3. processes with the pod's uid or the id of its container in their cgroup;
//! 4. all named network namespaces.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::Read as _;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use nix::fcntl::OFlag;
use serde::Deserialize;
use serde_json::Value;
use weir_kernel::netns;

use super::inspect::addresses;
use super::visits::Visits;
use crate::pods::PodFacts;
use crate::socket::Attachments;

/// Largest OCI configuration that is read.
const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// Largest cgroup file that is read.
const MAX_CGROUP_BYTES: u64 = 64 << 10;
/// Most processes of one pod that are tried: a container may have created namespaces of its own.
const MAX_PROCESSES: usize = 8;
/// Most entries of a directory that are read.
const MAX_ENTRIES: usize = 16_384;

/// Paths where network namespaces are found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetnsPaths {
    /// Mount point of the host's `/proc`.
    pub host_proc: PathBuf,
    /// Mount point of the host's root; a path that does not exist below it is used as it is.
    pub host_root: PathBuf,
    /// Directories of the host with named network namespaces.
    pub netns_dirs: Vec<PathBuf>,
    /// Directories of the host with a directory for each container.
    pub runtime_dirs: Vec<PathBuf>,
}

/// Way in which a network namespace was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetnsSource {
    /// Reported by the plugin.
    Report,
    /// In the runtime's state.
    Runtime,
    /// By a process of the pod.
    Process,
    /// By its name.
    Name,
}

impl NetnsSource {
    /// Returns the name used in logs and `GET /pods`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Report => "plugin",
            Self::Runtime => "runtime",
            Self::Process => "process",
            Self::Name => "netns folder",
        }
    }
}

/// Finds the network namespaces of pods. Each expensive source is read at most once, when it is needed.
#[derive(Debug)]
pub struct NetnsLookup<'a> {
    paths: &'a NetnsPaths,
    attachments: &'a Attachments,
    visits: &'a Visits,
    runtime: OnceLock<HashMap<String, Vec<PathBuf>>>,
    processes: OnceLock<Processes>,
    named: OnceLock<Vec<(PathBuf, HashSet<IpAddr>)>>,
}

/// Network namespaces of processes, by the pod and the container in their cgroup.
#[derive(Debug, Default)]
struct Processes {
    by_pod: HashMap<String, Vec<PathBuf>>,
    by_container: HashMap<String, Vec<PathBuf>>,
}

impl NetnsPaths {
    /// Returns where a path of the host is mounted.
    pub(crate) fn mounted_path(&self, path: &Path) -> PathBuf {
        if let Ok(rest) = path.strip_prefix("/proc") {
            return self.host_proc.join(rest);
        }
        // `/run` and `/var/run` are the same directory, and only one may be mounted.
        let other = match path.strip_prefix("/var/run") {
            Ok(rest) => Some(Path::new("/run").join(rest)),
            Err(_) => path.strip_prefix("/run").ok().map(|rest| Path::new("/var/run").join(rest)),
        };
        let below = |path: &Path| self.host_root.join(path.strip_prefix("/").unwrap_or(path));
        let here = [Some(path), other.as_deref()].into_iter().flatten().map(below).find(|path| path.exists());
        here.unwrap_or_else(|| path.to_owned())
    }
}

impl<'a> NetnsLookup<'a> {
    /// Creates a lookup; nothing is read yet.
    pub fn new(paths: &'a NetnsPaths, attachments: &'a Attachments, visits: &'a Visits) -> Self {
        let (runtime, processes, named) = (OnceLock::new(), OnceLock::new(), OnceLock::new());
        Self { paths, attachments, visits, runtime, processes, named }
    }

    /// Returns candidates for the pod's network namespace, the most reliable first; later ones are found lazily.
    pub fn candidates<'b>(&'b self, pod: &'b PodFacts) -> impl Iterator<Item = (PathBuf, NetnsSource)> + use<'a, 'b> {
        let uids = || std::iter::once(&pod.uid).chain(&pod.config_hash);
        let reported =
            uids().filter_map(|uid| self.attachments.get(uid)).map(|found| self.paths.mounted_path(&found.netns));
        let recorded =
            std::iter::once(()).flat_map(move |()| uids().filter_map(|uid| self.runtime().get(uid)).flatten().cloned());
        let running = std::iter::once(()).flat_map(move |()| {
            let processes = self.processes();
            let by_pod = uids().filter_map(|uid| processes.by_pod.get(uid)).flatten();
            by_pod.chain(pod.container_ids.iter().filter_map(|id| processes.by_container.get(id)).flatten()).cloned()
        });
        let named = std::iter::once(()).flat_map(move |()| {
            let has_all = |(_, present): &&(PathBuf, HashSet<IpAddr>)| pod.ips.iter().all(|ip| present.contains(ip));
            self.named().iter().filter(has_all).map(|(path, _)| path.clone())
        });
        let with = |source| move |path| (path, source);
        reported
            .map(with(NetnsSource::Report))
            .chain(recorded.map(with(NetnsSource::Runtime)))
            .chain(running.map(with(NetnsSource::Process)))
            .chain(named.map(with(NetnsSource::Name)))
    }

    fn runtime(&self) -> &HashMap<String, Vec<PathBuf>> {
        self.runtime.get_or_init(|| {
            let mut found: HashMap<String, Vec<PathBuf>> = HashMap::new();
            for dir in self.paths.runtime_dirs.iter().flat_map(|dir| entries(&self.paths.mounted_path(dir))) {
                let records = [dir.join("config.json"), dir.join("userdata/config.json")];
                let Some(record) = records.iter().find_map(|path| read(path, MAX_CONFIG_BYTES)) else { continue };
                if let Some((uid, netns)) = sandbox_netns(&record) {
                    found.entry(uid).or_default().push(self.paths.mounted_path(&netns));
                }
            }
            found
        })
    }

    fn processes(&self) -> &Processes {
        self.processes.get_or_init(|| {
            let mut found = Processes::default();
            for dir in entries(&self.paths.host_proc) {
                let is_process =
                    dir.file_name().is_some_and(|name| name.to_string_lossy().bytes().all(|b| b.is_ascii_digit()));
                let Some(cgroup) = is_process.then(|| read(&dir.join("cgroup"), MAX_CGROUP_BYTES)).flatten() else {
                    continue;
                };
                let cgroup = String::from_utf8_lossy(&cgroup);
                for word in cgroup.split(['/', '\n', ':']) {
                    let known = match (pod_uid(word), container_id(word)) {
                        (Some(uid), _) => found.by_pod.entry(uid).or_default(),
                        (None, Some(id)) => found.by_container.entry(id).or_default(),
                        (None, None) => continue,
                    };
                    if known.len() < MAX_PROCESSES {
                        known.push(dir.join("ns/net"));
                    }
                }
            }
            found
        })
    }

    /// Returns the named network namespaces with their addresses.
    fn named(&self) -> &[(PathBuf, HashSet<IpAddr>)] {
        self.named.get_or_init(|| {
            let paths = self.paths.netns_dirs.iter().flat_map(|dir| entries(&self.paths.mounted_path(dir)));
            let read = |path: PathBuf| {
                let namespace = path.clone();
                let visit = move || netns::run_in(&namespace, addresses);
                let present = self.visits.run(&path.to_string_lossy(), visit).ok()?.ok()?;
                Some((path, present))
            };
            paths.filter_map(read).collect()
        })
    }
}

/// Returns the entries of a directory; none where it does not exist.
fn entries(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().take(MAX_ENTRIES);
    entries.filter_map(|entry| Some(entry.ok()?.path())).collect()
}

fn read(path: &Path, max: u64) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    // O_NONBLOCK: does not wait for the writer of a pipe.
    let file = fs::OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path).ok()?;
    file.take(max).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// The part of a container's `config.json` (OCI runtime specification) that names pod and network namespace.
#[derive(Debug, Deserialize)]
struct OciConfig {
    #[serde(default)]
    annotations: HashMap<String, String>,
    linux: Option<Linux>,
}

#[derive(Debug, Deserialize)]
struct Linux {
    #[serde(default)]
    namespaces: Vec<Namespace>,
}

#[derive(Debug, Deserialize)]
struct Namespace {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    path: PathBuf,
}

/// Returns pod uid and network namespace of a container; those of its sandbox are the same.
fn sandbox_netns(record: &[u8]) -> Option<(String, PathBuf)> {
    let config: OciConfig = serde_json::from_slice(record).ok()?;
    let inner = |annotation: &str, key: &str| {
        let value: Value = serde_json::from_str(config.annotations.get(annotation)?).ok()?;
        value[key].as_str().map(str::to_owned)
    };
    // containerd, then CRI-O, which stores the kubelet's labels and metadata as JSON.
    let uid = config.annotations.get("io.kubernetes.cri.sandbox-uid").cloned();
    let uid = uid.or_else(|| inner("io.kubernetes.cri-o.Labels", "io.kubernetes.pod.uid"));
    let uid = uid.or_else(|| inner("io.kubernetes.cri-o.Metadata", "uid")).filter(|uid| !uid.is_empty())?;
    let network = config.linux?.namespaces.into_iter().find(|namespace| namespace.kind == "network")?;
    network.path.is_absolute().then_some((uid, network.path))
}

/// Returns the pod uid in the name of a cgroup: `pod<uid>`, or `kubepods-burstable-pod<uid with _>.slice` under systemd.
fn pod_uid(word: &str) -> Option<String> {
    let word = word.strip_suffix(".slice").unwrap_or(word);
    let (before, uid) = word.rsplit_once("pod")?;
    let uid = uid.replace('_', "-");
    let looks_right = matches!(uid.len(), 32 | 36) && uid.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
    (looks_right && (before.is_empty() || before.ends_with('-'))).then_some(uid)
}

/// Returns the container id in the name of a cgroup: 64 hexadecimal digits, usually after the runtime's name.
fn container_id(word: &str) -> Option<String> {
    let word = word.strip_suffix(".scope").unwrap_or(word);
    let id = word.rsplit('-').next()?;
    (id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit())).then(|| id.to_owned())
}

#[cfg(test)]
mod tests;
