//! A containerd of its own: in network, mount and process namespaces of its own, with its state below a temporary folder.
//!
//! Bridges, rules, mounts and sandboxes never touch the machine, and killing one process ends all of it. Only empty cgroup folders
//! stay; they are removed on drop.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

use crate::cri;
use crate::image::Image;

/// Reference of the image that every daemon starts with: busybox, also as pause container.
pub const BUSYBOX: &str = "test.local/busybox:1";

/// How long the daemon may take to be ready.
const START: Duration = Duration::from_secs(20);

/// A running daemon.
#[derive(Debug)]
pub struct Containerd {
    daemon: Child,
    init: u32,
    dir: tempfile::TempDir,
    /// Its runtime interface.
    pub cri: cri::Client,
}

/// What stands below the daemon's temporary folder.
struct Folders {
    socket: PathBuf,
    conf: PathBuf,
    bin: PathBuf,
    log: PathBuf,
}

impl Folders {
    fn below(dir: &Path) -> Self {
        Self { socket: dir.join("c.sock"), conf: dir.join("net.d"), bin: dir.join("cni-bin"), log: dir.join("log") }
    }
}

impl Containerd {
    /// Starts a daemon whose chain is the given conflist, with Debian's CNI plugins and `plugin` in its folder.
    ///
    /// # Errors
    /// When something is not installed or the daemon does not become ready; its log is in the text.
    pub fn start(conflist: &str, plugin: &Path) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("weir-containerd-").tempdir()?;
        let folders = Folders::below(dir.path());
        for folder in [&folders.conf, &folders.bin] {
            fs::create_dir(folder)?;
        }
        let theirs =
            ["/usr/lib/cni", "/opt/cni/bin"].map(Path::new).into_iter().find(|folder| folder.join("bridge").exists());
        for entry in fs::read_dir(theirs.context("no CNI plugins: install containernetworking-plugins")?)? {
            let entry = entry?;
            symlink(entry.path(), folders.bin.join(entry.file_name()))?;
        }
        symlink(plugin, folders.bin.join("weir-cni"))?;
        fs::write(folders.conf.join("10-test.conflist"), conflist)?;
        let config = dir.path().join("config.toml");
        fs::write(&config, toml(dir.path(), &folders))?;
        let log = fs::File::create(&folders.log)?;
        // The shell is process 1 of the namespace and reaps what the shims leave.
        let script = format!(
            "ip link set lo up && mount -t tmpfs none /run && mkdir -p /var/lib/cni && mount -t tmpfs none /var/lib/cni && \
             env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root containerd -c {}; wait",
            config.display()
        );
        let daemon = Command::new("unshare")
            .args([
                "--net",
                "--mount",
                "--propagation",
                "private",
                "--pid",
                "--fork",
                "--kill-child=KILL",
                "--mount-proc",
                "sh",
                "-c",
            ])
            .arg(script)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("unshare")?;
        Self::ready(daemon, dir, &folders)
    }

    fn ready(mut daemon: Child, dir: tempfile::TempDir, folders: &Folders) -> anyhow::Result<Self> {
        let started = Instant::now();
        let mut why = String::new();
        while started.elapsed() < START {
            if let Some(status) = daemon.try_wait()? {
                bail!("containerd ended ({status}): {}", tail(&folders.log));
            }
            match Self::try_connect(&daemon, &folders.socket) {
                Ok((init, cri)) => {
                    let this = Self { daemon, init, dir, cri };
                    let busybox = Image::default()
                        .file("/bin/busybox", "/bin/busybox")
                        .links(&["bin/sh", "bin/sleep", "bin/wget", "bin/httpd", "bin/nc", "bin/cat"], "/bin/busybox");
                    this.import(&busybox, BUSYBOX)?;
                    return Ok(this);
                }
                Err(error) => why = format!("{error:#}"),
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        // Errors on the way out would hide the reason.
        let _ = daemon.kill().and_then(|()| daemon.wait());
        bail!("containerd is not ready after {START:?}: {why}: {}", tail(&folders.log))
    }

    fn try_connect(daemon: &Child, socket: &Path) -> anyhow::Result<(u32, cri::Client)> {
        let children = format!("/proc/{0}/task/{0}/children", daemon.id());
        let init = fs::read_to_string(&children)?.split_whitespace().next().context("no child yet")?.parse()?;
        let cri = cri::Client::connect(socket)?;
        match cri.network_not_ready()? {
            None => Ok((init, cri)),
            Some(why) => bail!("network not ready: {why}"),
        }
    }

    /// Imports an image under a reference.
    ///
    /// # Errors
    /// When it cannot be written or the daemon refuses it.
    pub fn import(&self, image: &Image, reference: &str) -> anyhow::Result<()> {
        let tar = self.dir.path().join("image.tar");
        image.write(reference, &tar)?;
        let output = Command::new("ctr")
            .arg("--address")
            .arg(Folders::below(self.dir.path()).socket)
            .args(["--namespace", "k8s.io", "images", "import"])
            .arg(&tar)
            .output()
            .context("ctr")?;
        fs::remove_file(&tar)?;
        ensure!(output.status.success(), "ctr images import: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// A folder that containers may be given files from.
    pub fn folder(&self) -> &Path {
        self.dir.path()
    }

    /// The daemon's own network namespace: the "node" of its pods.
    pub fn node_netns(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.init))
    }

    /// A path as the daemon sees it, reachable from here.
    pub fn path_from_here(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.init))
    }

    /// A sandbox configuration with what these machines need.
    pub fn pod(&self, name: &str, annotations: impl IntoIterator<Item = (String, String)>) -> cri::PodSandboxConfig {
        cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata {
                name: name.to_owned(),
                uid: format!("{name}-uid"),
                namespace: "shop".to_owned(),
            }),
            hostname: name.to_owned(),
            annotations: annotations.into_iter().collect(),
            linux: Some(cri::LinuxPodSandboxConfig { cgroup_parent: self.cgroup() }),
        }
    }

    fn cgroup(&self) -> String {
        format!("/weir-test-{}", self.daemon.id())
    }

    /// The end of the daemon's log, for failures.
    pub fn log(&self) -> String {
        tail(&Folders::below(self.dir.path()).log)
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // A daemon that is gone already is what is wanted.
        let _ = self.daemon.kill().and_then(|()| self.daemon.wait());
        let deadline = Instant::now() + Duration::from_secs(5);
        let roots = || fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path());
        let name = self.cgroup();
        let cgroups: Vec<PathBuf> =
            roots().map(|root| root.join(&name[1..])).chain([Path::new("/sys/fs/cgroup").join(&name[1..])]).collect();
        while Instant::now() < deadline && cgroups.iter().any(|cgroup| cgroup.exists() && !remove_cgroups(cgroup)) {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Removes a cgroup and those below it; `false` while one is busy.
fn remove_cgroups(cgroup: &Path) -> bool {
    let below = fs::read_dir(cgroup).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir());
    // Every one is tried, also after one that is busy; the folder itself then says whether all are gone.
    below.for_each(|entry| {
        remove_cgroups(&entry.path());
    });
    fs::remove_dir(cgroup).is_ok()
}

fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}

/// Configuration, version 2 (containerd 1.6 and later). `restrict_oom_score_adj`: machines without CAP_SYS_RESOURCE.
fn toml(dir: &Path, folders: &Folders) -> String {
    let (dir, socket, bin, conf) =
        (dir.display(), folders.socket.display(), folders.bin.display(), folders.conf.display());
    format!(
        r#"version = 2
root = "{dir}/root"
state = "{dir}/state"
oom_score = 0
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing"]
[grpc]
  address = "{socket}"
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
