//! Removes everything from the node: first the entry, then the binary once no attachment needs it.
//!
//! For DEL a runtime uses the current configuration (containerd) or that of ADD, from libcni's cache (CRI-O). So the binary stays while a
//! cached attachment names it: without it those pods could not be stopped. By itself it does nothing, and DEL always succeeds.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use weir_protocol::agent::REPORT_SOCKET;
use weir_protocol::entry::{PLUGIN_TYPE, STATUS_OK_FILE};

use super::binary;
use super::discover::{self, NodeDirs};
use super::file_system::{self, FileSystem, MAX_FILE};
use super::installer::{self, HostMount};
use super::plan;
use super::registration::AgentRegistration;
use super::settings::InstallSettings;
use crate::args::SOCKET_NAME;

/// libcni's cache of attachments, on the host.
const RESULTS: &str = "/var/lib/cni/results";
/// Interval at which the cache is checked.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Time for the runtime to notice the changed configuration (0.3 s with containerd) and to finish calls that use the binary.
const RUNTIME_SETTLE_TIME: Duration = Duration::from_secs(2);

/// Result of removing the binary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BinaryRemoval {
    /// It was removed.
    Removed,
    /// It was not installed.
    NotInstalled,
    /// It was kept, for this reason.
    Kept(String),
}

/// Result of an uninstall.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UninstallReport {
    /// Configuration files that were restored or removed.
    pub files: Vec<String>,
    /// The binary.
    pub binary: BinaryRemoval,
}

/// Removes everything from the node. Can be repeated, also after an interrupted attempt.
///
/// # Errors
/// Everything that could not be removed.
pub fn uninstall(
    settings: &InstallSettings,
    file_system: &dyn FileSystem,
    wait: Duration,
) -> Result<UninstallReport, Vec<String>> {
    let dirs = &discover::discover(settings.args(), &HostMount(&settings.args().host_root));
    let run = &settings.args().cni_agent_run_dir;
    let mut errors = Vec::new();
    let registration = AgentRegistration::register(run).unwrap_or_else(|_| AgentRegistration::unregistered(run));
    if registration.is_registered()
        && let Err(error) = registration.mark_uninstalled()
    {
        errors.push(format!("{}: {error}; a running agent will install again", run.display()));
    }
    let files = remove_entry(settings, file_system, &dirs.conf.mounted, &registration, &mut errors);
    // An entry that could not be removed still names the binary.
    let binary = if errors.is_empty() {
        remove_binaries(settings, file_system, dirs, wait, &mut errors)
    } else {
        BinaryRemoval::Kept("a configuration still names it".to_owned())
    };
    if let BinaryRemoval::Kept(reason) = &binary {
        for bin in dirs.bins.iter().filter(|bin| binary::is_present(file_system, &bin.mounted)) {
            if let Err(error) = binary::record_kept(&bin.mounted, reason) {
                errors.push(format!("{}: {error}", bin.mounted.display()));
            }
        }
    }
    for name in [SOCKET_NAME, REPORT_SOCKET, STATUS_OK_FILE] {
        let path = run.join(name);
        if let Err(error) = file_system.remove(&path) {
            errors.push(format!("{}: {error}", path.display()));
        }
    }
    if errors.is_empty() {
        registration.remove_run_files();
        Ok(UninstallReport { files, binary })
    } else {
        Err(errors)
    }
}

/// Removes the entry and leaves the binary, which DEL of running pods may need. Returns the changed files, and a registration: while it
/// lives, older agents of the node do not install again.
///
/// # Errors
/// Everything that could not be removed.
pub fn remove_entry_only(
    settings: &InstallSettings,
    file_system: &dyn FileSystem,
) -> Result<(Vec<String>, AgentRegistration), Vec<String>> {
    let args = settings.args();
    let registration = AgentRegistration::register(&args.cni_agent_run_dir)
        .unwrap_or_else(|_| AgentRegistration::unregistered(&args.cni_agent_run_dir));
    if registration.superseded_by().is_some() {
        return Ok((Vec::new(), registration));
    }
    let dir = discover::discover(args, &HostMount(&args.host_root)).conf.mounted;
    let mut errors = Vec::new();
    let files =
        if dir.exists() { remove_entry(settings, file_system, &dir, &registration, &mut errors) } else { Vec::new() };
    if errors.is_empty() { Ok((files, registration)) } else { Err(errors) }
}

fn remove_entry(
    settings: &InstallSettings,
    file_system: &dyn FileSystem,
    dir: &Path,
    registration: &AgentRegistration,
    errors: &mut Vec<String>,
) -> Vec<String> {
    // Waits for the reconcile of a running agent, which will not install again.
    let lock = if registration.is_registered() { registration.lock() } else { Ok(None) };
    let mut changes = Vec::new();
    let removed = installer::read_conf_dir(file_system, dir)
        .map_err(|error| format!("{}: {error}", dir.display()))
        .and_then(|conf_dir| {
            let plan = plan::undo(&conf_dir, &settings.args().owned_cni_config_filename);
            installer::apply_steps(file_system, dir, &plan.steps, 0o600, registration.instance(), &mut changes)
        });
    if let Err(error) = removed {
        errors.push(error);
    }
    if dir.exists()
        && let Err(error) = file_system::remove_temporary_files(file_system, dir)
    {
        errors.push(format!("{}: {error}", dir.display()));
    }
    drop(lock);
    changes.into_iter().map(|(file, _)| file).collect()
}

fn remove_binaries(
    settings: &InstallSettings,
    file_system: &dyn FileSystem,
    dirs: &NodeDirs,
    wait: Duration,
    errors: &mut Vec<String>,
) -> BinaryRemoval {
    if !dirs.bins.iter().any(|bin| binary::is_present(file_system, &bin.mounted)) {
        return BinaryRemoval::NotInstalled;
    }
    let results = discover::under_root(&settings.args().host_root, RESULTS);
    thread::sleep(RUNTIME_SETTLE_TIME.min(wait));
    let deadline = Instant::now() + wait;
    loop {
        match attachments(file_system, &results) {
            Ok(0) => break,
            Ok(count) if Instant::now() >= deadline => {
                return BinaryRemoval::Kept(format!(
                    "{count} attachments still need it; run uninstall again when those pods are gone"
                ));
            }
            Ok(_) => thread::sleep(POLL_INTERVAL),
            Err(error) => return BinaryRemoval::Kept(error),
        }
    }
    for bin in &dirs.bins {
        if bin.mounted.exists()
            && let Err(error) = binary::uninstall(file_system, &bin.mounted)
        {
            errors.push(format!("{}: {error}", bin.mounted.display()));
        }
    }
    BinaryRemoval::Removed
}

/// File of libcni's cache.
#[derive(Deserialize)]
struct CachedAttachment {
    /// Configuration of the attachment, base64.
    #[serde(default)]
    config: String,
}

/// Counts the cached attachments that name the plugin, or cannot be parsed.
fn attachments(file_system: &dyn FileSystem, results: &Path) -> Result<usize, String> {
    let names = file_system.list(results).map_err(|error| {
        format!("cannot list attachments in {}: {error}; mount {RESULTS} of the host", results.display())
    })?;
    let names_plugin = |bytes: &[u8]| {
        let config = serde_json::from_slice::<CachedAttachment>(bytes)
            .ok()
            .and_then(|cached| STANDARD.decode(cached.config).ok());
        // An invalid file counts: it might name the plugin.
        config.is_none_or(|config| contains(&config, PLUGIN_TYPE) || config.is_empty())
    };
    let files = names.iter().filter(|name| !name.is_dir);
    Ok(files
        .filter(|name| file_system.read(&results.join(&name.name), MAX_FILE).map_or(true, |bytes| names_plugin(&bytes)))
        .count())
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::file_system::OsFileSystem;
    use super::*;

    #[test]
    fn attachments_that_name_the_plugin_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        let cached = |config: &str| format!(r#"{{"kind":"cniCacheV1","config":"{}"}}"#, STANDARD.encode(config));
        let write = |name: &str, text: String| fs::write(dir.path().join(name), text).unwrap();
        assert_eq!(attachments(&OsFileSystem, dir.path()), Ok(0));
        write("n-1-eth0", cached(r#"{"plugins":[{"type":"bridge"}]}"#));
        assert_eq!(attachments(&OsFileSystem, dir.path()), Ok(0));
        write("n-2-eth0", cached(r#"{"plugins":[{"type":"bridge"},{"type":"weir-cni"}]}"#));
        write("n-3-eth0", "half".to_owned());
        assert_eq!(attachments(&OsFileSystem, dir.path()), Ok(2));
        assert!(attachments(&OsFileSystem, Path::new("/nowhere")).unwrap_err().contains("cannot list attachments"));
    }
}
