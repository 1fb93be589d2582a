//! Configuration of the daemons.

use std::fs;
use std::path::Path;

use super::{BUSYBOX, Paths, RuntimeRelease};

/// Writes the daemon's `config.toml` and the files that it names.
pub(super) fn write(release: RuntimeRelease, dir: &Path, paths: &Paths) -> anyhow::Result<()> {
    let text = if release == RuntimeRelease::CriO {
        fs::create_dir(dir.join("hooks"))?;
        fs::write(dir.join("policy.json"), r#"{"default": [{"type": "insecureAcceptAnything"}]}"#)?;
        crio(dir, paths)
    } else {
        containerd(dir, paths)
    };
    Ok(fs::write(dir.join("config.toml"), text)?)
}

/// Returns a configuration of version 2 (containerd 1.6 and later). The garbage collector is off: it may remove what an import has
/// brought but not named yet. `restrict_oom_score_adj` is for machines without CAP_SYS_RESOURCE.
/// NRI, which releases before 1.7 do not have, is at its default socket.
fn containerd(dir: &Path, paths: &Paths) -> String {
    let (dir, socket, bin, conf) = (dir.display(), paths.socket.display(), paths.bin.display(), paths.conf.display());
    format!(
        r#"version = 2
root = "{dir}/root"
state = "{dir}/state"
oom_score = 0
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing"]
[grpc]
  address = "{socket}"
[plugins."io.containerd.nri.v1.nri"]
  disable = false
  plugin_path = "{dir}/nri"
  plugin_config_path = "{dir}/nri"
[plugins."io.containerd.gc.v1.scheduler"]
  startup_delay = "1h"
  schedule_delay = "1h"
[plugins."io.containerd.internal.v1.opt"]
  path = "{dir}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{BUSYBOX}"
  netns_mounts_under_state_dir = true
  restrict_oom_score_adj = true
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{bin}"
    conf_dir = "{conf}"
    max_conf_num = 1
"#
    )
}

/// Returns a configuration of CRI-O 1.29 and later. As by default, a pod has no process of its own (`drop_infra_ctr`), and its records
/// and namespaces are in the default directories. What else a reboot removes is in `state`.
fn crio(dir: &Path, paths: &Paths) -> String {
    let pinns = RuntimeRelease::CriO.program().with_file_name("pinns");
    let (dir, socket, bin, conf, pinns) =
        (dir.display(), paths.socket.display(), paths.bin.display(), paths.conf.display(), pinns.display());
    format!(
        r#"[crio]
root = "{dir}/root"
runroot = "/run/containers/storage"
storage_driver = "overlay"
log_dir = "{dir}/logs"
version_file = "{dir}/state/version"
version_file_persist = ""
clean_shutdown_file = ""
[crio.api]
listen = "{socket}"
stream_address = "127.0.0.1"
stream_port = "0"
[crio.runtime]
default_runtime = "runc"
cgroup_manager = "cgroupfs"
conmon_cgroup = "pod"
namespaces_dir = "/var/run"
log_level = "warn"
pinns_path = "{pinns}"
container_exits_dir = "{dir}/state/exits"
container_attach_socket_dir = "{dir}/state/attach"
drop_infra_ctr = true
hooks_dir = ["{dir}/hooks"]
[crio.runtime.runtimes.runc]
runtime_path = "/usr/sbin/runc"
runtime_root = "{dir}/state/runc"
monitor_path = "/usr/bin/conmon"
monitor_cgroup = "pod"
[crio.image]
pause_image = "{BUSYBOX}"
signature_policy = "{dir}/policy.json"
[crio.network]
network_dir = "{conf}"
plugin_dirs = ["{bin}"]
[crio.nri]
enable_nri = true
nri_plugin_dir = "{dir}/nri"
nri_plugin_config_dir = "{dir}/nri"
"#
    )
}
