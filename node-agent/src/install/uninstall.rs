//! Taking everything off the node again, as an act of its own: the entry first, the binary once nothing refers to it.
//!
//! A runtime ends an attachment with the configuration of now (containerd) or with the one it was made with, from libcni's cache (CRI-O). So
//! a binary that a cached attachment names has to stay: without it those pods could not be stopped. It does nothing by itself, and DEL always succeeds.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use weir_protocol::agent::REPORT_SOCKET;
use weir_protocol::entry::PLUGIN_TYPE;
use weir_protocol::entry::STATUS_SEEN;

use super::binary;
use super::discover::{self, Places};
use super::disk::{self, Disk, MAX_FILE};
use super::lease::Lease;
use super::pass::{self, Mounted};
use super::plan;
use super::settings::Settings;
use crate::args::SOCKET_NAME;

/// Where libcni keeps what it has attached, on the host.
const RESULTS: &str = "/var/lib/cni/results";
/// How often it is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// A runtime takes note of a changed folder within 0.3 s (measured with containerd); calls that it has just begun want the binary as well.
const SETTLE: Duration = Duration::from_secs(2);

/// What became of the binary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BinaryLeft {
    /// It is gone.
    Removed,
    /// It was not there.
    Absent,
    /// It stays, and why.
    Stays(String),
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uninstalled {
    /// Files of the configuration folder that were put back or removed.
    pub files: Vec<String>,
    /// The binary.
    pub binary: BinaryLeft,
}

/// Takes everything off the node. Can be repeated, also where an earlier attempt was cut off.
///
/// # Errors
/// What could not be removed, all of it.
pub fn uninstall(settings: &Settings, disk: &dyn Disk, wait: Duration) -> Result<Uninstalled, Vec<String>> {
    let places = &discover::discover(settings.args(), &Mounted(&settings.args().host_root));
    let run = &settings.args().cni_agent_run_dir;
    let mut wrong = Vec::new();
    let lease = Lease::enter(run).unwrap_or_else(|_| Lease::alone(run));
    if lease.is_shared()
        && let Err(error) = lease.leave_clean()
    {
        wrong.push(format!("{}: {error}; an agent that still runs will install again", run.display()));
    }
    let files = clean_configuration(settings, disk, &places.conf.here, &lease, &mut wrong);
    // An entry that could not be taken out still names the binary.
    let binary = if wrong.is_empty() {
        remove_binaries(settings, disk, places, wait, &mut wrong)
    } else {
        BinaryLeft::Stays("the configuration still names it".to_owned())
    };
    for name in [SOCKET_NAME, REPORT_SOCKET, STATUS_SEEN] {
        let path = run.join(name);
        if let Err(error) = disk.remove(&path) {
            wrong.push(format!("{}: {error}", path.display()));
        }
    }
    if wrong.is_empty() { Ok(Uninstalled { files, binary }) } else { Err(wrong) }
}

fn clean_configuration(
    settings: &Settings,
    disk: &dyn Disk,
    folder: &Path,
    lease: &Lease,
    wrong: &mut Vec<String>,
) -> Vec<String> {
    // An agent that is at work ends its pass first, and leaves the node alone from then on.
    let turn = if lease.is_shared() { lease.turn() } else { Ok(None) };
    let mut done = Vec::new();
    let cleaned = pass::read_listing(disk, folder).map_err(|error| format!("{}: {error}", folder.display())).and_then(
        |listing| {
            let plan = plan::undo(&listing, &settings.args().owned_cni_config_filename);
            pass::apply(disk, folder, &plan.steps, 0o600, lease.name(), &mut done)
        },
    );
    if let Err(why) = cleaned {
        wrong.push(why);
    }
    if folder.exists()
        && let Err(error) = disk::sweep(disk, folder)
    {
        wrong.push(format!("{}: {error}", folder.display()));
    }
    drop(turn);
    done.into_iter().map(|(file, _)| file).collect()
}

fn remove_binaries(
    settings: &Settings,
    disk: &dyn Disk,
    places: &Places,
    wait: Duration,
    wrong: &mut Vec<String>,
) -> BinaryLeft {
    if !places.bins.iter().any(|bin| binary::is_there(disk, &bin.here)) {
        return BinaryLeft::Absent;
    }
    let results = discover::below(&settings.args().host_root, RESULTS);
    thread::sleep(SETTLE.min(wait));
    let end = Instant::now() + wait;
    loop {
        match attachments(disk, &results) {
            Ok(0) => break,
            Ok(count) if Instant::now() >= end => {
                return BinaryLeft::Stays(format!(
                    "{count} attachments were made with it and need it to end: run this again once those pods are gone"
                ));
            }
            Ok(_) => thread::sleep(LOOK),
            Err(why) => return BinaryLeft::Stays(why),
        }
    }
    for bin in &places.bins {
        if bin.here.exists()
            && let Err(error) = binary::uninstall(disk, &bin.here)
        {
            wrong.push(format!("{}: {error}", bin.here.display()));
        }
    }
    BinaryLeft::Removed
}

/// A file of libcni's cache.
#[derive(Deserialize)]
struct Cached {
    /// The list that the attachment was made with, base64.
    #[serde(default)]
    config: String,
}

/// How many cached attachments name the plugin.
fn attachments(disk: &dyn Disk, results: &Path) -> Result<usize, String> {
    let names = disk.list(results).map_err(|error| {
        format!(
            "whether attachments need it is not known: {}: {error} (mount {RESULTS} of the host)",
            results.display()
        )
    })?;
    let names_us = |bytes: &[u8]| {
        let config =
            serde_json::from_slice::<Cached>(bytes).ok().and_then(|cached| STANDARD.decode(cached.config).ok());
        // What cannot be understood might name it.
        config.is_none_or(|config| contains(&config, PLUGIN_TYPE) || config.is_empty())
    };
    let files = names.iter().filter(|name| !name.is_folder);
    Ok(files
        .filter(|name| disk.read(&results.join(&name.name), MAX_FILE).map_or(true, |bytes| names_us(&bytes)))
        .count())
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::disk::RealDisk;
    use super::*;

    #[test]
    fn counts_attachments_that_name_the_plugin() {
        let folder = tempfile::tempdir().unwrap();
        let cached = |config: &str| format!(r#"{{"kind":"cniCacheV1","config":"{}"}}"#, STANDARD.encode(config));
        let write = |name: &str, text: String| fs::write(folder.path().join(name), text).unwrap();
        assert_eq!(attachments(&RealDisk, folder.path()), Ok(0));
        write("n-1-eth0", cached(r#"{"plugins":[{"type":"bridge"}]}"#));
        assert_eq!(attachments(&RealDisk, folder.path()), Ok(0));
        write("n-2-eth0", cached(r#"{"plugins":[{"type":"bridge"},{"type":"weir-cni"}]}"#));
        write("n-3-eth0", "half".to_owned());
        assert_eq!(attachments(&RealDisk, folder.path()), Ok(2));
        assert!(attachments(&RealDisk, Path::new("/nowhere")).unwrap_err().contains("is not known"));
    }
}
