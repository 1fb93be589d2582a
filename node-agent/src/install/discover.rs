//! Finds the CNI directories of a node: from flags, else from the runtime's configuration, else from the platform's defaults.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::finding::Finding;
use crate::args::{InstallArgs, Platform};

/// Default directory of network configurations.
const CONF: &str = "/etc/cni/net.d";
/// Default directory of plugins.
const BIN: &str = "/opt/cni/bin";
/// Most files that one configuration may import.
const MAX_FILES: usize = 64;

/// A directory of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostDir {
    /// Path as mounted in this container.
    pub mounted: PathBuf,
    /// Path on the host.
    pub host: String,
}

/// CNI directories of a node, and its runtimes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeDirs {
    /// Directory of network configurations.
    pub conf: HostDir,
    /// Directories of plugins, in the runtime's search order; the plugin is installed to the first.
    pub bins: Vec<HostDir>,
    /// Candidates for the runtime's binary, as mounted; the first that exists counts.
    pub runtimes: Vec<PathBuf>,
    /// Place where the directories are configured, for messages.
    pub source: String,
    /// Contradictions between flags and runtime.
    pub findings: Vec<Finding>,
}

/// The host's files, as far as they are mounted.
pub trait HostFiles {
    /// Returns the content of a file.
    fn read(&self, path: &str) -> Option<Vec<u8>>;
    /// Returns the names of the files in a directory, sorted.
    fn names(&self, dir: &str) -> Vec<String>;
    /// Returns whether a path exists.
    fn exists(&self, path: &str) -> bool;
}

/// Directories in a runtime's configuration.
#[derive(Debug, Default)]
struct RuntimeConfig {
    conf: Option<String>,
    bins: Vec<String>,
}

/// Default directories of a platform.
struct PlatformDefaults {
    conf: &'static str,
    bin: &'static str,
    /// A path that exists on nodes of this platform only.
    marker: Option<&'static str>,
    containerd: &'static [&'static str],
    runtimes: &'static [&'static str],
}

const CONTAINERD: &[&str] = &["/etc/containerd/config.toml"];
const RUNTIMES: &[&str] =
    &["/usr/bin/containerd", "/usr/local/bin/containerd", "/bin/containerd", "/usr/bin/crio", "/usr/local/bin/crio"];

const fn defaults_of(platform: Platform) -> PlatformDefaults {
    let usual = PlatformDefaults { conf: CONF, bin: BIN, marker: None, containerd: CONTAINERD, runtimes: RUNTIMES };
    match platform {
        // All three use the default directories.
        Platform::Generic | Platform::Minikube | Platform::Bottlerocket => usual,
        Platform::Gke => {
            PlatformDefaults { bin: "/home/kubernetes/bin", marker: Some("/home/kubernetes/bin"), ..usual }
        }
        Platform::K3s => PlatformDefaults {
            conf: "/var/lib/rancher/k3s/agent/etc/cni/net.d",
            bin: "/var/lib/rancher/k3s/data/cni",
            marker: Some("/var/lib/rancher/k3s/agent"),
            containerd: &["/var/lib/rancher/k3s/agent/etc/containerd/config.toml"],
            runtimes: &["/var/lib/rancher/k3s/data/current/bin/containerd"],
        },
        Platform::K3d => PlatformDefaults {
            conf: "/var/lib/rancher/k3s/agent/etc/cni/net.d",
            bin: "/bin",
            marker: None,
            containerd: &["/var/lib/rancher/k3s/agent/etc/containerd/config.toml"],
            runtimes: &["/bin/containerd"],
        },
        Platform::Microk8s => PlatformDefaults {
            conf: "/var/snap/microk8s/current/args/cni-network",
            bin: "/var/snap/microk8s/current/opt/cni/bin",
            marker: Some("/var/snap/microk8s/current"),
            containerd: &["/var/snap/microk8s/current/args/containerd.toml"],
            runtimes: &["/snap/microk8s/current/bin/containerd"],
        },
        Platform::Openshift => PlatformDefaults {
            conf: "/etc/cni/multus/net.d",
            bin: "/var/lib/cni/bin",
            marker: Some("/etc/cni/multus/net.d"),
            containerd: &[],
            runtimes: &["/usr/bin/crio"],
        },
        Platform::Talos => {
            PlatformDefaults { containerd: &["/etc/cri/containerd.toml", "/etc/containerd/config.toml"], ..usual }
        }
    }
}

/// Platforms with a marker.
const DETECTABLE: [Platform; 4] = [Platform::K3s, Platform::Microk8s, Platform::Openshift, Platform::Gke];

/// Finds the CNI directories.
pub fn discover(args: &InstallArgs, host: &dyn HostFiles) -> NodeDirs {
    let detected = || {
        DETECTABLE.into_iter().find(|platform| defaults_of(*platform).marker.is_some_and(|marker| host.exists(marker)))
    };
    let platform = args.platform.or_else(detected).unwrap_or(Platform::Generic);
    let defaults = defaults_of(platform);
    let mut findings = Vec::new();

    // On OpenShift the runtime reads the directory of Multus, which calls our network by its name.
    let configured = match platform {
        Platform::Openshift => None,
        _ => configured(&defaults, host, &mut findings),
    };
    let (source, configured) = match configured {
        Some((source, configured)) => (source, configured),
        None => (format!("default directories of {platform:?}").to_lowercase(), RuntimeConfig::default()),
    };
    let host_dir = |path: &str| HostDir { mounted: under_root(&args.host_root, path), host: path.to_owned() };
    let found_conf = configured.conf.clone().unwrap_or_else(|| defaults.conf.to_owned());
    let found_bins = if configured.bins.is_empty() { vec![defaults.bin.to_owned()] } else { configured.bins.clone() };

    let given = |mounted: &Option<PathBuf>, host: &Option<PathBuf>| {
        let mounted = mounted.clone().filter(|path| !path.as_os_str().is_empty())?;
        let unmounted = mounted.strip_prefix(&args.host_root).map(|rest| Path::new("/").join(rest));
        let host = host.clone().unwrap_or_else(|| unmounted.unwrap_or_else(|_| mounted.clone()));
        Some(HostDir { mounted, host: host.display().to_string() })
    };
    let conf = given(&args.mounted_cni_net_dir, &args.cni_net_dir);
    let bin = given(&args.mounted_cni_bin_dir, &args.cni_bin_dir);
    if let Some(HostDir { host, .. }) =
        conf.as_ref().filter(|conf| configured.conf.as_ref().is_some_and(|read| *read != conf.host))
    {
        findings.push(Finding::WrongDir {
            flag: "--mounted-cni-net-dir",
            given: host.clone(),
            read: found_conf.clone(),
            file: source.clone(),
        });
    }
    if let Some(HostDir { host, .. }) =
        bin.as_ref().filter(|bin| !configured.bins.is_empty() && !configured.bins.contains(&bin.host))
    {
        findings.push(Finding::WrongDir {
            flag: "--mounted-cni-bin-dir",
            given: host.clone(),
            read: found_bins.join(", "),
            file: source.clone(),
        });
    }
    NodeDirs {
        conf: conf.unwrap_or_else(|| host_dir(&found_conf)),
        bins: bin.map_or_else(|| found_bins.iter().map(|path| host_dir(path)).collect(), |bin| vec![bin]),
        runtimes: defaults.runtimes.iter().map(|path| under_root(&args.host_root, path)).collect(),
        source,
        findings,
    }
}

/// Returns where a path of the host is mounted.
pub fn under_root(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

/// Reads the configuration of the first runtime that has one.
fn configured(
    defaults: &PlatformDefaults,
    host: &dyn HostFiles,
    findings: &mut Vec<Finding>,
) -> Option<(String, RuntimeConfig)> {
    for path in defaults.containerd {
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

/// Reads containerd's file and its imports; later values win.
fn containerd(main: &Table, path: &str, host: &dyn HostFiles, findings: &mut Vec<Finding>) -> RuntimeConfig {
    let mut configured = RuntimeConfig::default();
    let dir = path.rsplit_once('/').map_or("", |(dir, _)| dir);
    merge_containerd(&mut configured, main);
    let imports = main.get("imports").and_then(Value::as_array).cloned().unwrap_or_default();
    let files = imports.iter().filter_map(Value::as_str).flat_map(|pattern| glob(pattern, dir, host)).take(MAX_FILES);
    for file in files {
        match host.read(&file).map(|bytes| parse(&bytes)) {
            Some(Ok(table)) => merge_containerd(&mut configured, &table),
            Some(Err(reason)) => findings.push(Finding::RuntimeConfiguration { file, reason }),
            None => {}
        }
    }
    configured
}

/// Merges the section of the CRI plugin, whose name differs between versions 1, 2 and 3 of the file.
fn merge_containerd(configured: &mut RuntimeConfig, table: &Table) {
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

/// Reads CRI-O's file and its drop-ins; later values win.
fn crio(host: &dyn HostFiles, findings: &mut Vec<Finding>) -> Option<RuntimeConfig> {
    const FOLDER: &str = "/etc/crio/crio.conf.d";
    let drop_ins = host.names(FOLDER).into_iter().take(MAX_FILES).map(|name| format!("{FOLDER}/{name}"));
    let mut found = None;
    for file in ["/etc/crio/crio.conf".to_owned()].into_iter().chain(drop_ins) {
        match host.read(&file).map(|bytes| parse(&bytes)) {
            None => {}
            Some(Err(reason)) => findings.push(Finding::RuntimeConfiguration { file, reason }),
            Some(Ok(table)) => {
                let configured: &mut RuntimeConfig = found.get_or_insert_default();
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

/// Returns an absolute path without variables (MicroK8s has `${SNAP_DATA}`).
fn text(table: &Value, key: &str) -> Option<String> {
    let text = table.get(key)?.as_str()?.trim_end_matches('/');
    (text.starts_with('/') && !text.contains('$')).then(|| text.to_owned())
}

fn texts(table: &Value, key: &str) -> Vec<String> {
    let all = table.get(key).and_then(Value::as_array);
    let all = all.into_iter().flatten().filter_map(Value::as_str).map(|path| path.trim_end_matches('/'));
    all.filter(|path| path.starts_with('/') && !path.contains('$')).map(str::to_owned).collect()
}

/// Expands a pattern with `*` in its last component.
fn glob(pattern: &str, dir: &str, host: &dyn HostFiles) -> Vec<String> {
    let pattern = if pattern.starts_with('/') { pattern.to_owned() } else { format!("{dir}/{pattern}") };
    let Some((dir, name)) = pattern.rsplit_once('/') else { return Vec::new() };
    match name.split_once('*') {
        None => vec![pattern],
        Some((before, after)) => host
            .names(dir)
            .into_iter()
            .filter(|name| {
                name.len() >= before.len() + after.len() && name.starts_with(before) && name.ends_with(after)
            })
            .map(|name| format!("{dir}/{name}"))
            .collect(),
    }
}

/// Files in memory, for tests of every layer.
impl HostFiles for BTreeMap<String, Vec<u8>> {
    fn read(&self, path: &str) -> Option<Vec<u8>> {
        self.get(path).cloned()
    }

    fn names(&self, dir: &str) -> Vec<String> {
        let dir = format!("{dir}/");
        self.keys()
            .filter_map(|path| path.strip_prefix(&dir))
            .filter(|name| !name.contains('/'))
            .map(str::to_owned)
            .collect()
    }

    fn exists(&self, path: &str) -> bool {
        let dir = format!("{path}/");
        self.keys().any(|known| known == path || known.starts_with(&dir))
    }
}

#[cfg(test)]
mod tests;
