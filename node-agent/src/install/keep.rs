//! The part of the agent that keeps the node installed: a pass at the start, then one whenever a folder changes or the timer asks.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use inotify::{EventStream, Inotify, WatchMask, Watches};
use tokio::time::sleep;
use tracing::{debug, error, info, warn};

use super::damper::Damper;
use super::disk::{Disk, TEMPORARY};
use super::finding::Finding;
use super::pass::{Installer, Mode, Outcome, Report};
use super::settings::Settings;
use crate::health::{Condition, Weight};
use crate::notice::{Notices, Reason};
use crate::run::Context;

mod metrics;

use metrics::Metrics;

/// Between two passes: one change of a file is several events.
const SPACING: Duration = Duration::from_millis(20);
/// Between two looks while somebody fights.
const SPACING_AT_WAR: Duration = Duration::from_secs(1);
/// While nothing can be installed, or another agent does it, nothing tells when that changes.
const WAITING_INTERVAL: Duration = Duration::from_secs(2);
/// What may have changed a file, or the folder itself.
const EVENTS: WatchMask = WatchMask::CLOSE_WRITE
    .union(WatchMask::MOVE)
    .union(WatchMask::CREATE)
    .union(WatchMask::DELETE)
    .union(WatchMask::ATTRIB)
    .union(WatchMask::DELETE_SELF)
    .union(WatchMask::MOVE_SELF)
    .union(WatchMask::ONLYDIR);

/// Keeps the node installed until told to stop.
pub async fn keep<D: Disk + 'static>(settings: Settings, disk: D, interval: Duration, context: Context) {
    let mut keeper = Keeper::new(&context);
    let mut folders = Folders::new();
    let mut installer = Installer::new(settings, disk);
    let mut mode = Mode::Act;
    loop {
        let started = Instant::now();
        // File systems can hang; that must not take a worker from the other parts.
        let passed = tokio::task::spawn_blocking(move || {
            let report = installer.pass(mode);
            (installer, report)
        });
        let report = match passed.await {
            Ok((back, report)) => {
                installer = back;
                report
            }
            Err(reason) => return error!(%reason, "a pass has ended in a defect"),
        };
        let wait = keeper.take(&report, mode, started.elapsed());
        // Watched before the wait: what changes from here on is an event.
        let watched_anew = folders.watch(&report.watch);
        if watched_anew && mode == Mode::Act && report.outcome != Outcome::Waiting {
            // Between the pass and the watch something may have changed.
            mode = keeper.mode();
            continue;
        }
        let spacing = if keeper.damper.is_war() { SPACING_AT_WAR } else { SPACING };
        let patience = wait.unwrap_or(match report.outcome {
            Outcome::InPlace { .. } => interval,
            _ => WAITING_INTERVAL.min(interval),
        });
        tokio::select! {
            () = context.stop.requested() => return,
            () = async {
                sleep(spacing).await;
                tokio::select! {
                    () = folders.changed() => {}
                    () = sleep(patience.saturating_sub(spacing)) => {}
                }
            } => {}
        }
        mode = keeper.mode();
    }
}

/// Folders that are watched.
struct Folders {
    watch: Option<(Watches, EventStream<[u8; 4096]>)>,
    watched: BTreeSet<PathBuf>,
}

impl Folders {
    /// Without inotify (no instance left) the timer has to do.
    fn new() -> Self {
        let watch = Inotify::init().and_then(|inotify| {
            let watches = inotify.watches();
            Ok((watches, inotify.into_event_stream([0; 4096])?))
        });
        if let Err(error) = &watch {
            warn!(%error, "folders cannot be watched; they are looked at on the timer only");
        }
        Self { watch: watch.ok(), watched: BTreeSet::new() }
    }

    /// Watches these folders. A folder that was replaced by another of the same name is watched anew. Returns whether one was added.
    fn watch(&mut self, wanted: &[PathBuf]) -> bool {
        let Some((watches, _)) = &mut self.watch else { return false };
        let now: BTreeSet<PathBuf> = wanted
            .iter()
            // The same folder again changes nothing in the kernel.
            .filter(|folder| watches.add(folder, EVENTS).is_ok())
            .cloned()
            .collect();
        let added = now.difference(&self.watched).next().is_some();
        self.watched = now;
        added
    }

    /// Until something changes that is not our own temporary file.
    async fn changed(&mut self) {
        let Some((_, events)) = &mut self.watch else { return std::future::pending().await };
        loop {
            match events.next().await {
                Some(Ok(event)) => {
                    let ours = event.name.as_ref().is_some_and(|name| name.to_string_lossy().starts_with(TEMPORARY));
                    if !ours {
                        return debug!(mask = ?event.mask, name = ?event.name, "a folder changed");
                    }
                }
                Some(Err(error)) => {
                    warn!(%error, "folders cannot be watched any more; they are looked at on the timer only");
                    self.watch = None;
                    return;
                }
                None => {
                    self.watch = None;
                    return;
                }
            }
        }
    }
}

/// What is known between passes, and whom to tell.
struct Keeper {
    damper: Damper,
    metrics: Metrics,
    notices: Notices,
    install: Condition,
    preflight: Condition,
    contention: Condition,
    /// The last outcome and findings that were told.
    told: Option<(Outcome, Vec<Finding>)>,
    /// Whether everything was in place once: from then on a change is somebody else's.
    settled: bool,
}

impl Keeper {
    fn new(context: &Context) -> Self {
        let contention = context.health.register("contention", Weight::Advisory, "nothing seen yet");
        contention.good("nobody fights over the configuration");
        Self {
            damper: Damper::default(),
            metrics: Metrics::register(&context.metrics),
            notices: context.notices.clone(),
            install: context.health.register("install", Weight::Blocking, "not looked at yet"),
            preflight: context.health.register("preflight", Weight::Advisory, "not looked at yet"),
            contention,
            told: None,
            settled: false,
        }
    }

    /// Whether the next pass may change something.
    fn mode(&mut self) -> Mode {
        let now = Instant::now();
        if self.damper.settle(now) {
            self.metrics.contended(false);
            self.contention.good("nobody fights over the configuration any longer");
            self.notices.tell(Reason::ContentionEnded, "nobody has changed the CNI configuration for a while");
        }
        if self.damper.wait(now).is_zero() { Mode::Act } else { Mode::Look }
    }

    /// Takes a report in, tells it, and says how long the next repair has to wait where one is due.
    fn take(&mut self, report: &Report, mode: Mode, took: Duration) -> Option<Duration> {
        self.metrics.checked(&report.findings);
        self.tell_findings(&report.findings);
        if self.settled && (!report.changes.is_empty() || report.copied) {
            self.repaired(report, took);
        }
        self.tell_outcome(report, mode);
        let wait = self.damper.wait(Instant::now());
        matches!(report.outcome, Outcome::Pending(_)).then_some(wait)
    }

    /// Somebody had changed what was in place.
    fn repaired(&mut self, report: &Report, took: Duration) {
        self.metrics.repaired(report, took);
        let what = describe(report);
        let war = self.damper.repaired(Instant::now());
        if war {
            self.metrics.war();
            self.metrics.contended(true);
            let text =
                format!("another component keeps changing the CNI configuration: {what}{}", hint(&report.findings));
            self.contention.bad(text.clone());
            self.notices.tell(Reason::ConfigurationContended, text);
        } else if !self.damper.is_war() {
            self.notices.tell(Reason::ConfigurationRestored, format!("changed by somebody else and put back: {what}"));
        }
        warn!(%what, war = self.damper.is_war(), "put back");
    }

    fn tell_findings(&mut self, findings: &[Finding]) {
        let serious: Vec<String> =
            findings.iter().filter(|finding| finding.is_serious()).map(ToString::to_string).collect();
        if serious.is_empty() {
            self.preflight.good("nothing stands in the way");
        } else {
            self.preflight.bad(serious.join("; "));
        }
        let known = self.told.as_ref().map_or(&[][..], |(_, findings)| findings.as_slice());
        for finding in findings.iter().filter(|finding| !known.contains(finding)) {
            warn!(finding = finding.name(), "{finding}");
            if finding.is_serious() {
                self.notices.tell(Reason::Preflight, finding.to_string());
            }
        }
    }

    fn tell_outcome(&mut self, report: &Report, mode: Mode) {
        let is_new = self.told.as_ref().is_none_or(|(outcome, _)| *outcome != report.outcome);
        let (in_place, text) = match &report.outcome {
            Outcome::InPlace { file } => (true, format!("plugin and entry are in place: {file}")),
            // A younger agent's node is as it wants it; this one has nothing to add.
            Outcome::Yielded(why) => (true, why.to_string()),
            Outcome::Pending(changes) => {
                let names: Vec<&str> = changes.iter().map(|change| change.name()).collect();
                let wait = self.damper.wait(Instant::now());
                (
                    false,
                    format!("changed by somebody else ({}), put back in {} s", names.join(", "), wait.as_secs() + 1),
                )
            }
            Outcome::Waiting => {
                let why: Vec<String> =
                    report.findings.iter().filter(|finding| finding.is_serious()).map(ToString::to_string).collect();
                (false, format!("nothing to install into yet: {}", why.join("; ")))
            }
            Outcome::BinaryFailed(why) | Outcome::ConfigurationFailed(why) => (false, why.clone()),
        };
        if in_place {
            self.install.good(text.clone());
        } else {
            self.install.bad(text.clone());
        }
        self.metrics.outcome(&report.outcome, is_new || !report.changes.is_empty() || report.copied);
        if is_new && mode == Mode::Act {
            match &report.outcome {
                Outcome::InPlace { .. } => {
                    info!(folders = report.source, "{text}");
                    // In a war each truce would be one.
                    if !self.damper.is_war() {
                        self.notices.tell(Reason::Installed, text);
                    }
                }
                Outcome::BinaryFailed(_) | Outcome::ConfigurationFailed(_) => {
                    error!("{text}");
                    self.notices.tell(Reason::InstallFailed, text);
                }
                _ => info!("{text}"),
            }
        }
        self.settled = self.settled || matches!(report.outcome, Outcome::InPlace { .. });
        self.told = Some((report.outcome.clone(), report.findings.clone()));
    }
}

fn describe(report: &Report) -> String {
    let files = report.changes.iter().map(|(file, change)| format!("{file} ({})", change.name()));
    let plugin = report.copied.then(|| "the plugin's binary".to_owned());
    files.chain(plugin).collect::<Vec<_>>().join(", ")
}

/// Who it may be.
fn hint(findings: &[Finding]) -> String {
    match findings.iter().find(|finding| matches!(finding, Finding::CiliumExclusive { .. } | Finding::OtherMesh { .. }))
    {
        Some(finding) => format!("; {finding}"),
        None => String::new(),
    }
}
