//! A node in a temporary directory, as a DaemonSet's mounts show it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use clap::Parser as _;
use serde_json::Value;
use tempfile::TempDir;
use weir_agent::args::{Cli, InstallArgs};
use weir_agent::install::settings::InstallSettings;

/// A list with two plugins, in an unusual format.
pub(crate) const LIST: &str = "{\n  \"cniVersion\": \"1.0.0\",\n  \"name\": \"net\",\n  \"plugins\": [\n    {\"type\": \"bridge\", \"mtu\": 1.50e3},\n    {\"type\": \"portmap\"}\n  ]\n}\n";
/// A single plugin.
pub(crate) const SINGLE: &str = "{\n  \"cniVersion\": \"0.4.0\",\n  \"name\": \"net\",\n  \"type\": \"bridge\"\n}\n";

pub(crate) struct Node {
    pub(crate) root: TempDir,
}

impl Node {
    /// Creates a node with plugins, but without a network.
    pub(crate) fn new() -> Self {
        // In memory where possible: the tests sync thousands of files.
        let root = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        let node = Self { root: root.unwrap() };
        for dir in ["host/etc/cni/net.d", "host/opt/cni/bin", "host/var/lib/cni/results", "run", "image"] {
            fs::create_dir_all(node.root.path().join(dir)).unwrap();
        }
        for plugin in ["bridge", "portmap"] {
            let path = node.bin().join(plugin);
            fs::write(&path, "plugin").unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        node.image("plugin 1");
        node
    }

    pub(crate) fn conf(&self) -> PathBuf {
        self.root.path().join("host/etc/cni/net.d")
    }

    pub(crate) fn bin(&self) -> PathBuf {
        self.root.path().join("host/opt/cni/bin")
    }

    pub(crate) fn results(&self) -> PathBuf {
        self.root.path().join("host/var/lib/cni/results")
    }

    /// The plugin of the agent's image.
    pub(crate) fn image(&self, content: &str) {
        fs::write(self.root.path().join("image/weir-cni"), content).unwrap();
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        fs::write(self.conf().join(name), text).unwrap();
    }

    /// Returns all files of a directory.
    pub(crate) fn files(dir: &Path) -> BTreeMap<String, String> {
        let entries = fs::read_dir(dir).unwrap().map(Result::unwrap);
        entries
            .filter(|entry| entry.file_type().unwrap().is_file())
            .map(|entry| (entry.file_name().into_string().unwrap(), fs::read_to_string(entry.path()).unwrap()))
            .collect()
    }

    pub(crate) fn flags(&self, more: &[&str]) -> Vec<String> {
        let path = |part: &str| self.root.path().join(part).display().to_string();
        let mut flags = vec![
            format!("--host-root={}", path("host")),
            format!("--cni-agent-run-dir={}", path("run")),
            format!("--plugin-source={}", path("image/weir-cni")),
        ];
        flags.extend(more.iter().map(|flag| (*flag).to_owned()));
        flags
    }

    pub(crate) fn args(&self, more: &[&str]) -> InstallArgs {
        let flags = self.flags(more);
        Cli::try_parse_from(["weir-agent".to_owned()].into_iter().chain(flags)).unwrap().run.install
    }

    pub(crate) fn settings(&self, more: &[&str]) -> InstallSettings {
        InstallSettings::resolve(self.args(more)).unwrap()
    }
}

/// Types of the plugins of a configuration.
pub(crate) fn types(text: &str) -> Vec<String> {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error} in {text:?}"));
    let plugins = value["plugins"].as_array().cloned().unwrap_or_else(|| vec![value]);
    plugins.iter().map(|plugin| plugin["type"].as_str().unwrap().to_owned()).collect()
}
