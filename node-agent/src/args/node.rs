//! Flags about the pods of this node: queries, repairs, the startup taint.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args};

use crate::repair::{Fallback, NetnsPaths, RepairLimits};
use crate::taint::{ISTIO_TAINT, TAINT};

/// Default directories with the state of containers: containerd, k3s, k0s, MicroK8s, CRI-O (running, and from before a restart).
const RUNTIME_DIRS: &str = "/run/containerd/io.containerd.runtime.v2.task/k8s.io,\
/run/k3s/containerd/io.containerd.runtime.v2.task/k8s.io,\
/run/k0s/containerd/io.containerd.runtime.v2.task/k8s.io,\
/var/snap/microk8s/common/run/containerd/io.containerd.runtime.v2.task/k8s.io,\
/run/containers/storage/overlay-containers,/var/lib/containers/storage/overlay-containers";

/// Flags about the pods of this node.
#[derive(Debug, Clone, Args)]
#[allow(clippy::struct_excessive_bools, reason = "each is a flag of its own, by Istio's name")]
pub struct NodeArgs {
    /// Set the name of this node; without it the agent installs the plugin, but knows no pods
    #[arg(long, alias = "repair-node-name", env = "NODE_NAME", value_name = "NAME", default_value = "")]
    pub node_name: String,
    /// Check the capture rules of meshed pods
    #[arg(long, env = "REPAIR_ENABLED", value_name = "BOOL", default_value_t = true,
          action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub repair_enabled: bool,
    /// Restore missing or changed rules in the running pod
    #[arg(long, env = "REPAIR_REPAIR_PODS", value_name = "BOOL", default_value_t = true,
          action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub repair_repair_pods: bool,
    /// Delete pods whose rules cannot be restored
    #[arg(long, env = "REPAIR_DELETE_PODS", value_name = "BOOL", default_value_t = false,
          action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub repair_delete_pods: bool,
    /// Label pods whose rules cannot be restored
    #[arg(long, env = "REPAIR_LABEL_PODS", value_name = "BOOL", default_value_t = false,
          action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub repair_label_pods: bool,
    /// Set the key of that label
    #[arg(long, env = "REPAIR_BROKEN_POD_LABEL_KEY", value_name = "KEY", default_value = "cni.istio.io/uninitialized")]
    pub repair_broken_pod_label_key: String,
    /// Set the value of that label
    #[arg(long, env = "REPAIR_BROKEN_POD_LABEL_VALUE", value_name = "VALUE", default_value = "true")]
    pub repair_broken_pod_label_value: String,
    /// Check all meshed pods at this interval; new pods are checked at once
    #[arg(long, env = "REPAIR_INTERVAL", value_name = "DURATION", default_value = "30s", value_parser = humantime::parse_duration)]
    pub repair_interval: Duration,
    /// Delete or label at most COUNT pods of one owner per window
    #[arg(long, env = "REPAIR_MAX_PER_OWNER", value_name = "COUNT", default_value_t = 2)]
    pub repair_max_per_owner: usize,
    /// Delete or label at most COUNT pods of this node per window
    #[arg(long, env = "REPAIR_MAX_PER_NODE", value_name = "COUNT", default_value_t = 10)]
    pub repair_max_per_node: usize,
    /// Set the length of the repair window
    #[arg(long, env = "REPAIR_WINDOW", value_name = "DURATION", default_value = "10m", value_parser = humantime::parse_duration)]
    pub repair_window: Duration,
    /// Read the host's /proc at this mount point
    #[arg(long, env = "WEIR_HOST_PROC", value_name = "DIR", default_value = "/host/proc")]
    pub host_proc_dir: PathBuf,
    /// Find named network namespaces in these directories of the host
    #[arg(
        long,
        env = "WEIR_NETNS_DIRS",
        value_name = "DIRS",
        value_delimiter = ',',
        default_value = "/var/run/netns,/var/run/docker/netns"
    )]
    pub netns_dirs: Vec<PathBuf>,
    /// Find the container runtime's state in these directories of the host
    #[arg(long, env = "WEIR_RUNTIME_STATE_DIRS", value_name = "DIRS", value_delimiter = ',', default_value = RUNTIME_DIRS)]
    pub runtime_state_dirs: Vec<PathBuf>,
    /// Remove the startup taint when the agent is ready
    #[arg(long, env = "TAINT_ENABLED", value_name = "BOOL", default_value_t = false,
          action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub taint_enabled: bool,
    /// Add the taint again when the agent stays unready
    #[arg(long, env = "TAINT_WHEN_BROKEN", value_name = "BOOL", default_value_t = false,
          action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub taint_when_broken: bool,
    /// Set the keys of the taints to remove; the first is added again
    #[arg(long, env = "TAINT_NAMES", value_name = "KEYS", value_delimiter = ',', default_values_t = [TAINT.to_owned(), ISTIO_TAINT.to_owned()])]
    pub taint_names: Vec<String>,
}

impl NodeArgs {
    /// Returns what to do about pods whose rules cannot be restored. Deleting takes precedence over labeling, as in Istio.
    pub fn fallback(&self) -> Option<Fallback> {
        if self.repair_delete_pods {
            Some(Fallback::Delete)
        } else if self.repair_label_pods {
            let (key, value) = (self.repair_broken_pod_label_key.clone(), self.repair_broken_pod_label_value.clone());
            Some(Fallback::Label { key, value })
        } else {
            None
        }
    }

    /// Returns the limits for deleting and labeling.
    pub fn limits(&self) -> RepairLimits {
        RepairLimits {
            per_owner: self.repair_max_per_owner,
            per_node: self.repair_max_per_node,
            window: self.repair_window,
        }
    }

    /// Returns the paths where network namespaces are found.
    pub fn netns_paths(&self, host_root: &std::path::Path) -> NetnsPaths {
        NetnsPaths {
            host_proc: self.host_proc_dir.clone(),
            host_root: host_root.to_owned(),
            netns_dirs: self.netns_dirs.clone(),
            runtime_dirs: self.runtime_state_dirs.clone(),
        }
    }
}
