//! Where is a pod's network namespace? From knowledge first, by looking last; who finds it has still to see that the pod's addresses are in
//! it (`inspect.rs`).
//!
//! 1. what the plugin reported (`CNI_NETNS`);
//! 2. the runtime's own record of the sandbox: also for CRI-O without a pause process, and while every container waits in its back-off;
//! 3. the processes of the node, by the pod's uid or a container's id in their cgroup;
//! 4. every namespace that is bound to a name.

use std::cell::OnceCell;
use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::Read as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use weir_kernel::netns;

use super::inspect::addresses;
use crate::pods::PodFacts;
use crate::socket::Attachments;

/// Largest record of a container that is read.
const MAX_RECORD: u64 = 1 << 20;
/// Largest cgroup file.
const MAX_CGROUP: u64 = 64 << 10;
/// Processes of one pod that are tried, the oldest first: a container may have made namespaces of its own in it.
const MAX_PROCESSES: usize = 8;
/// How many entries of a folder are looked at.
const MAX_ENTRIES: usize = 16_384;

/// Where things are, as this process sees them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// The host's `/proc`.
    pub host_proc: PathBuf,
    /// What stands before a path of the host; a path that is not below it is tried as it is.
    pub host_root: PathBuf,
    /// Folders with namespaces that are bound to a name, as the host calls them.
    pub netns_dirs: Vec<PathBuf>,
    /// Folders with a folder for each container, as the host calls them.
    pub runtime_dirs: Vec<PathBuf>,
}

/// How a candidate was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The plugin reported it.
    Report,
    /// The runtime's record.
    Runtime,
    /// A process.
    Process,
    /// A name.
    Name,
}

impl Source {
    /// For people and listings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Report => "plugin",
            Self::Runtime => "runtime",
            Self::Process => "process",
            Self::Name => "netns folder",
        }
    }
}

/// One look at the node; what is expensive is looked for once, and only if it is needed.
#[derive(Debug)]
pub struct Look<'a> {
    places: &'a Places,
    attachments: &'a Attachments,
    runtime: OnceCell<HashMap<String, Vec<PathBuf>>>,
    processes: OnceCell<Processes>,
    named: OnceCell<Vec<(PathBuf, HashSet<IpAddr>)>>,
}

/// Namespaces of processes, by what their cgroup names.
#[derive(Debug, Default)]
struct Processes {
    by_pod: HashMap<String, Vec<PathBuf>>,
    by_container: HashMap<String, Vec<PathBuf>>,
}

impl Places {
    /// A path of the host, as this process sees it.
    fn seen(&self, path: &Path) -> PathBuf {
        if let Ok(rest) = path.strip_prefix("/proc") {
            return self.host_proc.join(rest);
        }
        // One folder by two names, of which one may be mounted here.
        let other = match path.strip_prefix("/var/run") {
            Ok(rest) => Some(Path::new("/run").join(rest)),
            Err(_) => path.strip_prefix("/run").ok().map(|rest| Path::new("/var/run").join(rest)),
        };
        let below = |path: &Path| self.host_root.join(path.strip_prefix("/").unwrap_or(path));
        let here = [Some(path), other.as_deref()].into_iter().flatten().map(below).find(|path| path.exists());
        here.unwrap_or_else(|| path.to_owned())
    }
}

impl<'a> Look<'a> {
    /// Looks at the node as it is now.
    pub fn new(places: &'a Places, attachments: &'a Attachments) -> Self {
        let (runtime, processes, named) = (OnceCell::new(), OnceCell::new(), OnceCell::new());
        Self { places, attachments, runtime, processes, named }
    }

    /// Where the pod may be, the best first; the later ones are looked for when the earlier ones were not it.
    pub fn candidates<'b>(&'b self, pod: &'b PodFacts) -> impl Iterator<Item = (PathBuf, Source)> + use<'a, 'b> {
        let uids = || std::iter::once(&pod.uid).chain(&pod.static_uid);
        let reported = uids().filter_map(|uid| self.attachments.of(uid)).map(|found| self.places.seen(&found.netns));
        let recorded =
            std::iter::once(()).flat_map(move |()| uids().filter_map(|uid| self.runtime().get(uid)).flatten().cloned());
        let running = std::iter::once(()).flat_map(move |()| {
            let processes = self.processes();
            let by_pod = uids().filter_map(|uid| processes.by_pod.get(uid)).flatten();
            by_pod.chain(pod.containers.iter().filter_map(|id| processes.by_container.get(id)).flatten()).cloned()
        });
        let named = std::iter::once(()).flat_map(move |()| {
            let has_all = |(_, present): &&(PathBuf, HashSet<IpAddr>)| pod.ips.iter().all(|ip| present.contains(ip));
            self.named().iter().filter(has_all).map(|(path, _)| path.clone())
        });
        let with = |source| move |path| (path, source);
        reported
            .map(with(Source::Report))
            .chain(recorded.map(with(Source::Runtime)))
            .chain(running.map(with(Source::Process)))
            .chain(named.map(with(Source::Name)))
    }

    fn runtime(&self) -> &HashMap<String, Vec<PathBuf>> {
        self.runtime.get_or_init(|| {
            let mut found: HashMap<String, Vec<PathBuf>> = HashMap::new();
            for folder in self.places.runtime_dirs.iter().flat_map(|dir| entries(&self.places.seen(dir))) {
                let records = [folder.join("config.json"), folder.join("userdata/config.json")];
                let Some(record) = records.iter().find_map(|path| read(path, MAX_RECORD)) else { continue };
                if let Some((uid, netns)) = sandbox(&record) {
                    found.entry(uid).or_default().push(self.places.seen(&netns));
                }
            }
            found
        })
    }

    fn processes(&self) -> &Processes {
        self.processes.get_or_init(|| {
            let mut found = Processes::default();
            for folder in entries(&self.places.host_proc) {
                let is_process =
                    folder.file_name().is_some_and(|name| name.to_string_lossy().bytes().all(|b| b.is_ascii_digit()));
                let Some(cgroup) = is_process.then(|| read(&folder.join("cgroup"), MAX_CGROUP)).flatten() else {
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
                        known.push(folder.join("ns/net"));
                    }
                }
            }
            found
        })
    }

    /// Each is entered once, however many pods are looked for.
    fn named(&self) -> &[(PathBuf, HashSet<IpAddr>)] {
        self.named.get_or_init(|| {
            let paths = self.places.netns_dirs.iter().flat_map(|dir| entries(&self.places.seen(dir)));
            paths
                .filter_map(|path| Some((netns::within(&path, addresses).ok()?, path)))
                .map(|(present, path)| (path, present))
                .collect()
        })
    }
}

/// Entries of a folder; a folder that is not there has none.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().take(MAX_ENTRIES);
    entries.filter_map(|entry| Some(entry.ok()?.path())).collect()
}

fn read(path: &Path, max: u64) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path).ok()?.take(max).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// As far as a container's record (OCI runtime specification, `config.json`) matters.
#[derive(Debug, Deserialize)]
struct Record {
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

/// The pod and the namespace that a record names; containers of a sandbox name the same as the sandbox.
fn sandbox(record: &[u8]) -> Option<(String, PathBuf)> {
    let record: Record = serde_json::from_slice(record).ok()?;
    let inner = |annotation: &str, key: &str| {
        let value: Value = serde_json::from_str(record.annotations.get(annotation)?).ok()?;
        value[key].as_str().map(str::to_owned)
    };
    // containerd; then CRI-O, which keeps the kubelet's labels and metadata as JSON.
    let uid = record.annotations.get("io.kubernetes.cri.sandbox-uid").cloned();
    let uid = uid.or_else(|| inner("io.kubernetes.cri-o.Labels", "io.kubernetes.pod.uid"));
    let uid = uid.or_else(|| inner("io.kubernetes.cri-o.Metadata", "uid")).filter(|uid| !uid.is_empty())?;
    let network = record.linux?.namespaces.into_iter().find(|namespace| namespace.kind == "network")?;
    network.path.is_absolute().then_some((uid, network.path))
}

/// The pod's uid in the name of a cgroup: `pod<uid>`, or `kubepods-burstable-pod<uid with _>.slice` under systemd.
fn pod_uid(word: &str) -> Option<String> {
    let word = word.strip_suffix(".slice").unwrap_or(word);
    let (before, uid) = word.rsplit_once("pod")?;
    let uid = uid.replace('_', "-");
    let looks_right = matches!(uid.len(), 32 | 36) && uid.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
    (looks_right && (before.is_empty() || before.ends_with('-'))).then_some(uid)
}

/// A container's id in the name of a cgroup: 64 hexadecimal digits, most often with the runtime's name before them.
fn container_id(word: &str) -> Option<String> {
    let word = word.strip_suffix(".scope").unwrap_or(word);
    let id = word.rsplit('-').next()?;
    (id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit())).then(|| id.to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::pods::facts;

    const UID: &str = "3f1c0a52-8f6e-4f43-9d51-0f3a2b1c4d5e";

    #[test]
    fn reads_the_names_of_cgroups() {
        let underscored = UID.replace('-', "_");
        for (word, expected) in [
            (format!("pod{UID}"), Some(UID.to_owned())),
            (format!("kubepods-burstable-pod{underscored}.slice"), Some(UID.to_owned())),
            (format!("kubepods-pod{}.slice", "a".repeat(32)), Some("a".repeat(32))),
            ("kubepods.slice".to_owned(), None),
            ("podman".to_owned(), None),
            (format!("tripod{UID}"), None),
        ] {
            assert_eq!(pod_uid(&word), expected, "{word}");
        }
        let id = "ab".repeat(32);
        for word in [id.clone(), format!("cri-containerd-{id}.scope"), format!("crio-{id}.scope")] {
            assert_eq!(container_id(&word).as_ref(), Some(&id), "{word}");
        }
        assert_eq!(container_id("init.scope"), None);
    }

    #[test]
    fn reads_the_records_of_both_runtimes() {
        let namespaces = json!({"namespaces": [{"type": "pid"}, {"type": "network", "path": "/var/run/netns/cni-1"}]});
        let records = [
            json!({"io.kubernetes.cri.sandbox-uid": UID}),
            json!({"io.kubernetes.cri-o.Labels": format!(r#"{{"io.kubernetes.pod.uid":"{UID}"}}"#)}),
            json!({"io.kubernetes.cri-o.Metadata": format!(r#"{{"name":"web","uid":"{UID}"}}"#)}),
        ];
        for annotations in records {
            let record = json!({"annotations": annotations, "linux": namespaces}).to_string();
            assert_eq!(sandbox(record.as_bytes()), Some((UID.to_owned(), "/var/run/netns/cni-1".into())), "{record}");
        }
        for record in [
            "",
            "{}",
            r#"{"annotations":{"io.kubernetes.cri.sandbox-uid":"u"},"linux":{"namespaces":[{"type":"network"}]}}"#,
        ] {
            assert_eq!(sandbox(record.as_bytes()), None);
        }
    }

    #[test]
    fn looks_in_the_order_of_its_trust_and_no_further_than_needed() {
        let dir = tempfile::tempdir().unwrap();
        let place = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let record = json!({
            "annotations": {"io.kubernetes.cri.sandbox-uid": UID},
            "linux": {"namespaces": [{"type": "network", "path": "/run/netns/by-record"}]},
        });
        place("run/task/abc/config.json", &record.to_string());
        place("run/task/half/config.json", "{\"annot");
        place("run/netns/no-namespace", "");
        let id = "cd".repeat(32);
        place("proc/7/cgroup", &format!("0::/kubepods/besteffort/pod{UID}/{}\n", "ef".repeat(32)));
        place("proc/8/cgroup", &format!("0::/../cri-containerd-{id}.scope\n"));
        place("proc/self/cgroup", &format!("0::/pod{UID}\n"));
        let places = Places {
            host_proc: dir.path().join("proc"),
            host_root: dir.path().to_owned(),
            netns_dirs: vec!["/run/netns".into(), "/no/such".into()],
            runtime_dirs: vec!["/run/task".into()],
        };
        let attachments = Attachments::default();
        attachments.learn(&weir_protocol::agent::Report {
            v: 1,
            verb: "ADD".to_owned(),
            uid: UID.to_owned(),
            netns: "/proc/99/ns/net".to_owned(),
            ..weir_protocol::agent::Report::default()
        });
        let pod = facts(json!({
            "metadata": {"uid": UID, "annotations": {"sidecar.istio.io/status": "{}"}},
            "spec": {"containers": [{"name": "istio-proxy"}]},
            "status": {"containerStatuses": [{"name": "a", "containerID": format!("containerd://{id}")}]},
        }));
        let look = Look::new(&places, &attachments);
        assert_eq!(look.candidates(&pod).next().map(|found| found.1), Some(Source::Report));
        assert!(look.runtime.get().is_none() && look.processes.get().is_none(), "not looked for yet");
        let found: Vec<(String, Source)> = look
            .candidates(&pod)
            .map(|(path, source)| (path.strip_prefix(dir.path()).unwrap_or(&path).display().to_string(), source))
            .collect();
        let expected = [
            ("proc/99/ns/net", Source::Report),
            ("/run/netns/by-record", Source::Runtime),
            ("proc/7/ns/net", Source::Process),
            ("proc/8/ns/net", Source::Process),
        ];
        assert_eq!(found, expected.map(|(path, source)| (path.to_owned(), source)));
    }
}
