//! One pass over the node: look, decide, act. The only place where plans meet files.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use nix::sys::statvfs::{FsFlags, statvfs};

use super::binary::{Binary, BinaryError};
use super::discover::{self, Folder, HostFiles, Places};
use super::disk::{self, Attributes, Disk, MAX_FILE, Name};
use super::finding::Finding;
use super::lease::{Lease, Yield};
use super::network::{ending, is_network_name};
use super::plan::{self, BACKUP_ENDING, Change, Facts, File, Listing, Plan, Said, Step, Wanted};
use super::runtime::Scanner;
use super::settings::Settings;
use super::versions;

/// Most names of a folder that are looked at; a folder with more is none of configurations.
const MAX_NAMES: usize = 1024;

/// Whether a pass may change anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Put things in order.
    Act,
    /// Only tell.
    Look,
}

/// How a pass ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Plugin and entry are in place.
    InPlace {
        /// File with the entry.
        file: String,
    },
    /// Something has to be changed, and was not, because the pass only looked.
    Pending(Vec<Change>),
    /// There is nothing to be installed into, for the reasons among the findings.
    Waiting,
    /// Another agent does it, or nobody may.
    Yielded(Yield),
    /// The plugin could not be copied.
    BinaryFailed(String),
    /// The configuration could not be written, or was changed by somebody else at the same moment.
    ConfigurationFailed(String),
}

/// What a pass saw and did.
#[derive(Debug, Clone)]
pub struct Report {
    /// How it ended.
    pub outcome: Outcome,
    /// Steps that were carried out, without copies: file and reason.
    pub changes: Vec<(String, Change)>,
    /// Whether the plugin was copied.
    pub copied: bool,
    /// What stands in the way.
    pub findings: Vec<Finding>,
    /// Folders whose changes matter.
    pub watch: Vec<PathBuf>,
    /// Where the folders were found.
    pub source: String,
}

/// Installs, pass by pass.
#[derive(Debug)]
pub struct Installer<D> {
    settings: Settings,
    disk: D,
    lease: Lease,
    binary: Binary,
    scanner: Scanner,
}

impl<D: Disk> Installer<D> {
    /// Enters the agents of the node. Where the run folder cannot be written, it works alone.
    pub fn new(settings: Settings, disk: D) -> Self {
        let run = &settings.args.cni_agent_run_dir;
        let lease = Lease::enter(run).unwrap_or_else(|error| {
            tracing::warn!(folder = %run.display(), %error, "the run folder cannot be written: agents of this node will not see each other");
            Lease::alone(run)
        });
        lease.forget_clean();
        Self { settings, disk, lease, binary: Binary::default(), scanner: Scanner::default() }
    }

    /// One pass.
    pub fn pass(&mut self, mode: Mode) -> Report {
        let places = discover::discover(&self.settings.args, &Mounted(&self.settings.args.host_root));
        let mut report = Report {
            outcome: Outcome::Waiting,
            changes: Vec::new(),
            copied: false,
            findings: places.findings.clone(),
            watch: places.bins.iter().map(|bin| bin.here.clone()).chain([places.conf.here.clone()]).collect(),
            source: places.source.clone(),
        };
        if let Some(why) = self.lease.yields() {
            report.outcome = Outcome::Yielded(why);
            return report;
        }
        let turn = match self.turn() {
            Ok(turn) => turn,
            Err(why) => {
                report.outcome = Outcome::ConfigurationFailed(why);
                return report;
            }
        };
        report.outcome = self.carry_out(&places, mode, &mut report).unwrap_or_else(|outcome| outcome);
        drop(turn);
        report.findings.sort();
        report.findings.dedup();
        report
    }

    /// The right to work, as far as agents see each other.
    fn turn(&self) -> Result<Option<super::lease::Turn>, String> {
        if !self.lease.is_shared() {
            return Ok(None);
        }
        match self.lease.turn() {
            Ok(Some(turn)) => Ok(Some(turn)),
            Ok(None) => Err("another agent of this node has been at work for too long".to_owned()),
            Err(error) => Err(format!("{}: {error}", self.settings.args.cni_agent_run_dir.display())),
        }
    }

    fn carry_out(&mut self, places: &Places, mode: Mode, report: &mut Report) -> Result<Outcome, Outcome> {
        // The plugin comes first: an entry must never name what is not there.
        let binary = self.settle_binary(places, mode, report);
        let conf = &places.conf;
        check_folder(conf, false, &mut report.findings);
        if mode == Mode::Act {
            // What cannot be removed is in nobody's way.
            let _ = disk::sweep(&self.disk, &conf.here);
        }
        let listing = read_listing(&self.disk, &conf.here)
            .map_err(|error| Outcome::ConfigurationFailed(format!("{}: {error}", conf.here.display())))?;
        let plan = self.decide(&listing, places, report);
        self.check_plugins(&plan, places, report);
        report.findings.extend(plan.findings.iter().cloned());
        if let Some(folder) = plan.placed.as_deref().and_then(|placed| placed.split_once('/')) {
            report.watch.push(conf.here.join(folder.0));
        }
        binary?;
        if !plan.steps.is_empty() {
            if mode == Mode::Look {
                return Ok(Outcome::Pending(plan.steps.iter().map(Step::change).collect()));
            }
            let mode = if self.settings.args.cni_conf_group_read { 0o640 } else { 0o600 };
            apply(&self.disk, &conf.here, &plan.steps, mode, self.lease.name(), &mut report.changes)
                .map_err(Outcome::ConfigurationFailed)?;
        }
        Ok(plan.placed.map_or(Outcome::Waiting, |file| Outcome::InPlace { file }))
    }

    fn settle_binary(&mut self, places: &Places, mode: Mode, report: &mut Report) -> Result<(), Outcome> {
        let failed = |error: BinaryError| Outcome::BinaryFailed(error.to_string());
        self.binary.load(&self.disk, &self.settings.args.plugin_source).map_err(failed)?;
        let Some(bin) = places.bins.first() else { return Ok(()) };
        check_folder(bin, true, &mut report.findings);
        if self.binary.is_installed(&self.disk, &bin.here) {
            if mode == Mode::Act {
                // What cannot be removed is in nobody's way.
                let _ = self.binary.tidy(&self.disk, &bin.here);
            }
            return Ok(());
        }
        if mode == Mode::Look {
            return Err(Outcome::Pending(vec![Change::Missing]));
        }
        self.binary.install(&self.disk, &bin.here, self.lease.name()).map_err(failed)?;
        report.copied = true;
        Ok(())
    }

    fn decide(&mut self, listing: &Listing, places: &Places, report: &mut Report) -> Plan {
        let name = &self.settings.args.cni_conf_name;
        let wanted = Wanted {
            placement: self.settings.placement.clone(),
            entry: self.settings.entry.clone(),
            pinned: (!name.is_empty()).then(|| name.clone()),
            owned_name: self.settings.args.owned_cni_config_filename.clone(),
            folder: places.conf.here.display().to_string(),
        };
        let mut facts = Facts { drop_ins: self.look_at_runtime(places, report), versions: BTreeMap::new() };
        let plan = plan::decide(listing, &wanted, &facts);
        if plan.ask.is_empty() {
            return plan;
        }
        for kind in &plan.ask {
            let said = match find_plugin(&self.disk, kind, places) {
                Ok(path) => versions::ask(&path).map_or_else(Said::Nothing, Said::Speaks),
                Err(_) => Said::Absent,
            };
            facts.versions.insert(kind.clone(), said);
        }
        plan::decide(listing, &wanted, &facts)
    }

    /// Whether the runtime reads drop-ins; and, by the way, whether it hands over annotations.
    fn look_at_runtime(&mut self, places: &Places, report: &mut Report) -> Result<(), String> {
        for binary in &places.runtimes {
            let Ok(abilities) = self.scanner.look(&self.disk, binary) else { continue };
            let binary = binary.display();
            if !abilities.annotations {
                report.findings.push(Finding::NoPodAnnotations { binary: binary.to_string() });
            }
            return if abilities.drop_ins { Ok(()) } else { Err(format!("{binary} does not read drop-ins")) };
        }
        Err("the runtime's binary is not mounted here, so nobody knows whether it reads drop-ins".to_owned())
    }

    /// Whether runtimes will find the other plugins of the list.
    fn check_plugins(&self, plan: &Plan, places: &Places, report: &mut Report) {
        let Some(file) = &plan.primary else { return };
        for plugin in &plan.types {
            if let Err(reason) = find_plugin(&self.disk, plugin, places) {
                report.findings.push(Finding::Plugin { file: file.clone(), plugin: plugin.clone(), reason });
            }
        }
    }
}

/// The host's files below the place where they are mounted.
pub(super) struct Mounted<'a>(pub(super) &'a Path);

impl HostFiles for Mounted<'_> {
    fn read(&self, path: &str) -> Option<Vec<u8>> {
        disk::RealDisk.read(&discover::below(self.0, path), MAX_FILE).ok()
    }

    fn names(&self, folder: &str) -> Vec<String> {
        let names = disk::RealDisk.list(&discover::below(self.0, folder)).unwrap_or_default();
        names.into_iter().filter(|name| !name.is_folder).map(|name| name.name).collect()
    }

    fn exists(&self, path: &str) -> bool {
        discover::below(self.0, path).exists()
    }
}

/// Whether a folder is there and takes what we want of it.
fn check_folder(folder: &Folder, programs: bool, findings: &mut Vec<Finding>) {
    let here = folder.here.display().to_string();
    match statvfs(&folder.here) {
        Err(_) => findings.push(Finding::MissingFolder { folder: here, host: folder.host.clone() }),
        Ok(mount) => {
            if mount.flags().contains(FsFlags::ST_RDONLY) {
                findings.push(Finding::ReadOnly { folder: here.clone() });
            }
            if programs && mount.flags().contains(FsFlags::ST_NOEXEC) {
                findings.push(Finding::NoExec { folder: here });
            }
        }
    }
}

/// Reads what a plan is made from. A file that cannot be read is a fact like any other.
///
/// # Errors
/// The folder itself cannot be read.
pub fn read_listing(disk: &dyn Disk, folder: &Path) -> io::Result<Listing> {
    let mut listing = Listing::new();
    let read = |path: &Path| match disk.read(path, MAX_FILE) {
        Ok(bytes) => File::Bytes(bytes),
        Err(error) => File::Unreadable(error.to_string()),
    };
    let names = match disk.list(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(listing),
        names => names?,
    };
    for Name { name, is_folder } in names.into_iter().take(MAX_NAMES) {
        let path = folder.join(&name);
        if !is_folder {
            listing.insert(name, read(&path));
        } else if is_network_name(&name) {
            // A folder of drop-ins; one that cannot be read has none of ours.
            for inner in disk.list(&path).unwrap_or_default().into_iter().take(MAX_NAMES) {
                if !inner.is_folder && ending(&inner.name) == Some("conf") {
                    listing.insert(format!("{name}/{}", inner.name), read(&path.join(&inner.name)));
                }
            }
        }
    }
    Ok(listing)
}

/// Carries out the steps of a plan in their order.
///
/// # Errors
/// The first step that fails, with its file; the steps before it are done.
pub fn apply(
    disk: &dyn Disk,
    folder: &Path,
    steps: &[Step],
    mode: u32,
    instance: &str,
    done: &mut Vec<(String, Change)>,
) -> Result<(), String> {
    for step in steps {
        let carried_out = match step {
            Step::Write { file, bytes, like, .. } => write(disk, folder, file, bytes, like.as_deref(), mode, instance),
            Step::Remove { file, .. } => remove(disk, folder, file),
        };
        carried_out.map_err(|error| format!("{}: {error}", folder.join(step.file()).display()))?;
        if !step.file().ends_with(BACKUP_ENDING) {
            done.push((step.file().to_owned(), step.change()));
        }
    }
    Ok(())
}

fn write(
    disk: &dyn Disk,
    folder: &Path,
    file: &str,
    bytes: &[u8],
    like: Option<&str>,
    mode: u32,
    instance: &str,
) -> io::Result<()> {
    if let Some((network, _)) = file.split_once('/') {
        disk.make_folder(&folder.join(network))?;
    }
    // A link stays a link: what it leads to is replaced.
    let path = disk.resolve(&folder.join(file))?;
    let fresh = Attributes { mode, owner: None };
    let attributes = like.map_or(fresh, |like| disk.attributes(&folder.join(like)).unwrap_or(fresh));
    disk::replace(disk, &path, bytes, attributes, instance)
}

fn remove(disk: &dyn Disk, folder: &Path, file: &str) -> io::Result<()> {
    disk::remove(disk, &folder.join(file))?;
    if let Some((network, _)) = file.split_once('/') {
        // With files of others in it, it stays.
        let _ = disk.remove_folder(&folder.join(network));
    }
    Ok(())
}

/// Where the runtime would find a plugin, by the rules of the reference library.
fn find_plugin(disk: &dyn Disk, kind: &str, places: &Places) -> Result<PathBuf, String> {
    if kind.contains('/') {
        return Err("its name holds a path".to_owned());
    }
    let mut why = format!("it is in none of {}", folders(places));
    for bin in &places.bins {
        let path = bin.here.join(kind);
        match disk.attributes(&path) {
            Ok(attributes) if attributes.mode & 0o111 != 0 => return Ok(path),
            Ok(_) => why = format!("{} is not executable", path.display()),
            Err(_) => {}
        }
    }
    Err(why)
}

fn folders(places: &Places) -> String {
    places.bins.iter().map(|bin| bin.host.as_str()).collect::<Vec<_>>().join(", ")
}
