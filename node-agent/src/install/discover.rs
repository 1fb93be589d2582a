//! Which folders the runtime of this node reads: from its configuration where that is mounted, else from the kind of node, and flags win.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::finding::Finding;
use crate::args::{InstallArgs, Platform};

/// Usual folders.
const CONF: &str = "/etc/cni/net.d";
const BIN: &str = "/opt/cni/bin";
/// Bounds of what a configuration may drag in.
const MAX_FILES: usize = 64;

/// A folder of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folder {
    /// As it is called here.
    pub here: PathBuf,
    /// As the host calls it.
    pub host: String,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// Network configurations.
    pub conf: Folder,
    /// Plugins, in the order in which the runtime looks; the first one is installed to.
    pub bins: Vec<Folder>,
    /// Binaries of the runtime, as they are called here; the first that is there counts.
    pub runtimes: Vec<PathBuf>,
    /// Where the folders were found.
    pub source: String,
    /// What is odd about it.
    pub findings: Vec<Finding>,
}

/// The host's files, as far as they are mounted here.
pub trait HostFiles {
    /// Content of a file of the host.
    fn read(&self, path: &str) -> Option<Vec<u8>>;
    /// Names in a folder of the host, sorted.
    fn names(&self, folder: &str) -> Vec<String>;
    /// Whether there is something at a path of the host.
    fn exists(&self, path: &str) -> bool;
}

/// What a runtime's configuration says.
#[derive(Debug, Default)]
struct Configured {
    conf: Option<String>,
    bins: Vec<String>,
}

/// What is known of a kind of node.
struct Known {
    conf: &'static str,
    bin: &'static str,
    /// Something that is on such nodes and on no others.
    mark: Option<&'static str>,
    containerd: &'static [&'static str],
    runtimes: &'static [&'static str],
}

const CONTAINERD: &[&str] = &["/etc/containerd/config.toml"];
const RUNTIMES: &[&str] =
    &["/usr/bin/containerd", "/usr/local/bin/containerd", "/bin/containerd", "/usr/bin/crio", "/usr/local/bin/crio"];

const fn known(platform: Platform) -> Known {
    let usual = Known { conf: CONF, bin: BIN, mark: None, containerd: CONTAINERD, runtimes: RUNTIMES };
    match platform {
        // Both write the usual configuration of containerd, and their folders are the usual ones.
        Platform::Generic | Platform::Minikube | Platform::Bottlerocket => usual,
        Platform::Gke => Known { bin: "/home/kubernetes/bin", mark: Some("/home/kubernetes/bin"), ..usual },
        Platform::K3s => Known {
            conf: "/var/lib/rancher/k3s/agent/etc/cni/net.d",
            bin: "/var/lib/rancher/k3s/data/cni",
            mark: Some("/var/lib/rancher/k3s/agent"),
            containerd: &["/var/lib/rancher/k3s/agent/etc/containerd/config.toml"],
            runtimes: &["/var/lib/rancher/k3s/data/current/bin/containerd"],
        },
        Platform::K3d => Known {
            conf: "/var/lib/rancher/k3s/agent/etc/cni/net.d",
            bin: "/bin",
            mark: None,
            containerd: &["/var/lib/rancher/k3s/agent/etc/containerd/config.toml"],
            runtimes: &["/bin/containerd"],
        },
        Platform::Microk8s => Known {
            conf: "/var/snap/microk8s/current/args/cni-network",
            bin: "/var/snap/microk8s/current/opt/cni/bin",
            mark: Some("/var/snap/microk8s/current"),
            containerd: &["/var/snap/microk8s/current/args/containerd.toml"],
            runtimes: &["/snap/microk8s/current/bin/containerd"],
        },
        Platform::Openshift => Known {
            conf: "/etc/cni/multus/net.d",
            bin: "/var/lib/cni/bin",
            mark: Some("/etc/cni/multus/net.d"),
            containerd: &[],
            runtimes: &["/usr/bin/crio"],
        },
        Platform::Talos => Known { containerd: &["/etc/cri/containerd.toml", "/etc/containerd/config.toml"], ..usual },
    }
}

/// Kinds of nodes that can be told by what is on them.
const MARKED: [Platform; 4] = [Platform::K3s, Platform::Microk8s, Platform::Openshift, Platform::Gke];

/// Finds the folders.
pub fn discover(args: &InstallArgs, host: &dyn HostFiles) -> Places {
    let marked = || MARKED.into_iter().find(|platform| known(*platform).mark.is_some_and(|mark| host.exists(mark)));
    let platform = args.platform.or_else(marked).unwrap_or(Platform::Generic);
    let known = known(platform);
    let mut findings = Vec::new();

    // On OpenShift the runtime's own folder is that of Multus itself, which calls our network by name.
    let configured = match platform {
        Platform::Openshift => None,
        _ => configured(&known, host, &mut findings),
    };
    let (source, configured) = match configured {
        Some((source, configured)) => (source, configured),
        None => (format!("the usual folders of {platform:?}").to_lowercase(), Configured::default()),
    };
    let place = |path: &str| Folder { here: below(&args.host_root, path), host: path.to_owned() };
    let found_conf = configured.conf.clone().unwrap_or_else(|| known.conf.to_owned());
    let found_bins = if configured.bins.is_empty() { vec![known.bin.to_owned()] } else { configured.bins.clone() };

    let given = |here: &Option<PathBuf>, host: &Option<PathBuf>| {
        let here = here.clone().filter(|path| !path.as_os_str().is_empty())?;
        let outside = here.strip_prefix(&args.host_root).map(|rest| Path::new("/").join(rest));
        let host = host.clone().unwrap_or_else(|| outside.unwrap_or_else(|_| here.clone()));
        Some(Folder { here, host: host.display().to_string() })
    };
    let conf = given(&args.mounted_cni_net_dir, &args.cni_net_dir);
    let bin = given(&args.mounted_cni_bin_dir, &args.cni_bin_dir);
    if let Some(Folder { host, .. }) =
        conf.as_ref().filter(|conf| configured.conf.as_ref().is_some_and(|read| *read != conf.host))
    {
        findings.push(Finding::WrongFolder {
            flag: "--mounted-cni-net-dir",
            given: host.clone(),
            read: found_conf.clone(),
            source: source.clone(),
        });
    }
    if let Some(Folder { host, .. }) =
        bin.as_ref().filter(|bin| !configured.bins.is_empty() && !configured.bins.contains(&bin.host))
    {
        findings.push(Finding::WrongFolder {
            flag: "--mounted-cni-bin-dir",
            given: host.clone(),
            read: found_bins.join(", "),
            source: source.clone(),
        });
    }
    Places {
        conf: conf.unwrap_or_else(|| place(&found_conf)),
        bins: bin.map_or_else(|| found_bins.iter().map(|path| place(path)).collect(), |bin| vec![bin]),
        runtimes: known.runtimes.iter().map(|path| below(&args.host_root, path)).collect(),
        source,
        findings,
    }
}

/// Where a path of the host is found here.
pub fn below(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

/// The first runtime's configuration that is there.
fn configured(known: &Known, host: &dyn HostFiles, findings: &mut Vec<Finding>) -> Option<(String, Configured)> {
    for path in known.containerd {
        if let Some(bytes) = host.read(path) {
            return match parse(&bytes) {
                Ok(table) => Some(((*path).to_owned(), containerd(&table, path, host, findings))),
                Err(reason) => {
                    findings.push(Finding::RuntimeConfiguration { file: (*path).to_owned(), reason });
                    None
                }
            };
        }
    }
    crio(host, findings).map(|configured| ("/etc/crio".to_owned(), configured))
}

fn parse(bytes: &[u8]) -> Result<Table, String> {
    let text = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
    text.parse::<Table>().map_err(|error| error.message().to_owned())
}

/// containerd's file and what it imports; what comes later wins.
fn containerd(main: &Table, path: &str, host: &dyn HostFiles, findings: &mut Vec<Finding>) -> Configured {
    let mut configured = Configured::default();
    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
    merge_containerd(&mut configured, main);
    let imports = main.get("imports").and_then(Value::as_array).cloned().unwrap_or_default();
    let files =
        imports.iter().filter_map(Value::as_str).flat_map(|pattern| glob(pattern, folder, host)).take(MAX_FILES);
    for file in files {
        match host.read(&file).map(|bytes| parse(&bytes)) {
            Some(Ok(table)) => merge_containerd(&mut configured, &table),
            Some(Err(reason)) => findings.push(Finding::RuntimeConfiguration { file, reason }),
            None => {}
        }
    }
    configured
}

/// The section of the CRI plugin has another name in each version of the file (1, 2, 3).
fn merge_containerd(configured: &mut Configured, table: &Table) {
    let Some(plugins) = table.get("plugins").and_then(Value::as_table) else { return };
    for section in ["cri", "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime"] {
        let Some(cni) = plugins.get(section).and_then(|section| section.get("cni")) else { continue };
        if let Some(conf) = text(cni, "conf_dir") {
            configured.conf = Some(conf);
        }
        let bins = texts(cni, "bin_dirs");
        if !bins.is_empty() {
            configured.bins = bins;
        } else if let Some(bin) = text(cni, "bin_dir") {
            configured.bins = vec![bin];
        }
    }
}

/// CRI-O's file and its drop-ins; what comes later wins.
fn crio(host: &dyn HostFiles, findings: &mut Vec<Finding>) -> Option<Configured> {
    const FOLDER: &str = "/etc/crio/crio.conf.d";
    let drop_ins = host.names(FOLDER).into_iter().take(MAX_FILES).map(|name| format!("{FOLDER}/{name}"));
    let mut found = None;
    for file in ["/etc/crio/crio.conf".to_owned()].into_iter().chain(drop_ins) {
        match host.read(&file).map(|bytes| parse(&bytes)) {
            None => {}
            Some(Err(reason)) => findings.push(Finding::RuntimeConfiguration { file, reason }),
            Some(Ok(table)) => {
                let configured: &mut Configured = found.get_or_insert_default();
                let Some(network) = table.get("crio").and_then(|crio| crio.get("network")) else { continue };
                if let Some(conf) = text(network, "network_dir") {
                    configured.conf = Some(conf);
                }
                let bins = texts(network, "plugin_dirs");
                if !bins.is_empty() {
                    configured.bins = bins;
                }
            }
        }
    }
    found
}

/// A text that is a path. With a variable in it (MicroK8s: `${SNAP_DATA}`) nobody here can tell which.
fn text(table: &Value, key: &str) -> Option<String> {
    let text = table.get(key)?.as_str()?.trim_end_matches('/');
    (text.starts_with('/') && !text.contains('$')).then(|| text.to_owned())
}

fn texts(table: &Value, key: &str) -> Vec<String> {
    let all = table.get(key).and_then(Value::as_array);
    let all = all.into_iter().flatten().filter_map(Value::as_str).map(|path| path.trim_end_matches('/'));
    all.filter(|path| path.starts_with('/') && !path.contains('$')).map(str::to_owned).collect()
}

/// Files that a pattern with `*` in its last part names.
fn glob(pattern: &str, folder: &str, host: &dyn HostFiles) -> Vec<String> {
    let pattern = if pattern.starts_with('/') { pattern.to_owned() } else { format!("{folder}/{pattern}") };
    let Some((folder, name)) = pattern.rsplit_once('/') else { return Vec::new() };
    match name.split_once('*') {
        None => vec![pattern],
        Some((before, after)) => host
            .names(folder)
            .into_iter()
            .filter(|name| {
                name.len() >= before.len() + after.len() && name.starts_with(before) && name.ends_with(after)
            })
            .map(|name| format!("{folder}/{name}"))
            .collect(),
    }
}

/// Files in memory, for tests of every layer.
impl HostFiles for BTreeMap<String, Vec<u8>> {
    fn read(&self, path: &str) -> Option<Vec<u8>> {
        self.get(path).cloned()
    }

    fn names(&self, folder: &str) -> Vec<String> {
        let folder = format!("{folder}/");
        self.keys()
            .filter_map(|path| path.strip_prefix(&folder))
            .filter(|name| !name.contains('/'))
            .map(str::to_owned)
            .collect()
    }

    fn exists(&self, path: &str) -> bool {
        let folder = format!("{path}/");
        self.keys().any(|known| known == path || known.starts_with(&folder))
    }
}

#[cfg(test)]
mod tests;
