//! The subcommands `install` and `uninstall`.

use std::thread;
use std::time::{Duration, Instant};

use super::file_system::OsFileSystem;
use super::installer::{InstallOutcome, Installer, Mode};
use super::settings::InstallSettings;
use super::uninstall::{self, BinaryRemoval, UninstallReport};

/// Beginning of the line about a plugin that stays; `weir uninstall` looks for it.
const PLUGIN_KEPT: &str = "kept the plugin";
/// Pause between two attempts.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// Installs the plugin, and waits at most `wait` for a network configuration. Returns what was done, for people.
///
/// # Errors
/// All reasons why the plugin is not installed.
pub fn install(settings: InstallSettings, wait: Duration) -> Result<String, Vec<String>> {
    let deadline = Instant::now() + wait;
    let mut installer = Installer::new(settings, OsFileSystem);
    loop {
        let report = installer.reconcile(Mode::Apply);
        let findings = || report.findings.iter().map(ToString::to_string);
        let mut errors: Vec<String> = match report.outcome {
            InstallOutcome::Installed { file } => {
                let lines = [format!("plugin and conflist entry are installed: {file}")].into_iter().chain(findings());
                return Ok(lines.collect::<Vec<_>>().join("\n"));
            }
            InstallOutcome::Superseded(why) => return Ok(why.to_string()),
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

/// Removes the plugin and its entry from the node. Returns what was done, for people.
///
/// # Errors
/// Everything that could not be removed.
pub fn uninstall(settings: &InstallSettings, wait: Duration) -> Result<String, Vec<String>> {
    let UninstallReport { files, binary } = uninstall::uninstall(settings, &OsFileSystem, wait)?;
    let files = if files.is_empty() {
        "no conflist has our entry".to_owned()
    } else {
        format!("restored: {}", files.join(", "))
    };
    let binary = match binary {
        BinaryRemoval::Removed => "removed the plugin".to_owned(),
        BinaryRemoval::NotInstalled => "the plugin is not installed".to_owned(),
        BinaryRemoval::Kept(why) => format!("{PLUGIN_KEPT} (it does nothing by itself): {why}"),
    };
    Ok(format!("{files}\n{binary}"))
}
