//! Reconciles a node: reads its CNI directories, plans, and executes the plan.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use nix::sys::statvfs::{FsFlags, statvfs};

use super::binary::{BinaryError, PluginBinary};
use super::discover::{self, HostDir, HostFiles, NodeDirs};
use super::file_system::{self, DirEntry, FileAttributes, FileSystem, MAX_FILE};
use super::finding::Finding;
use super::network::{extension, is_network_name};
use super::plan::{
    self, BACKUP_SUFFIX, ChangeReason, ConfDir, ConfFile, DesiredEntry, FileStep, Plan, PluginVersions, RuntimeFacts,
};
use super::registration::{AgentRegistration, InstallLock, LOCK_TIMEOUT, Superseded};
use super::runtime::RuntimeScanner;
use super::settings::InstallSettings;
use super::versions;

/// Most entries that are read of one directory.
const MAX_ENTRIES: usize = 1024;

/// Whether a reconcile may change files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Change what differs.
    Apply,
    /// Only report what would be changed.
    DryRun,
}

/// Result of a reconcile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InstallOutcome {
    /// The plugin and its conflist entry are installed.
    Installed {
        /// File with the entry.
        file: String,
    },
    /// A dry run found something to change.
    RestorePending(Vec<ChangeReason>),
    /// There is no network configuration for the entry; the findings say why.
    NoNetwork,
    /// Another agent owns the node, or the plugin was uninstalled.
    Superseded(Superseded),
    /// The plugin cannot be copied.
    BinaryFailed(String),
    /// The configuration cannot be read or written.
    ConfigurationFailed(String),
}

/// Result of a reconcile.
#[derive(Debug, Clone)]
pub struct InstallReport {
    /// Result.
    pub outcome: InstallOutcome,
    /// Files that were changed, with the reason; without backups.
    pub changes: Vec<(String, ChangeReason)>,
    /// Whether the plugin was copied.
    pub binary_copied: bool,
    /// Obstacles on this node.
    pub findings: Vec<Finding>,
    /// Directories whose changes call for the next reconcile.
    pub watched_dirs: Vec<PathBuf>,
    /// Place where the directories are configured, for the log.
    pub dirs_source: String,
}

impl InstallReport {
    /// Returns whether the reconcile changed the plugin or the configuration.
    pub fn changed_files(&self) -> bool {
        self.binary_copied || !self.changes.is_empty()
    }
}

/// Installs the plugin and its entry on a node.
#[derive(Debug)]
pub struct Installer<F> {
    settings: InstallSettings,
    file_system: F,
    registration: AgentRegistration,
    binary: PluginBinary,
    scanner: RuntimeScanner,
}

impl<F: FileSystem> Installer<F> {
    /// Registers this agent on the node. Without a writable run directory other agents do not see it.
    pub fn new(settings: InstallSettings, file_system: F) -> Self {
        let run = &settings.args.cni_agent_run_dir;
        let registration = AgentRegistration::register(run).unwrap_or_else(|error| {
            tracing::warn!(dir = %run.display(), %error, "cannot write the run directory; agents on this node cannot see each other");
            AgentRegistration::unregistered(run)
        });
        registration.clear_uninstalled();
        Self {
            settings,
            file_system,
            registration,
            binary: PluginBinary::default(),
            scanner: RuntimeScanner::default(),
        }
    }

    /// Reconciles the node once.
    pub fn reconcile(&mut self, mode: Mode) -> InstallReport {
        let dirs = discover::discover(&self.settings.args, &HostMount(&self.settings.args.host_root));
        let mut report = InstallReport {
            outcome: InstallOutcome::NoNetwork,
            changes: Vec::new(),
            binary_copied: false,
            findings: dirs.findings.clone(),
            watched_dirs: dirs.bins.iter().chain([&dirs.conf]).map(|dir| dir.mounted.clone()).collect(),
            dirs_source: dirs.source.clone(),
        };
        if let Some(superseded) = self.registration.superseded_by() {
            report.outcome = InstallOutcome::Superseded(superseded);
            return report;
        }
        let lock = match self.lock() {
            Ok(lock) => lock,
            Err(error) => {
                report.outcome = InstallOutcome::ConfigurationFailed(error);
                return report;
            }
        };
        report.outcome = self.execute(&dirs, mode, &mut report).unwrap_or_else(|outcome| outcome);
        drop(lock);
        report.findings.sort();
        report.findings.dedup();
        report
    }

    /// Takes the lock that the agents of a node share; `None` where this agent is not registered.
    fn lock(&self) -> Result<Option<InstallLock>, String> {
        if !self.registration.is_registered() {
            return Ok(None);
        }
        match self.registration.lock() {
            Ok(Some(lock)) => Ok(Some(lock)),
            Ok(None) => Err(format!("another agent holds install.lock for more than {} s", LOCK_TIMEOUT.as_secs())),
            Err(error) => Err(format!("{}: {error}", self.settings.args.cni_agent_run_dir.display())),
        }
    }

    fn execute(
        &mut self,
        dirs: &NodeDirs,
        mode: Mode,
        report: &mut InstallReport,
    ) -> Result<InstallOutcome, InstallOutcome> {
        // The plugin first: an entry must never name a missing binary.
        let binary = self.ensure_binary(dirs, mode, report);
        let conf = &dirs.conf;
        check_dir(conf, false, &mut report.findings);
        if mode == Mode::Apply {
            // Leftovers do no harm.
            let _ = file_system::remove_temporary_files(&self.file_system, &conf.mounted);
        }
        let conf_dir = read_conf_dir(&self.file_system, &conf.mounted)
            .map_err(|error| InstallOutcome::ConfigurationFailed(format!("{}: {error}", conf.mounted.display())))?;
        let plan = self.decide(&conf_dir, dirs, report);
        self.check_plugins(&plan, dirs, report);
        report.findings.extend(plan.findings.iter().cloned());
        if let Some((network, _)) = plan.entry_file.as_deref().and_then(|file| file.split_once('/')) {
            report.watched_dirs.push(conf.mounted.join(network));
        }
        binary?;
        if !plan.steps.is_empty() {
            if mode == Mode::DryRun {
                return Ok(InstallOutcome::RestorePending(plan.steps.iter().map(FileStep::reason).collect()));
            }
            let mode = if self.settings.args.cni_conf_group_read { 0o640 } else { 0o600 };
            apply_steps(
                &self.file_system,
                &conf.mounted,
                &plan.steps,
                mode,
                self.registration.instance(),
                &mut report.changes,
            )
            .map_err(InstallOutcome::ConfigurationFailed)?;
        }
        Ok(plan.entry_file.map_or(InstallOutcome::NoNetwork, |file| InstallOutcome::Installed { file }))
    }

    fn ensure_binary(&mut self, dirs: &NodeDirs, mode: Mode, report: &mut InstallReport) -> Result<(), InstallOutcome> {
        let failed = |error: BinaryError| InstallOutcome::BinaryFailed(error.to_string());
        self.binary.load(&self.file_system, &self.settings.args.plugin_source).map_err(failed)?;
        let Some(bin) = dirs.bins.first() else { return Ok(()) };
        check_dir(bin, true, &mut report.findings);
        if self.binary.is_installed(&self.file_system, &bin.mounted) {
            if mode == Mode::Apply {
                // Leftovers do no harm.
                let _ = self.binary.remove_old_versions(&self.file_system, &bin.mounted);
            }
            return Ok(());
        }
        if mode == Mode::DryRun {
            return Err(InstallOutcome::RestorePending(vec![ChangeReason::Missing]));
        }
        self.binary.install(&self.file_system, &bin.mounted, self.registration.instance()).map_err(failed)?;
        report.binary_copied = true;
        Ok(())
    }

    fn decide(&mut self, conf_dir: &ConfDir, dirs: &NodeDirs, report: &mut InstallReport) -> Plan {
        let name = &self.settings.args.cni_conf_name;
        let desired = DesiredEntry {
            placement: self.settings.placement.clone(),
            entry: self.settings.entry.clone(),
            pinned: (!name.is_empty()).then(|| name.clone()),
            owned_name: self.settings.args.owned_cni_config_filename.clone(),
            dir: dirs.conf.mounted.display().to_string(),
        };
        let mut facts = RuntimeFacts { drop_ins: self.inspect_runtime(dirs, report), versions: BTreeMap::new() };
        let plan = plan::decide(conf_dir, &desired, &facts);
        if plan.plugins_to_query.is_empty() {
            return plan;
        }
        for kind in &plan.plugins_to_query {
            let versions = match find_plugin(&self.file_system, kind, dirs) {
                Ok(path) => {
                    versions::query_versions(&path).map_or_else(PluginVersions::Unknown, PluginVersions::Supported)
                }
                Err(_) => PluginVersions::NotInstalled,
            };
            facts.versions.insert(kind.clone(), versions);
        }
        plan::decide(conf_dir, &desired, &facts)
    }

    /// Returns whether the runtime reads drop-ins, or why that is unknown. Reports a runtime that passes no annotations.
    fn inspect_runtime(&mut self, dirs: &NodeDirs, report: &mut InstallReport) -> Result<(), String> {
        for binary in &dirs.runtimes {
            let Ok(capabilities) = self.scanner.inspect(&self.file_system, binary) else { continue };
            let binary = binary.display();
            if !capabilities.pod_annotations {
                report.findings.push(Finding::NoPodAnnotations { binary: binary.to_string() });
            }
            return if capabilities.drop_ins { Ok(()) } else { Err(format!("{binary} does not read drop-ins")) };
        }
        Err("the runtime's binary is not mounted, so it is unknown whether it reads drop-ins".to_owned())
    }

    /// Reports other plugins of the list that the runtime will not find.
    fn check_plugins(&self, plan: &Plan, dirs: &NodeDirs, report: &mut InstallReport) {
        let Some(file) = &plan.primary else { return };
        for plugin in &plan.other_plugins {
            if let Err(reason) = find_plugin(&self.file_system, plugin, dirs) {
                report.findings.push(Finding::PluginMissing { file: file.clone(), plugin: plugin.clone(), reason });
            }
        }
    }
}

/// The host's files under_root the place where they are mounted.
pub(super) struct HostMount<'a>(pub(super) &'a Path);

impl HostFiles for HostMount<'_> {
    fn read(&self, path: &str) -> Option<Vec<u8>> {
        file_system::OsFileSystem.read(&discover::under_root(self.0, path), MAX_FILE).ok()
    }

    fn names(&self, folder: &str) -> Vec<String> {
        let names = file_system::OsFileSystem.list(&discover::under_root(self.0, folder)).unwrap_or_default();
        names.into_iter().filter(|name| !name.is_dir).map(|name| name.name).collect()
    }

    fn exists(&self, path: &str) -> bool {
        discover::under_root(self.0, path).exists()
    }
}

/// Reports a directory that is missing or not writable, or, with `programs`, from which no program can be started.
fn check_dir(dir: &HostDir, programs: bool, findings: &mut Vec<Finding>) {
    let path = dir.mounted.display().to_string();
    match statvfs(&dir.mounted) {
        Err(_) => findings.push(Finding::MissingDir { dir: path, host: dir.host.clone() }),
        Ok(mount) => {
            if mount.flags().contains(FsFlags::ST_RDONLY) {
                findings.push(Finding::ReadOnly { dir: path.clone() });
            }
            if programs && mount.flags().contains(FsFlags::ST_NOEXEC) {
                findings.push(Finding::NoExec { dir: path });
            }
        }
    }
}

/// Reads the files of a configuration directory, and those of the directories with drop-ins in it.
///
/// # Errors
/// The directory itself cannot be read; a file that cannot be read is in the result.
pub fn read_conf_dir(files: &dyn FileSystem, dir: &Path) -> io::Result<ConfDir> {
    let mut conf_dir = ConfDir::new();
    let read = |path: &Path| match files.read(path, MAX_FILE) {
        Ok(bytes) => ConfFile::Bytes(bytes),
        Err(error) => ConfFile::Unreadable(error.to_string()),
    };
    let names = match files.list(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(conf_dir),
        names => names?,
    };
    for DirEntry { name, is_dir } in names.into_iter().take(MAX_ENTRIES) {
        let path = dir.join(&name);
        if !is_dir {
            conf_dir.insert(name, read(&path));
        } else if is_network_name(&name) {
            // A directory of drop-ins; an unreadable one has none of ours.
            for inner in files.list(&path).unwrap_or_default().into_iter().take(MAX_ENTRIES) {
                if !inner.is_dir && extension(&inner.name) == Some("conf") {
                    conf_dir.insert(format!("{name}/{}", inner.name), read(&path.join(&inner.name)));
                }
            }
        }
    }
    Ok(conf_dir)
}

/// Executes the steps of a plan in their order and adds the changed files to `changes`.
///
/// # Errors
/// The first step that fails, with its file; the steps before it are done.
pub fn apply_steps(
    files: &dyn FileSystem,
    dir: &Path,
    steps: &[FileStep],
    mode: u32,
    instance: &str,
    changes: &mut Vec<(String, ChangeReason)>,
) -> Result<(), String> {
    for step in steps {
        let result = match step {
            FileStep::Write { file, bytes, like, .. } => {
                write(files, dir, file, bytes, like.as_deref(), mode, instance)
            }
            FileStep::Remove { file, .. } => remove(files, dir, file),
        };
        result.map_err(|error| format!("{}: {error}", dir.join(step.file()).display()))?;
        if !step.file().ends_with(BACKUP_SUFFIX) {
            changes.push((step.file().to_owned(), step.reason()));
        }
    }
    Ok(())
}

fn write(
    files: &dyn FileSystem,
    dir: &Path,
    file: &str,
    bytes: &[u8],
    like: Option<&str>,
    mode: u32,
    instance: &str,
) -> io::Result<()> {
    if let Some((network, _)) = file.split_once('/') {
        files.create_dir(&dir.join(network))?;
    }
    // A link stays a link: its target is replaced.
    let path = files.resolve(&dir.join(file))?;
    let fresh = FileAttributes { mode, owner: None };
    let attributes = like.map_or(fresh, |like| files.attributes(&dir.join(like)).unwrap_or(fresh));
    file_system::replace(files, &path, bytes, attributes, instance)
}

fn remove(files: &dyn FileSystem, dir: &Path, file: &str) -> io::Result<()> {
    file_system::remove(files, &dir.join(file))?;
    if let Some((network, _)) = file.split_once('/') {
        // It stays while it has files of others.
        let _ = files.remove_dir(&dir.join(network));
    }
    Ok(())
}

/// Finds a plugin by the rules of the reference library.
fn find_plugin(files: &dyn FileSystem, kind: &str, dirs: &NodeDirs) -> Result<PathBuf, String> {
    if kind.contains('/') {
        return Err("its name contains a slash".to_owned());
    }
    let mut error = format!("it is in none of {}", bin_dirs(dirs));
    for bin in &dirs.bins {
        let path = bin.mounted.join(kind);
        match files.attributes(&path) {
            Ok(attributes) if attributes.mode & 0o111 != 0 => return Ok(path),
            Ok(_) => error = format!("{} is not executable", path.display()),
            Err(_) => {}
        }
    }
    Err(error)
}

fn bin_dirs(dirs: &NodeDirs) -> String {
    dirs.bins.iter().map(|bin| bin.host.as_str()).collect::<Vec<_>>().join(", ")
}
