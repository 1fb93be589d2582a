//! Metrics of the installation. The first two have Istio's names.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use crate::install::finding::Finding;
use crate::install::installer::{InstallOutcome, InstallReport};
use crate::install::plan::ChangeReason;
use crate::metrics::MetricsRegistry;

/// Upper bounds in seconds.
const BUCKETS: [f64; 8] = [0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1.0, 5.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ChangeLabels {
    change: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FindingLabels {
    finding: &'static str,
}

#[derive(Debug)]
pub(super) struct InstallMetrics {
    ready: Gauge,
    installs: Family<ResultLabels, Counter>,
    installed: Gauge,
    checks: Counter,
    drift: Family<ChangeLabels, Counter>,
    contentions: Counter,
    contended: Gauge,
    restore_seconds: Histogram,
    findings: Family<FindingLabels, Gauge>,
}

impl InstallMetrics {
    pub(super) fn register(registry: &MetricsRegistry) -> Self {
        let this = Self {
            ready: Gauge::default(),
            installs: Family::default(),
            installed: Gauge::default(),
            checks: Counter::default(),
            drift: Family::default(),
            contentions: Counter::default(),
            contended: Gauge::default(),
            restore_seconds: Histogram::new(BUCKETS),
            findings: Family::default(),
        };
        for result in ["SUCCESS", "COPY_BINARIES_FAILURE", "CREATE_CNI_CONFIG_FAILURE"] {
            drop(this.installs.get_or_create(&ResultLabels { result }));
        }
        for change in ChangeReason::ALL.map(ChangeReason::name).into_iter().chain(["binary"]) {
            drop(this.drift.get_or_create(&ChangeLabels { change }));
        }
        registry.register(|registry| {
            let help = "Whether the node can start meshed pods";
            registry.register("istio_cni_install_ready", help, this.ready.clone());
            registry.register("istio_cni_installs", "Installations, by result", this.installs.clone());
            let help = "Whether the plugin and its conflist entry are installed";
            registry.register("weir_agent_installed", help, this.installed.clone());
            registry.register("weir_agent_config_checks", "Checks of the CNI configuration", this.checks.clone());
            let help = "Foreign changes of the CNI configuration that were reverted, by kind of drift";
            registry.register("weir_agent_config_drift", help, this.drift.clone());
            let help = "Times that another component kept changing the CNI configuration";
            registry.register("weir_agent_config_contentions", help, this.contentions.clone());
            let help = "Whether another component keeps changing the CNI configuration";
            registry.register("weir_agent_config_contended", help, this.contended.clone());
            let help = "Duration of a reconcile that restored the CNI configuration, in seconds";
            registry.register("weir_agent_config_restore_seconds", help, this.restore_seconds.clone());
            registry.register("weir_agent_findings", "Findings on this node, by name", this.findings.clone());
        });
        this
    }

    pub(super) fn record_check(&self, findings: &[Finding]) {
        self.checks.inc();
        self.findings.clear();
        for finding in findings {
            self.findings.get_or_create(&FindingLabels { finding: finding.name() }).inc();
        }
    }

    pub(super) fn record_restore(&self, report: &InstallReport, duration: Duration) {
        for (_, reason) in &report.changes {
            self.drift.get_or_create(&ChangeLabels { change: reason.name() }).inc();
        }
        if report.binary_copied {
            self.drift.get_or_create(&ChangeLabels { change: "binary" }).inc();
        }
        self.restore_seconds.observe(duration.as_secs_f64());
    }

    pub(super) fn record_contention(&self) {
        self.contentions.inc();
    }

    pub(super) fn set_contended(&self, contended: bool) {
        self.contended.set(contended.into());
    }

    /// `count`: whether files were changed, or the outcome is another than before.
    pub(super) fn record_outcome(&self, outcome: &InstallOutcome, count: bool) {
        let installed = matches!(outcome, InstallOutcome::Installed { .. });
        self.installed.set(installed.into());
        self.ready.set((installed || matches!(outcome, InstallOutcome::Superseded(_))).into());
        let result = match outcome {
            InstallOutcome::Installed { .. } => "SUCCESS",
            InstallOutcome::BinaryFailed(_) => "COPY_BINARIES_FAILURE",
            InstallOutcome::ConfigurationFailed(_) => "CREATE_CNI_CONFIG_FAILURE",
            InstallOutcome::RestorePending(_) | InstallOutcome::NoNetwork | InstallOutcome::Superseded(_) => return,
        };
        if count {
            self.installs.get_or_create(&ResultLabels { result }).inc();
        }
    }
}
