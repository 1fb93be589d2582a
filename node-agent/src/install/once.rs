//! The subcommands `install` and `uninstall`.

use std::thread;
use std::time::{Duration, Instant};

use super::file_system::OsFileSystem;
use super::installer::{InstallOutcome, Installer, Mode};
use super::settings::InstallSettings;
use super::uninstall::{self, BinaryRemoval, UninstallReport};

/// Pause between two attempts.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// Result of a subcommand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completion {
    /// Summary for people.
    pub summary: String,
    /// Whether nothing is left to do later.
    pub is_complete: bool,
}

/// Installs the plugin, and waits at most `wait` for a network configuration.
///
/// # Errors
/// All reasons why the plugin is not installed.
pub fn install(settings: InstallSettings, wait: Duration) -> Result<Completion, Vec<String>> {
    let deadline = Instant::now() + wait;
    let mut installer = Installer::new(settings, OsFileSystem);
    loop {
        let report = installer.reconcile(Mode::Apply);
        let findings = || report.findings.iter().map(ToString::to_string);
        let mut errors: Vec<String> = match report.outcome {
            InstallOutcome::Installed { file } => {
                let lines = [format!("plugin and conflist entry are installed: {file}")].into_iter().chain(findings());
                return Ok(Completion { summary: lines.collect::<Vec<_>>().join("\n"), is_complete: true });
            }
            InstallOutcome::Superseded(why) => return Ok(Completion { summary: why.to_string(), is_complete: true }),
            InstallOutcome::BinaryFailed(why) | InstallOutcome::ConfigurationFailed(why) => vec![why],
            InstallOutcome::NoNetwork | InstallOutcome::RestorePending(_) => Vec::new(),
        };
        if Instant::now() >= deadline {
            errors.extend(findings());
            return Err(errors);
        }
        thread::sleep(RETRY_INTERVAL);
    }
}

/// Removes the plugin and its entry from the node.
///
/// # Errors
/// Everything that could not be removed.
pub fn uninstall(settings: &InstallSettings, wait: Duration) -> Result<Completion, Vec<String>> {
    let UninstallReport { files, binary } = uninstall::uninstall(settings, &OsFileSystem, wait)?;
    let files = if files.is_empty() {
        "no conflist has our entry".to_owned()
    } else {
        format!("restored: {}", files.join(", "))
    };
    let is_complete = !matches!(binary, BinaryRemoval::Kept(_));
    let binary = match binary {
        BinaryRemoval::Removed => "removed the plugin".to_owned(),
        BinaryRemoval::NotInstalled => "the plugin is not installed".to_owned(),
        BinaryRemoval::Kept(why) => format!("kept the plugin (it does nothing by itself): {why}"),
    };
    Ok(Completion { summary: format!("{files}\n{binary}"), is_complete })
}
