//! Metrics of installing. The first three are Istio's.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use crate::install::finding::Finding;
use crate::install::pass::{Outcome, Report};

/// Seconds.
const BUCKETS: [f64; 8] = [0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1.0, 5.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Result {
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Change {
    change: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Named {
    finding: &'static str,
}

/// All of them.
#[derive(Debug)]
pub(super) struct Metrics {
    ready: Gauge,
    installs: Family<Result, Counter>,
    installed: Gauge,
    checks: Counter,
    drift: Family<Change, Counter>,
    wars: Counter,
    contended: Gauge,
    restore_seconds: Histogram,
    findings: Family<Named, Gauge>,
}

impl Metrics {
    pub(super) fn register(registry: &crate::metrics::Metrics) -> Self {
        let metrics = Self {
            ready: Gauge::default(),
            installs: Family::default(),
            installed: Gauge::default(),
            checks: Counter::default(),
            drift: Family::default(),
            wars: Counter::default(),
            contended: Gauge::default(),
            restore_seconds: Histogram::new(BUCKETS),
            findings: Family::default(),
        };
        for result in ["SUCCESS", "COPY_BINARIES_FAILURE", "CREATE_CNI_CONFIG_FAILURE"] {
            drop(metrics.installs.get_or_create(&Result { result }));
        }
        let Self { ready, installs, installed, checks, drift, wars, contended, restore_seconds, findings } = &metrics;
        registry.register(|registry| {
            registry.register("istio_cni_install_ready", "Whether the node can start pods of the mesh", ready.clone());
            registry.register("istio_cni_installs", "Installations, by how they ended", installs.clone());
            registry.register("weir_agent_installed", "Whether plugin and entry are in place", installed.clone());
            registry.register("weir_agent_config_checks", "Looks at the CNI configuration", checks.clone());
            registry.register(
                "weir_agent_config_drift",
                "Changes by somebody else that were put back, by what was wrong",
                drift.clone(),
            );
            registry.register("weir_agent_config_wars", "Times that somebody kept changing it", wars.clone());
            registry.register("weir_agent_config_contended", "Whether somebody keeps changing it", contended.clone());
            registry.register(
                "weir_agent_config_restore_seconds",
                "Time of a pass that put something back",
                restore_seconds.clone(),
            );
            registry.register("weir_agent_findings", "What stands in the way on this node, by name", findings.clone());
        });
        metrics
    }

    pub(super) fn checked(&self, findings: &[Finding]) {
        self.checks.inc();
        self.findings.clear();
        for finding in findings {
            self.findings.get_or_create(&Named { finding: finding.name() }).inc();
        }
    }

    pub(super) fn repaired(&self, report: &Report, took: Duration) {
        for (_, change) in &report.changes {
            self.drift.get_or_create(&Change { change: change.name() }).inc();
        }
        if report.copied {
            self.drift.get_or_create(&Change { change: "binary" }).inc();
        }
        self.restore_seconds.observe(took.as_secs_f64());
    }

    pub(super) fn war(&self) {
        self.wars.inc();
    }

    pub(super) fn contended(&self, contended: bool) {
        self.contended.set(contended.into());
    }

    /// `counts`: something was done, or ended differently from before.
    pub(super) fn outcome(&self, outcome: &Outcome, counts: bool) {
        let in_place = matches!(outcome, Outcome::InPlace { .. });
        self.installed.set(in_place.into());
        self.ready.set((in_place || matches!(outcome, Outcome::Yielded(_))).into());
        let result = match outcome {
            Outcome::InPlace { .. } => "SUCCESS",
            Outcome::BinaryFailed(_) => "COPY_BINARIES_FAILURE",
            Outcome::ConfigurationFailed(_) => "CREATE_CNI_CONFIG_FAILURE",
            Outcome::Pending(_) | Outcome::Waiting | Outcome::Yielded(_) => return,
        };
        if counts {
            self.installs.get_or_create(&Result { result }).inc();
        }
    }
}
