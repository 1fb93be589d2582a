//! Flags about the pods of the node: answering, repairing, the taint.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args};

use crate::repair::{Fallback, Limits, Places};
use crate::taint::{ISTIO_TAINT, TAINT};
use weir_runtime::duration;

/// Records of containers: containerd, k3s and k0s, MicroK8s, CRI-O (of a sandbox that runs, and of one from before a restart).
const RUNTIME_DIRS: &str = "/run/containerd/io.containerd.runtime.v2.task/k8s.io,\
/run/k3s/containerd/io.containerd.runtime.v2.task/k8s.io,\
/run/k0s/containerd/io.containerd.runtime.v2.task/k8s.io,\
/var/snap/microk8s/common/run/containerd/io.containerd.runtime.v2.task/k8s.io,\
/run/containers/storage/overlay-containers,/var/lib/containers/storage/overlay-containers";

/// The pods of the node.
#[derive(Debug, Clone, Args)]
#[allow(clippy::struct_excessive_bools, reason = "each is a flag of its own, by Istio's name")]
pub struct NodeArgs {
    /// Name of this node; without one the agent installs, but knows no pods
    #[arg(long, alias = "repair-node-name", env = "NODE_NAME", value_name = "NAME", default_value = "")]
    pub node_name: String,
    /// Visit the pods of the mesh and see to their rules
    #[arg(long, env = "REPAIR_ENABLED", value_name = "BOOL", default_value_t = true,
          action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub repair_enabled: bool,
    /// Put rules that are missing or differ back in place
    #[arg(long, env = "REPAIR_REPAIR_PODS", value_name = "BOOL", default_value_t = true,
          action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub repair_repair_pods: bool,
    /// Delete pods whose rules cannot be put back
    #[arg(long, env = "REPAIR_DELETE_PODS", value_name = "BOOL", default_value_t = false,
          action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub repair_delete_pods: bool,
    /// Label pods whose rules cannot be put back
    #[arg(long, env = "REPAIR_LABEL_PODS", value_name = "BOOL", default_value_t = false,
          action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub repair_label_pods: bool,
    /// Key of that label
    #[arg(long, env = "REPAIR_BROKEN_POD_LABEL_KEY", value_name = "KEY", default_value = "cni.istio.io/uninitialized")]
    pub repair_broken_pod_label_key: String,
    /// Its value
    #[arg(long, env = "REPAIR_BROKEN_POD_LABEL_VALUE", value_name = "VALUE", default_value = "true")]
    pub repair_broken_pod_label_value: String,
    /// Visit all pods of the mesh so often; new ones are visited at once
    #[arg(long, env = "REPAIR_INTERVAL", value_name = "TIME", default_value = "30s", value_parser = duration)]
    pub repair_interval: Duration,
    /// Pods of one owner that are deleted or labelled within the window
    #[arg(long, env = "REPAIR_MAX_PER_OWNER", value_name = "COUNT", default_value_t = 2)]
    pub repair_max_per_owner: usize,
    /// Pods of this node that are deleted or labelled within the window
    #[arg(long, env = "REPAIR_MAX_PER_NODE", value_name = "COUNT", default_value_t = 10)]
    pub repair_max_per_node: usize,
    /// The window
    #[arg(long, env = "REPAIR_WINDOW", value_name = "TIME", default_value = "10m", value_parser = duration)]
    pub repair_window: Duration,
    /// Where the host's /proc is mounted
    #[arg(long, env = "WEIR_HOST_PROC", value_name = "DIR", default_value = "/host/proc")]
    pub host_proc_dir: PathBuf,
    /// Folders of the host with bound network namespaces
    #[arg(
        long,
        env = "WEIR_NETNS_DIRS",
        value_name = "DIRS",
        value_delimiter = ',',
        default_value = "/var/run/netns,/var/run/docker/netns"
    )]
    pub netns_dirs: Vec<PathBuf>,
    /// Folders of the host where the container runtime keeps its records
    #[arg(long, env = "WEIR_RUNTIME_STATE_DIRS", value_name = "DIRS", value_delimiter = ',', default_value = RUNTIME_DIRS)]
    pub runtime_state_dirs: Vec<PathBuf>,
    /// Take the taint from the node when the agent is ready
    #[arg(long, env = "TAINT_ENABLED", value_name = "BOOL", default_value_t = false,
          action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub taint_enabled: bool,
    /// Put the first taint back when the agent has not been ready for a while
    #[arg(long, env = "TAINT_WHEN_BROKEN", value_name = "BOOL", default_value_t = false,
          action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub taint_when_broken: bool,
    /// Keys of taints that are taken away
    #[arg(long, env = "TAINT_NAMES", value_name = "KEYS", value_delimiter = ',', default_values_t = [TAINT.to_owned(), ISTIO_TAINT.to_owned()])]
    pub taint_names: Vec<String>,
}

impl NodeArgs {
    /// What is done about pods that are not mended; deleting outweighs labelling, as in Istio.
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

    /// Bounds of that.
    pub fn limits(&self) -> Limits {
        Limits { per_owner: self.repair_max_per_owner, per_node: self.repair_max_per_node, window: self.repair_window }
    }

    /// Where namespaces are looked for.
    pub fn places(&self, host_root: &std::path::Path) -> Places {
        Places {
            host_proc: self.host_proc_dir.clone(),
            host_root: host_root.to_owned(),
            netns_dirs: self.netns_dirs.clone(),
            runtime_dirs: self.runtime_state_dirs.clone(),
        }
    }
}
