//! The subcommands that act once and end.

use std::thread;
use std::time::{Duration, Instant};

use super::disk::RealDisk;
use super::pass::{Installer, Mode, Outcome};
use super::settings::Settings;
use super::uninstall::{self, BinaryLeft, Uninstalled};

/// Between two attempts.
const RETRY: Duration = Duration::from_millis(500);

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done {
    /// For people.
    pub text: String,
    /// Whether nothing is left to be done later.
    pub all: bool,
}

/// Installs, and waits up to `wait` for a network to install into. Says what was done.
///
/// # Errors
/// Why it is not installed, all reasons.
pub fn install(settings: Settings, wait: Duration) -> Result<Done, Vec<String>> {
    let end = Instant::now() + wait;
    let mut installer = Installer::new(settings, RealDisk);
    loop {
        let report = installer.pass(Mode::Act);
        let findings = || report.findings.iter().map(ToString::to_string);
        let mut wrong: Vec<String> = match report.outcome {
            Outcome::InPlace { file } => {
                let lines = [format!("plugin and entry are in place: {file}")].into_iter().chain(findings());
                return Ok(Done { text: lines.collect::<Vec<_>>().join("\n"), all: true });
            }
            Outcome::Yielded(why) => return Ok(Done { text: why.to_string(), all: true }),
            Outcome::BinaryFailed(why) | Outcome::ConfigurationFailed(why) => vec![why],
            Outcome::Waiting | Outcome::Pending(_) => Vec::new(),
        };
        if Instant::now() >= end {
            wrong.extend(findings());
            return Err(wrong);
        }
        thread::sleep(RETRY);
    }
}

/// Takes everything off the node. Says what was done.
///
/// # Errors
/// What could not be removed, all of it.
pub fn uninstall(settings: &Settings, wait: Duration) -> Result<Done, Vec<String>> {
    let Uninstalled { files, binary } = uninstall::uninstall(settings, &RealDisk, wait)?;
    let files =
        if files.is_empty() { "no file had our entry".to_owned() } else { format!("put back: {}", files.join(", ")) };
    let all = !matches!(binary, BinaryLeft::Stays(_));
    let binary = match binary {
        BinaryLeft::Removed => "plugin removed".to_owned(),
        BinaryLeft::Absent => "no plugin was there".to_owned(),
        BinaryLeft::Stays(why) => format!("plugin stays (it does nothing by itself): {why}"),
    };
    Ok(Done { text: format!("{files}\n{binary}"), all })
}
