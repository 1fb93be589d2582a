//! A container runtime of its own: in network, mount and process namespaces of its own, with its state below a temporary folder.
//!
//! ```text
//! release.rs ── which one ──▶ Runtime (net.d, cni-bin, root, state) ◀── machine.rs: its namespaces, on and off
//!                                └─ config.rs: what containerd and CRI-O are told
//! ```
//!
//! Bridges, rules, mounts and sandboxes never touch the machine, and killing one process ends all of it. Only empty cgroup folders
//! stay; they are removed on drop. The daemon can be killed, and the whole machine rebooted, with what a disk keeps kept.

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

use anyhow::{Context as _, bail, ensure};

use crate::cri;
use crate::image::Image;
pub use forward::Forward;
use machine::Machine;
pub use machine::children;
pub use release::Release;

/// Reference of the image that every daemon starts with: busybox, also as pause container.
pub const BUSYBOX: &str = "test.local/busybox:1";

/// How often an import is tried.
const IMPORTS: u32 = 5;

/// How long the daemon may take to be ready.
const START: Duration = Duration::from_secs(20);

/// A running daemon.
#[derive(Debug)]
pub struct Runtime {
    release: Release,
    // `None` only while the power is off.
    machine: Mutex<Option<Machine>>,
    dir: tempfile::TempDir,
    cgroup: String,
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

impl Runtime {
    /// Starts the machine's daemon whose chain is the given conflist, with its CNI plugins and `plugin` in its folder.
    ///
    /// # Errors
    /// When something is not installed or the daemon does not become ready; its log is in the text.
    pub fn start(conflist: &str, plugin: &Path) -> anyhow::Result<Self> {
        Self::start_release(Release::Installed, &[("10-test.conflist", conflist)], Some(plugin))
    }

    /// Starts a daemon with these files in its configuration folder, and its CNI plugins, and `plugin` as `weir-cni`, in its folder.
    ///
    /// # Errors
    /// When something is not installed or the daemon does not become ready; its log is in the text.
    pub fn start_release(release: Release, conf: &[(&str, &str)], plugin: Option<&Path>) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("weir-containerd-").tempdir()?;
        let folders = Folders::below(dir.path());
        for folder in [&folders.conf, &folders.bin] {
            fs::create_dir(folder)?;
        }
        let theirs = release.plugins().context("no CNI plugins: install containernetworking-plugins")?;
        for entry in fs::read_dir(theirs)? {
            let entry = entry?;
            symlink(entry.path(), folders.bin.join(entry.file_name()))?;
        }
        if let Some(plugin) = plugin {
            symlink(plugin, folders.bin.join("weir-cni"))?;
        }
        for (name, content) in conf {
            fs::write(folders.conf.join(name), content)?;
        }
        config::write(release, dir.path(), &folders)?;
        let machine = Machine::power_on(dir.path(), &daemon(release, dir.path()))?;
        let cri = connect(&folders)?;
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

    /// Waits until the runtime calls its network ready.
    ///
    /// # Errors
    /// When it does not; its reason and its log are in the text.
    pub fn wait_for_network(&self) -> anyhow::Result<()> {
        let started = Instant::now();
        loop {
            let why = match self.cri.network_not_ready() {
                Ok(None) => return Ok(()),
                Ok(Some(why)) => why,
                Err(error) => format!("{error:#}"),
            };
            ensure!(started.elapsed() < START, "network not ready after {START:?}: {why}: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Imports an image under a reference.
    ///
    /// # Errors
    /// When it cannot be written or the daemon refuses it.
    pub fn import(&self, image: &Image, reference: &str) -> anyhow::Result<()> {
        let tar = self.dir.path().join("image.tar");
        image.write(reference, &tar)?;
        let imported = self.import_archive(&tar, reference);
        fs::remove_file(&tar)?;
        imported
    }

    /// Imports the image of an OCI archive, which names it so, under a reference.
    ///
    /// # Errors
    /// When the daemon refuses it.
    pub fn import_archive(&self, tar: &Path, reference: &str) -> anyhow::Result<()> {
        if self.release == Release::CriO {
            return self.pull_archive(tar);
        }
        for attempt in 1.. {
            let output = Command::new("ctr")
                .env("PATH", self.release.path())
                .arg("--address")
                .arg(Folders::below(self.dir.path()).socket)
                .args(["--namespace", "k8s.io", "images", "import", "--index-name", reference])
                .arg(tar)
                .output()
                .context("ctr")?;
            let said = String::from_utf8_lossy(&output.stderr);
            if output.status.success() {
                break;
            }
            // Seen now and then with images of 100 MB, and gone when tried again.
            ensure!(attempt < IMPORTS && said.contains("not found"), "ctr images import: {said}");
        }
        Ok(())
    }

    /// Into CRI-O's own store, by buildah: CRI-O itself only pulls from registries.
    fn pull_archive(&self, tar: &Path) -> anyhow::Result<()> {
        let folder = self.dir.path();
        let output = self
            .command(Path::new("buildah"))?
            .arg("--root")
            .arg(folder.join("root"))
            .arg("--runroot")
            .arg("/run/containers/storage")
            .args(["--storage-driver", "overlay", "pull", "--signature-policy"])
            .arg(folder.join("policy.json"))
            .arg(format!("oci-archive:{}", tar.display()))
            .output()
            .context("buildah")?;
        ensure!(output.status.success(), "buildah pull: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// Another connection to the runtime, for another thread.
    ///
    /// # Errors
    /// When nobody listens.
    pub fn connect(&self) -> anyhow::Result<cri::Client> {
        connect(&Folders::below(self.dir.path()))
    }

    /// A folder that containers may be given files from.
    pub fn folder(&self) -> &Path {
        self.dir.path()
    }

    /// The folder of the daemon's CNI configuration.
    pub fn conf_dir(&self) -> PathBuf {
        Folders::below(self.dir.path()).conf
    }

    /// The folder of its CNI plugins.
    pub fn bin_dir(&self) -> PathBuf {
        Folders::below(self.dir.path()).bin
    }

    /// The folder in which the namespaces of its pods are bound to names.
    pub fn netns_dir(&self) -> PathBuf {
        match self.release {
            Release::CriO => PathBuf::from("/var/run/netns"),
            _ => self.dir.path().join("state/io.containerd.grpc.v1.cri/netns"),
        }
    }

    /// The daemon's own network namespace: the "node" of its pods.
    pub fn node_netns(&self) -> PathBuf {
        self.process_one().join("ns/net")
    }

    /// Makes a port of 127.0.0.1 lead from the node to here, for as long as the value lives and the power is on.
    ///
    /// # Errors
    /// When somebody listens there already.
    pub fn forward(&self, port: u16) -> anyhow::Result<Forward> {
        Forward::start(&self.node_netns(), port)
    }

    /// A path as the daemon sees it, reachable from here.
    pub fn path_from_here(&self, path: &str) -> PathBuf {
        // A link to an absolute path would lead to this machine's own folder.
        let path = path.strip_prefix("/var/run/").map_or_else(|| path.to_owned(), |rest| format!("/run/{rest}"));
        self.process_one().join(format!("root{path}"))
    }

    /// `/proc/PID` of the machine's first process; of none while the power is off.
    fn process_one(&self) -> PathBuf {
        let init = self.machine().as_ref().map(Machine::init);
        init.map_or_else(|| PathBuf::from("/nonexistent"), |init| PathBuf::from(format!("/proc/{init}")))
    }

    /// A command on the node: in its namespaces, as root, and killed with it. Its child is the program itself (see [`children`]).
    ///
    /// # Errors
    /// While the power is off.
    pub fn command(&self, program: &Path) -> anyhow::Result<Command> {
        Ok(self.machine().as_ref().context("the power is off")?.command(program))
    }

    /// Kills the daemon; the pods go on, and the machine starts it again, at once or when it is no longer held.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill_daemon(&self) -> anyhow::Result<()> {
        self.machine().as_ref().context("the power is off")?.kill_daemon(self.release.daemon())
    }

    /// Keeps the daemon from being started (again), or lets it. Works while the power is off, too.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn hold_daemon(&self, hold: bool) -> anyhow::Result<()> {
        Machine::hold(self.dir.path(), hold)
    }

    /// Ends every process at once and forgets what only memory keeps: namespaces, mounts, `/run` and the daemon's state folder.
    ///
    /// # Errors
    /// When something stays busy.
    pub fn power_off(&self) -> anyhow::Result<()> {
        drop(self.machine().take());
        let started = Instant::now();
        while let Err(error) = fs::remove_dir_all(self.dir.path().join("state")) {
            if error.kind() == std::io::ErrorKind::NotFound {
                break;
            }
            ensure!(started.elapsed() < START, "the state folder: {error}");
            std::thread::sleep(Duration::from_millis(20));
        }
        // A socket nobody listens on: connecting to it has to fail as on a machine that boots.
        match fs::remove_file(Folders::below(self.dir.path()).socket) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Boots again, with the same disk. The daemon starts by itself, unless it is held.
    ///
    /// # Errors
    /// When the namespaces cannot be made.
    pub fn power_on(&self) -> anyhow::Result<()> {
        *self.machine() = Some(Machine::power_on(self.dir.path(), &daemon(self.release, self.dir.path()))?);
        Ok(())
    }

    fn machine(&self) -> MutexGuard<'_, Option<Machine>> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
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
            log_directory: self.dir.path().join("logs").join(name).display().to_string(),
            linux: Some(cri::LinuxPodSandboxConfig {
                cgroup_parent: self.cgroup.clone(),
                security_context: Some(cri::LinuxSandboxSecurityContext {
                    namespace_options: Some(cri::NamespaceOption::network(false)),
                }),
            }),
        }
    }

    /// The end of the daemon's log, for failures.
    pub fn log(&self) -> String {
        tail(&Folders::below(self.dir.path()).log)
    }
}

fn connect(folders: &Folders) -> anyhow::Result<cri::Client> {
    let started = Instant::now();
    loop {
        // The socket is there before the runtime interface is.
        let error = match cri::Client::connect(&folders.socket).map(|client| client.network_not_ready().map(|_| client))
        {
            Ok(Ok(client)) => return Ok(client),
            Ok(Err(error)) | Err(error) => error,
        };
        if started.elapsed() > START {
            bail!("the runtime is not ready after {START:?}: {error:#}: {}", tail(&folders.log));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The command line of the daemon.
fn daemon(release: Release, dir: &Path) -> String {
    let (program, dir) = (release.program().display().to_string(), dir.display());
    let further = if release == Release::CriO { " -d \"\"" } else { "" };
    format!("env -i PATH={} HOME=/root {program} -c {dir}/config.toml{further}", release.path())
}

impl Drop for Runtime {
    fn drop(&mut self) {
        drop(self.machine().take());
        let deadline = Instant::now() + Duration::from_secs(5);
        let roots = || fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path());
        let name = &self.cgroup[1..];
        let cgroups: Vec<PathBuf> =
            roots().map(|root| root.join(name)).chain([Path::new("/sys/fs/cgroup").join(name)]).collect();
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
