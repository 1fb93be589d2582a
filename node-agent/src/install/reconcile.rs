//! Task that keeps the plugin installed: it reconciles at the start, whenever a directory changes, and at an interval.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::time::sleep;
use tracing::{error, info, warn};
use weir_runtime::contention::ContentionBackoff;

use super::file_system::FileSystem;
use super::finding::Finding;
use super::installer::{InstallOutcome, InstallReport, Installer, Mode};
use super::registration::Superseded;
use super::settings::InstallSettings;
use crate::health::{Condition, ReadinessImpact};
use crate::node_event::{NodeEventReason, NodeEvents};
use crate::task_context::TaskContext;

mod dir_watcher;
mod metrics;

use dir_watcher::DirWatcher;
use metrics::InstallMetrics;

/// Pause between two reconciles: one change of a file is several inotify events.
const DEBOUNCE: Duration = Duration::from_millis(20);
/// Pause between two reconciles while another component keeps changing the configuration.
const CONTENDED_INTERVAL: Duration = Duration::from_secs(1);
/// Interval while nothing is installed, or another agent owns the node: no watched directory tells when that changes.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);
/// Longest pause after a reconcile that panicked; the first is a second, and each doubles.
const MAX_PANIC_DELAY: Duration = Duration::from_secs(30);

/// Keeps the plugin installed until shutdown.
pub async fn run<F: FileSystem + 'static>(
    settings: InstallSettings,
    file_system: F,
    interval: Duration,
    context: TaskContext,
) {
    let work = async {
        let mut reconciler = InstallReconciler::new(&context);
        let mut watcher = DirWatcher::new();
        let installer = Arc::new(Mutex::new(Installer::new(settings, file_system)));
        let mut mode = Mode::Apply;
        let mut panics = 0;
        loop {
            let started = Instant::now();
            let installer = Arc::clone(&installer);
            // File systems can hang; that must not block a worker thread. After a panic the installer starts over from the files.
            let result = tokio::task::spawn_blocking(move || {
                installer.lock().unwrap_or_else(PoisonError::into_inner).reconcile(mode)
            });
            let Ok(report) = result.await else {
                let delay = panic_delay(panics);
                panics += 1;
                reconciler.record_panic(delay);
                sleep(delay).await;
                continue;
            };
            panics = 0;
            let restore_delay = reconciler.record(&report, mode, started.elapsed());
            let dirs_added = watcher.set_dirs(&report.watched_dirs);
            if dirs_added && mode == Mode::Apply && report.outcome != InstallOutcome::NoNetwork {
                // Something may have changed after the reconcile and before the watch.
                mode = reconciler.next_mode();
                continue;
            }
            let pause = if reconciler.backoff.is_contended() { CONTENDED_INTERVAL } else { DEBOUNCE };
            let next = restore_delay.unwrap_or(match report.outcome {
                InstallOutcome::Installed { .. } => interval,
                _ => RETRY_INTERVAL.min(interval),
            });
            sleep(pause).await;
            tokio::select! {
                () = watcher.changed() => {}
                () = sleep(next.saturating_sub(pause)) => {}
            }
            mode = reconciler.next_mode();
        }
    };
    tokio::select! {
        () = work => {}
        () = context.shutdown.cancelled() => {}
    }
}

fn panic_delay(panics: u32) -> Duration {
    Duration::from_secs(1).saturating_mul(1_u32.checked_shl(panics).unwrap_or(u32::MAX)).min(MAX_PANIC_DELAY)
}

/// State between reconciles, and the conditions, metrics and events that report it.
struct InstallReconciler {
    backoff: ContentionBackoff,
    metrics: InstallMetrics,
    node_events: NodeEvents,
    install: Condition,
    preflight: Condition,
    contention: Condition,
    last_reported: Option<(InstallOutcome, Vec<Finding>)>,
    /// Whether everything was installed once: any change since then was made by another component.
    was_installed: bool,
}

impl InstallReconciler {
    fn new(context: &TaskContext) -> Self {
        let register = |name, impact| context.health.register(name, impact, "NotChecked", "not checked yet");
        let this = Self {
            backoff: ContentionBackoff::default(),
            metrics: InstallMetrics::register(&context.metrics),
            node_events: context.node_events.clone(),
            contention: register("contention", ReadinessImpact::Advisory),
            install: register("install", ReadinessImpact::Blocking),
            preflight: register("preflight", ReadinessImpact::Advisory),
            last_reported: None,
            was_installed: false,
        };
        this.contention.set_ok("NoContention", "no contention");
        this
    }

    /// Returns whether the next reconcile may change files.
    fn next_mode(&mut self) -> Mode {
        let now = Instant::now();
        if self.backoff.expire(now) {
            self.metrics.set_contended(false);
            self.contention.set_ok("NoContention", "contention ended");
            let message = "no other component has changed the CNI configuration for a while";
            self.node_events.record(NodeEventReason::ContentionEnded, message);
        }
        if self.backoff.delay(now).is_zero() { Mode::Apply } else { Mode::DryRun }
    }

    /// Records the result of a reconcile. Returns how long a pending restore has to wait.
    fn record(&mut self, report: &InstallReport, mode: Mode, duration: Duration) -> Option<Duration> {
        self.metrics.record_check(&report.findings);
        self.report_findings(&report.findings);
        if self.was_installed && report.changed_files() {
            self.report_restore(report, duration);
        }
        self.report_outcome(report, mode);
        let delay = self.backoff.delay(Instant::now());
        matches!(report.outcome, InstallOutcome::RestorePending(_)).then_some(delay)
    }

    fn record_panic(&self, delay: Duration) {
        error!(delay_s = delay.as_secs(), "install reconcile panicked; retrying");
        let message = format!(
            "install reconcile panicked, retrying in {} s; please report the panic in the log",
            delay.as_secs()
        );
        self.install.set_failed("ReconcilePanicked", message);
    }

    fn report_restore(&mut self, report: &InstallReport, duration: Duration) {
        self.metrics.record_restore(report, duration);
        let files = describe(report);
        let contention_begins = self.backoff.record_repair(Instant::now());
        if contention_begins {
            self.metrics.record_contention();
            self.metrics.set_contended(true);
            let suspect = suspect(&report.findings);
            let message = format!("another component keeps changing the CNI configuration: {files}{suspect}");
            self.contention.set_failed("Contended", message.clone());
            self.node_events.record(NodeEventReason::ConfigurationContended, message);
        } else if !self.backoff.is_contended() {
            let message = format!("changed by another component and restored: {files}");
            self.node_events.record(NodeEventReason::ConfigurationRestored, message);
        }
        warn!(files, contended = self.backoff.is_contended(), "restored CNI configuration");
    }

    fn report_findings(&mut self, findings: &[Finding]) {
        let errors = errors_of(findings);
        if errors.is_empty() {
            self.preflight.set_ok("NoFindings", "no findings");
        } else {
            self.preflight.set_failed("PreflightFailed", errors);
        }
        let known = self.last_reported.as_ref().map_or(&[][..], |(_, findings)| findings.as_slice());
        for finding in findings.iter().filter(|finding| !known.contains(finding)) {
            warn!(name = finding.name(), detail = %finding, "preflight finding");
            if finding.is_error() {
                self.node_events.record(NodeEventReason::PreflightFailed, finding.to_string());
            }
        }
    }

    fn report_outcome(&mut self, report: &InstallReport, mode: Mode) {
        let is_new = self.last_reported.as_ref().is_none_or(|(outcome, _)| *outcome != report.outcome);
        let message = self.describe_outcome(report);
        match &report.outcome {
            InstallOutcome::Installed { .. } => self.install.set_ok("Installed", message.clone()),
            // The other agent keeps the node installed; this one has nothing to do.
            InstallOutcome::Superseded(Superseded::ByNewerAgent(_)) => {
                self.install.set_ok("SupersededByNewerAgent", message.clone());
            }
            InstallOutcome::Superseded(Superseded::ByUninstall) => self.install.set_ok("Uninstalled", message.clone()),
            InstallOutcome::RestorePending(_) => self.install.set_failed("RestorePending", message.clone()),
            InstallOutcome::NoNetwork => self.install.set_failed("NoNetworkConfiguration", message.clone()),
            InstallOutcome::BinaryFailed(_) => self.install.set_failed("BinaryFailed", message.clone()),
            InstallOutcome::ConfigurationFailed(_) => self.install.set_failed("ConfigurationFailed", message.clone()),
        }
        self.metrics.record_outcome(&report.outcome, is_new || report.changed_files());
        if is_new && mode == Mode::Apply {
            self.log_outcome(report, message);
        }
        self.was_installed |= matches!(report.outcome, InstallOutcome::Installed { .. });
        self.last_reported = Some((report.outcome.clone(), report.findings.clone()));
    }

    fn describe_outcome(&self, report: &InstallReport) -> String {
        match &report.outcome {
            InstallOutcome::Installed { file } => format!("plugin and conflist entry are installed: {file}"),
            InstallOutcome::Superseded(by) => by.to_string(),
            InstallOutcome::RestorePending(reasons) => {
                let names: Vec<&str> = reasons.iter().map(|reason| reason.name()).collect();
                let seconds = self.backoff.delay(Instant::now()).as_secs() + 1;
                format!("changed by another component ({}); restoring in {seconds} s", names.join(", "))
            }
            InstallOutcome::NoNetwork => {
                format!("waiting for a network configuration: {}", errors_of(&report.findings))
            }
            InstallOutcome::BinaryFailed(error) | InstallOutcome::ConfigurationFailed(error) => error.clone(),
        }
    }

    fn log_outcome(&self, report: &InstallReport, message: String) {
        match &report.outcome {
            InstallOutcome::Installed { file } => {
                info!(file, dirs = report.dirs_source, "installed");
                // During contention every restore would be such an event.
                if !self.backoff.is_contended() {
                    self.node_events.record(NodeEventReason::Installed, message);
                }
            }
            InstallOutcome::BinaryFailed(error) | InstallOutcome::ConfigurationFailed(error) => {
                error!(error, "install failed");
                self.node_events.record(NodeEventReason::InstallFailed, message);
            }
            InstallOutcome::NoNetwork => {
                info!(findings = errors_of(&report.findings), "waiting for a network configuration");
            }
            InstallOutcome::Superseded(by) => info!(%by, "superseded"),
            InstallOutcome::RestorePending(_) => info!(detail = message, "restore pending"),
        }
    }
}

fn errors_of(findings: &[Finding]) -> String {
    let errors = findings.iter().filter(|finding| finding.is_error()).map(ToString::to_string);
    errors.collect::<Vec<_>>().join("; ")
}

fn describe(report: &InstallReport) -> String {
    let files = report.changes.iter().map(|(file, reason)| format!("{file} ({})", reason.name()));
    let binary = report.binary_copied.then(|| "the plugin's binary".to_owned());
    files.chain(binary).collect::<Vec<_>>().join(", ")
}

/// Returns a note about the component that probably changes the configuration, where a finding names one.
fn suspect(findings: &[Finding]) -> String {
    let is_suspect =
        |finding: &&Finding| matches!(finding, Finding::CiliumExclusive { .. } | Finding::OtherMesh { .. });
    findings.iter().find(is_suspect).map(|finding| format!("; {finding}")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panic_delays_double_up_to_the_limit() {
        let delays: Vec<u64> = [0, 1, 2, 4, 5, 40].map(panic_delay).iter().map(Duration::as_secs).collect();
        assert_eq!(delays, [1, 2, 4, 16, 30, 30]);
    }
}
