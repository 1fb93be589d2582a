//! A container runtime in network, mount and process namespaces of its own, with its state in a temporary directory.
//!
//! ```text
//! release.rs ── which one ──▶ CriRuntime (net.d, cni-bin, root, state) ◀── machine.rs: its namespaces, on and off
//!                                └─ config.rs: configuration of containerd and CRI-O
//! ```
//!
//! Bridges, rules, mounts and sandboxes never touch this machine, and killing one process ends all of them. Only empty cgroups are left;
//! they are removed on drop. The daemon can be killed and its machine rebooted; a reboot keeps what a disk would keep.

mod config;
mod forward;
mod machine;
mod release;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use crate::cri;
use crate::image::Image;
use crate::wait::{TIMEOUT, try_wait_until};
pub use forward::PortForward;
use machine::Machine;
pub use machine::children;
pub use release::RuntimeRelease;

/// Reference of the image that every daemon has, also for pause containers: busybox.
pub const BUSYBOX: &str = "test.local/busybox:1";

const IMPORT_ATTEMPTS: u32 = 5;

/// A running daemon.
#[derive(Debug)]
pub struct CriRuntime {
    release: RuntimeRelease,
    // `None` only while the power is off.
    machine: Mutex<Option<Machine>>,
    dir: tempfile::TempDir,
    cgroup: String,
    /// A client of its CRI.
    pub cri: cri::Client,
}

/// Paths in the daemon's temporary directory.
struct Paths {
    socket: PathBuf,
    conf: PathBuf,
    bin: PathBuf,
    log: PathBuf,
}

impl Paths {
    fn in_dir(dir: &Path) -> Self {
        Self { socket: dir.join("c.sock"), conf: dir.join("net.d"), bin: dir.join("cni-bin"), log: dir.join("log") }
    }
}

impl CriRuntime {
    /// Starts the installed containerd with one conflist, the installed CNI plugins, and `plugin` as `weir-cni`.
    ///
    /// # Errors
    /// When something is not installed, or the daemon does not become ready; the error has its log.
    pub fn start(conflist: &str, plugin: &Path) -> anyhow::Result<Self> {
        Self::start_release(RuntimeRelease::Installed, &[("10-test.conflist", conflist)], Some(plugin))
    }

    /// Starts a daemon with these files as its CNI configuration, its CNI plugins, and `plugin` as `weir-cni`.
    ///
    /// # Errors
    /// When something is not installed, or the daemon does not become ready; the error has its log.
    pub fn start_release(
        release: RuntimeRelease,
        conf: &[(&str, &str)],
        plugin: Option<&Path>,
    ) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("weir-containerd-").tempdir()?;
        let paths = Paths::in_dir(dir.path());
        for path in [&paths.conf, &paths.bin] {
            fs::create_dir(path)?;
        }
        let plugins =
            release.plugins().context("CNI plugins are not installed; install containernetworking-plugins")?;
        for entry in fs::read_dir(plugins)? {
            let entry = entry?;
            symlink(entry.path(), paths.bin.join(entry.file_name()))?;
        }
        if let Some(plugin) = plugin {
            symlink(plugin, paths.bin.join("weir-cni"))?;
        }
        for (name, content) in conf {
            fs::write(paths.conf.join(name), content)?;
        }
        config::write(release, dir.path(), &paths)?;
        let machine = Machine::power_on(dir.path(), &command_line(release, dir.path()))?;
        let cri = connect(&paths)?;
        let cgroup = format!("/weir-test-{}", machine.init());
        let this = Self { release, machine: Mutex::new(Some(machine)), dir, cgroup, cri };
        let busybox = Image::default()
            .file("/bin/busybox", "/bin/busybox")
            .links(&["bin/sh", "bin/sleep", "bin/wget", "bin/httpd", "bin/nc", "bin/cat"], "/bin/busybox");
        this.import(&busybox, BUSYBOX)?;
        if !conf.is_empty() {
            this.wait_for_network()?;
        }
        Ok(this)
    }

    /// Waits until the runtime reports its network as ready.
    ///
    /// # Errors
    /// After the timeout; the error has its reason and log.
    pub fn wait_for_network(&self) -> anyhow::Result<()> {
        try_wait_until("the network is ready", || {
            Ok(match self.cri.network_not_ready() {
                Ok(None) => Ok(()),
                Ok(Some(reason)) => Err(format!("{reason}: {}", self.log())),
                Err(error) => Err(format!("{error:#}: {}", self.log())),
            })
        })
    }

    /// Imports an image under a reference.
    ///
    /// # Errors
    /// When it cannot be written, or the daemon rejects it.
    pub fn import(&self, image: &Image, reference: &str) -> anyhow::Result<()> {
        let tar = self.dir.path().join("image.tar");
        image.write(reference, &tar)?;
        let imported = self.import_archive(&tar);
        fs::remove_file(&tar)?;
        imported
    }

    /// Imports the image of an OCI archive under the name that the archive gives it.
    ///
    /// # Errors
    /// When the daemon rejects it.
    pub fn import_archive(&self, tar: &Path) -> anyhow::Result<()> {
        if self.release == RuntimeRelease::CriO {
            return self.pull_archive(tar);
        }
        for attempt in 1.. {
            let output = Command::new("ctr")
                .env("PATH", self.release.path())
                .arg("--address")
                .arg(Paths::in_dir(self.dir.path()).socket)
                .args(["--namespace", "k8s.io", "images", "import"])
                .arg(tar)
                .output()
                .context("ctr")?;
            let stderr = String::from_utf8_lossy(&output.stderr);
            if output.status.success() {
                break;
            }
            // Happens now and then with images of 100 MB; a retry works.
            ensure!(attempt < IMPORT_ATTEMPTS && stderr.contains("not found"), "ctr images import: {stderr}");
        }
        Ok(())
    }

    /// Imports into CRI-O's store with buildah: CRI-O itself only pulls from registries.
    fn pull_archive(&self, tar: &Path) -> anyhow::Result<()> {
        let output = self
            .command(Path::new("buildah"))?
            .arg("--root")
            .arg(self.dir.path().join("root"))
            .arg("--runroot")
            .arg("/run/containers/storage")
            .args(["--storage-driver", "overlay", "pull", "--signature-policy"])
            .arg(self.dir.path().join("policy.json"))
            .arg(format!("oci-archive:{}", tar.display()))
            .output()
            .context("buildah")?;
        ensure!(output.status.success(), "buildah pull: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// Opens another connection to the runtime, for another thread.
    ///
    /// # Errors
    /// When the runtime does not become ready.
    pub fn connect(&self) -> anyhow::Result<cri::Client> {
        connect(&Paths::in_dir(self.dir.path()))
    }

    /// Returns its temporary directory, from which files may be mounted into containers.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Returns the directory of its CNI configuration.
    pub fn conf_dir(&self) -> PathBuf {
        Paths::in_dir(self.dir.path()).conf
    }

    /// Returns the directory of its CNI plugins.
    pub fn bin_dir(&self) -> PathBuf {
        Paths::in_dir(self.dir.path()).bin
    }

    /// Returns the directory where the network namespaces of its pods are mounted.
    pub fn netns_dir(&self) -> PathBuf {
        match self.release {
            RuntimeRelease::CriO => PathBuf::from("/var/run/netns"),
            _ => self.dir.path().join("state/io.containerd.grpc.v1.cri/netns"),
        }
    }

    /// Returns the daemon's own network namespace, which is that of the node.
    pub fn node_netns(&self) -> PathBuf {
        self.process_one().join("ns/net")
    }

    /// Forwards a port of the node's 127.0.0.1 to the same port of the test, until the value is dropped or the power is off.
    ///
    /// # Errors
    /// When the node's port is in use.
    pub fn forward(&self, port: u16) -> anyhow::Result<PortForward> {
        PortForward::start(&self.node_netns(), port)
    }

    /// Returns the path by which the test reaches a path of the daemon's mount namespace.
    pub fn host_path(&self, path: &str) -> PathBuf {
        // `/var/run` is a symbolic link with an absolute target, which would lead to this machine's directory.
        let path = path.strip_prefix("/var/run/").map_or_else(|| path.to_owned(), |rest| format!("/run/{rest}"));
        self.process_one().join(format!("root{path}"))
    }

    /// Returns `/proc/PID` of the machine's first process, or a path that does not exist while the power is off.
    fn process_one(&self) -> PathBuf {
        let init = self.machine().as_ref().map(Machine::init);
        init.map_or_else(|| PathBuf::from("/nonexistent"), |init| PathBuf::from(format!("/proc/{init}")))
    }

    /// Returns a command on the node: in its namespaces, as root, killed with it. The program is the child of the spawned process (see
    /// [`children`]).
    ///
    /// # Errors
    /// While the power is off.
    pub fn command(&self, program: &Path) -> anyhow::Result<Command> {
        Ok(self.machine().as_ref().context("the power is off")?.command(program))
    }

    /// Kills the daemon. Pods go on, and the machine restarts the daemon unless it is paused.
    ///
    /// # Errors
    /// When the daemon does not run.
    pub fn kill_daemon(&self) -> anyhow::Result<()> {
        self.machine().as_ref().context("the power is off")?.kill_daemon(self.release.daemon())
    }

    /// Sets whether the machine (re)starts the daemon. Also works while the power is off.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub fn pause_daemon(&self, paused: bool) -> anyhow::Result<()> {
        Machine::set_paused(self.dir.path(), paused)
    }

    /// Kills every process at once and removes what only memory keeps: namespaces, mounts, `/run` and the daemon's state directory.
    ///
    /// # Errors
    /// When something stays busy.
    pub fn power_off(&self) -> anyhow::Result<()> {
        drop(self.machine().take());
        try_wait_until("the state directory is removed", || {
            Ok(match fs::remove_dir_all(self.dir.path().join("state")) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.to_string()),
                _ => Ok(()),
            })
        })?;
        // Connecting has to fail as on a machine that boots.
        match fs::remove_file(Paths::in_dir(self.dir.path()).socket) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Boots again with the same disk. The daemon starts unless it is paused.
    ///
    /// # Errors
    /// When the namespaces cannot be created.
    pub fn power_on(&self) -> anyhow::Result<()> {
        *self.machine() = Some(Machine::power_on(self.dir.path(), &command_line(self.release, self.dir.path()))?);
        Ok(())
    }

    fn machine(&self) -> MutexGuard<'_, Option<Machine>> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a sandbox configuration for a pod of the namespace `shop`.
    pub fn pod(&self, name: &str, annotations: impl IntoIterator<Item = (String, String)>) -> cri::PodSandboxConfig {
        cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata {
                name: name.to_owned(),
                uid: format!("{name}-uid"),
                namespace: "shop".to_owned(),
            }),
            hostname: name.to_owned(),
            annotations: annotations.into_iter().collect(),
            log_directory: self.dir.path().join("logs").join(name).display().to_string(),
            linux: Some(cri::LinuxPodSandboxConfig {
                cgroup_parent: self.cgroup.clone(),
                security_context: Some(cri::LinuxSandboxSecurityContext {
                    namespace_options: Some(cri::NamespaceOption::network(false)),
                }),
            }),
        }
    }

    /// Returns the end of the daemon's log.
    pub fn log(&self) -> String {
        tail(&Paths::in_dir(self.dir.path()).log)
    }
}

fn connect(paths: &Paths) -> anyhow::Result<cri::Client> {
    try_wait_until("the runtime serves its CRI", || {
        // The socket exists before the CRI is served.
        let client = cri::Client::connect(&paths.socket).and_then(|client| client.network_not_ready().map(|_| client));
        Ok(client.map_err(|error| format!("{error:#}: {}", tail(&paths.log))))
    })
}

/// Returns the command line of the daemon.
fn command_line(release: RuntimeRelease, dir: &Path) -> String {
    let (program, dir) = (release.program().display().to_string(), dir.display());
    let extra = if release == RuntimeRelease::CriO { " -d \"\"" } else { "" };
    format!("env -i PATH={} HOME=/root {program} -c {dir}/config.toml{extra}", release.path())
}

impl Drop for CriRuntime {
    fn drop(&mut self) {
        drop(self.machine().take());
        let deadline = Instant::now() + TIMEOUT;
        let roots = || fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path());
        let name = &self.cgroup[1..];
        let cgroups: Vec<PathBuf> =
            roots().map(|root| root.join(name)).chain([Path::new("/sys/fs/cgroup").join(name)]).collect();
        while Instant::now() < deadline && cgroups.iter().any(|cgroup| cgroup.exists() && !remove_cgroups(cgroup)) {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Removes a cgroup and those below it; returns `false` while one is busy.
fn remove_cgroups(cgroup: &Path) -> bool {
    let below = fs::read_dir(cgroup).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir());
    // All are tried, also after one that is busy; removing the parent then shows whether all are gone.
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
