//! The whole cluster, up and down.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use weir_lab::process;
use weir_tests::try_wait_until;

use crate::files::IstioParts;
use crate::machine::{self, Machine};
use crate::pki::Pki;
use crate::plan::{self, CONTROL, NODES, Node, Runtime, Tools};
use crate::{files, images, network};

/// Longest time that `kubectl` may take: waiting for a rollout on a busy machine.
const KUBECTL_TIMEOUT: Duration = Duration::from_mins(5);
/// Exists when the cluster has been ready.
const COMPLETE: &str = "complete";
const IMPORT_ATTEMPTS: u32 = 5;

/// A cluster, by its directory. The value only names it: `up` leaves it running.
#[derive(Debug, Clone)]
pub struct Cluster {
    dir: PathBuf,
    tools: Tools,
}

impl Cluster {
    /// Names the cluster of this machine: `WEIR_CLUSTER_DIR`, else `weir-cluster` in the state directory of the user (XDG).
    ///
    /// # Errors
    /// When there is no such directory.
    pub fn of_machine() -> anyhow::Result<Self> {
        let state = || {
            let own = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
            own.or_else(|| std::env::home_dir().map(|home| home.join(".local/state")))
                .map(|dir| dir.join("weir-cluster"))
        };
        let dir = std::env::var_os("WEIR_CLUSTER_DIR").map(PathBuf::from).or_else(state).context("HOME is not set")?;
        Ok(Self { dir: std::path::absolute(dir)?, tools: Tools::of_checkout() })
    }

    /// Returns the kubeconfig of its administrator.
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig")
    }

    /// Returns the path of `kubectl`.
    pub fn kubectl_path(&self) -> PathBuf {
        self.tools.path("kubernetes/kubectl")
    }

    /// Returns a machine: `control`, `node1`, `node2` or `node3`.
    pub fn machine(&self, name: &str) -> Machine {
        Machine::new(self.dir.join("machines").join(name))
    }

    /// Returns the machine of a node.
    pub fn node(&self, node: Node) -> Machine {
        self.machine(&node.name())
    }

    /// Returns whether it has been ready, and its control plane is on.
    pub fn is_up(&self) -> bool {
        self.is_complete() && self.machine(CONTROL).init().is_some()
    }

    /// Starts everything, with the program of process 1 and that of [`images::APP`], and waits until it is ready. `report` is told each step.
    ///
    /// # Errors
    /// When something is missing, the cluster is up already, or something fails; what was started is left for a look, until
    /// [`down`](Self::down).
    pub fn up(&self, init: &Path, app: &Path, report: &(dyn Fn(&str) + Sync)) -> anyhow::Result<()> {
        let missing: Vec<String> = self.tools.missing().iter().map(|path| path.display().to_string()).collect();
        ensure!(missing.is_empty(), "missing: {}; `scripts/install-tools cluster` installs them", missing.join(", "));
        let _lock = self.claim(report)?;
        self.write_files(init, app)?;
        let archives = thread::scope(|scope| {
            let archives = scope.spawn(|| images::write(&self.tools, app, &self.dir.join("images")));
            report("control plane");
            self.start_control()?;
            report("nodes");
            for node in NODES {
                self.power_on(node)?;
            }
            archives.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })?;
        report("images");
        self.load(&archives)?;
        report("DNS");
        self.apply(&files::coredns())?;
        report("istiod");
        self.kubectl(&["create", "namespace", "istio-system"], "")?;
        self.install_istio(IstioParts::default())?;
        self.kubectl(&["wait", "--for=condition=Ready", "nodes", "--all", "--timeout=90s"], "")?;
        for (namespace, deployment) in [("kube-system", "coredns"), ("istio-system", "istiod")] {
            self.kubectl(
                &["-n", namespace, "rollout", "status", &format!("deploy/{deployment}"), "--timeout=120s"],
                "",
            )?;
        }
        Ok(fs::write(self.dir.join(COMPLETE), "")?)
    }

    /// Creates the directory, and returns a lock that holds until the cluster is up. What an interrupted `up` has left is removed.
    fn claim(&self, report: &(dyn Fn(&str) + Sync)) -> anyhow::Result<fs::File> {
        let dir = self.dir.display();
        if self.dir.exists() {
            ensure!(!self.is_complete(), "{dir} exists: the cluster is up already; remove it with `down`");
            ensure!(fs::File::open(&self.dir)?.try_lock().is_ok(), "{dir} is locked: the cluster is being started");
            report("leftovers");
        }
        self.down()?;
        ensure!(!network::is_linked(), "there is a link {}: another cluster is up", network::HOST_LINK);
        fs::create_dir_all(&self.dir)?;
        // It has the key of the administrator.
        fs::set_permissions(&self.dir, fs::Permissions::from_mode(0o700))?;
        let lock = fs::File::open(&self.dir)?;
        ensure!(lock.try_lock().is_ok(), "{dir} is locked: the cluster is being started");
        Ok(lock)
    }

    fn write_files(&self, init: &Path, app: &Path) -> anyhow::Result<()> {
        // Copies, so that a build does not replace the programs of running machines.
        for (from, to) in [(init, self.init_path()), (app, self.app_path())] {
            fs::copy(from, to).with_context(|| from.display().to_string())?;
        }
        let pki = Pki::new()?;
        fs::write(self.kubeconfig(), &pki.admin)?;
        self.machine(CONTROL).write_files(&pki.control)?;
        for (node, certificates) in &pki.nodes {
            let machine = self.node(*node);
            machine.write_files(certificates)?;
            machine.write_files(&files::node_files(&self.tools, *node))?;
            let plugins = machine.host_path("/opt/cni/bin");
            fs::create_dir_all(&plugins)?;
            for entry in fs::read_dir(self.tools.cni_plugins(*node))? {
                let entry = entry?;
                fs::copy(entry.path(), plugins.join(entry.file_name()))?;
            }
        }
        Ok(())
    }

    /// Returns whether [`up`](Self::up) has come to its end.
    fn is_complete(&self) -> bool {
        self.dir.join(COMPLETE).exists()
    }

    fn init_path(&self) -> PathBuf {
        self.dir.join("weir-cluster")
    }

    fn app_path(&self) -> PathBuf {
        self.dir.join("weir-cluster-app")
    }

    fn start_control(&self) -> anyhow::Result<()> {
        let control = self.machine(CONTROL);
        control.power_on(&self.init_path())?;
        network::connect_control(&control)?;
        control.start(&plan::control_processes(&self.tools, &self.app_path()), "/usr/sbin:/usr/bin:/sbin:/bin")?;
        try_wait_until("the API server is ready", || {
            let ready = self.kubectl(&["get", "--raw", "/readyz", "--request-timeout=5s"], "");
            Ok(ready.map(drop).map_err(|error| format!("{error:#}; see {}", control.log("kube-apiserver").display())))
        })
    }

    /// Switches a node on.
    ///
    /// # Errors
    /// When its namespaces or links cannot be created.
    pub fn power_on(&self, node: Node) -> anyhow::Result<()> {
        let machine = self.node(node);
        machine.power_on(&self.init_path())?;
        network::connect_node(&self.machine(CONTROL), &machine, node)?;
        machine.start(&plan::node_processes(&self.tools, node), &self.tools.search_path(node))
    }

    /// Imports archives of images on every node, as soon as its runtime is ready.
    ///
    /// # Errors
    /// When a runtime does not become ready, or rejects an archive.
    pub fn load(&self, archives: &[PathBuf]) -> anyhow::Result<()> {
        thread::scope(|scope| {
            let imports =
                NODES.map(|node| scope.spawn(move || archives.iter().try_for_each(|path| self.import(node, path))));
            let results = imports.map(|import| import.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            results.into_iter().collect()
        })
    }

    fn import(&self, node: Node, archive: &Path) -> anyhow::Result<()> {
        let (machine, path) = (self.node(node), archive.display().to_string());
        let runtime = node.runtime;
        let socket = machine.init().with_context(|| format!("{} is off", node.name()))?;
        let socket = PathBuf::from(format!("/proc/{socket}/root{}", runtime.socket()));
        try_wait_until("the runtime listens", || {
            let log = machine.log(runtime.daemon());
            Ok(socket.exists().then_some(()).ok_or_else(|| format!("no socket; see {}", log.display())))
        })?;
        if runtime == Runtime::CriO {
            // CRI-O itself pulls from registries only.
            let source = format!("oci-archive:{path}");
            let buildah = ["buildah", "--root", "/var/lib/containers/storage", "--runroot", "/run/containers/storage"];
            let pull = [
                "--storage-driver",
                "overlay",
                "pull",
                "--quiet",
                "--signature-policy",
                "/etc/crio/policy.json",
                &source,
            ];
            return machine.run(&[&buildah[..], &pull[..]].concat(), "").map(drop);
        }
        for attempt in 1.. {
            let ctr = ["ctr", "--address", runtime.socket(), "--namespace", "k8s.io", "images", "import", &path];
            match machine.run(&ctr, "") {
                Ok(_) => break,
                // The garbage collector may remove what an import has brought but not named yet.
                Err(error) if attempt < IMPORT_ATTEMPTS && error.to_string().contains("not found") => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Installs istiod with parts of Istio, which `istioctl` renders. Nothing is removed.
    ///
    /// # Errors
    /// When `istioctl` fails, or the API server rejects an object.
    pub fn install_istio(&self, parts: IstioParts) -> anyhow::Result<()> {
        let settings = self.dir.join("istio.yaml");
        fs::write(&settings, files::istio(parts))?;
        let mut istioctl = Command::new(self.tools.path("istio/istioctl"));
        istioctl.args(["manifest", "generate", "--filename"]).arg(&settings).env("KUBECONFIG", self.kubeconfig());
        let output = process::run(&mut istioctl, b"", KUBECTL_TIMEOUT)?;
        ensure!(output.status.success(), "istioctl: {}", String::from_utf8_lossy(&output.stderr));
        // As `istioctl install` does: istiod writes to its webhook configurations.
        let apply = ["apply", "--server-side", "--force-conflicts", "-f", "-"];
        self.kubectl(&apply, &String::from_utf8(output.stdout)?).map(drop)
    }

    /// Imports the image of istio-cni on every node.
    ///
    /// # Errors
    /// When it cannot be written, or a runtime rejects it.
    pub fn load_istio_cni(&self) -> anyhow::Result<()> {
        self.load(&[images::write_istio_cni(&self.tools, &self.dir.join("images"))?])
    }

    /// Applies manifests.
    ///
    /// # Errors
    /// When the API server rejects one.
    pub fn apply(&self, manifests: &str) -> anyhow::Result<()> {
        self.kubectl(&["apply", "--server-side", "-f", "-"], manifests).map(drop)
    }

    /// Runs `kubectl` as administrator with `input`, and returns what it prints.
    ///
    /// # Errors
    /// When it fails; the error has what it printed.
    pub fn kubectl(&self, args: &[&str], input: &str) -> anyhow::Result<String> {
        let mut command = Command::new(self.kubectl_path());
        let output =
            process::run(command.args(args).env("KUBECONFIG", self.kubeconfig()), input.as_bytes(), KUBECTL_TIMEOUT)?;
        let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "kubectl {}: {stdout}{stderr}", args.join(" "));
        Ok(stdout.into_owned())
    }

    /// Removes every trace, also of an interrupted [`up`](Self::up): processes with their namespaces, links and mounts; cgroups; the
    /// directory. Nothing happens if there is none.
    ///
    /// # Errors
    /// When something stays busy.
    pub fn down(&self) -> anyhow::Result<()> {
        let existed = self.dir.exists();
        let is_empty = fs::read_dir(&self.dir).is_ok_and(|mut entries| entries.next().is_none());
        if existed && !is_empty && !self.init_path().exists() {
            bail!("{} is not the directory of a cluster", self.dir.display());
        }
        for name in NODES.map(Node::name).iter().map(String::as_str).chain([CONTROL]) {
            self.machine(name).power_off()?;
        }
        machine::remove_common_cgroups(&self.dir)?;
        // The kernel frees mounts after the last process of their namespace.
        try_wait_until("the directory is removed", || {
            Ok(match fs::remove_dir_all(&self.dir) {
                Err(error) if self.dir.exists() => Err(format!("{}: {error}", self.dir.display())),
                _ => Ok(()),
            })
        })?;
        // The kernel removes it with the namespaces, but with those of many pods that takes it more than a minute.
        if existed { network::unlink() } else { Ok(()) }
    }
}
