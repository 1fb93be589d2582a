//! Metrics of repairs.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use super::states::{PodStates, RuleState};
use crate::metrics::MetricsRegistry;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RepairLabels {
    r#type: &'static str,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    state: &'static str,
}

/// Counters of repairs and gauges of the pods' states.
#[derive(Debug, Clone)]
pub struct RepairMetrics {
    repaired: Family<RepairLabels, Counter>,
    states: Family<StateLabels, Gauge>,
    drift: Family<StateLabels, Counter>,
    changed: Gauge,
    slow: Counter,
    monitored: Gauge,
    contentions: Counter,
    contended: Gauge,
    windows: Histogram,
}

/// Upper bounds in seconds, from a repair at once to one after the interval.
const WINDOWS: [f64; 11] = [0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0, 30.0];

impl Default for RepairMetrics {
    fn default() -> Self {
        Self {
            repaired: Family::default(),
            states: Family::default(),
            drift: Family::default(),
            changed: Gauge::default(),
            slow: Counter::default(),
            monitored: Gauge::default(),
            contentions: Counter::default(),
            contended: Gauge::default(),
            windows: Histogram::new(WINDOWS),
        }
    }
}

impl RepairMetrics {
    /// Registers the metrics; the first has Istio's name and labels.
    pub fn register(metrics: &MetricsRegistry) -> Self {
        let this = Self::default();
        metrics.register(|registry| {
            let Self { repaired, states, drift, changed, slow, monitored, contentions, contended, windows } =
                this.clone();
            registry.register("istio_cni_repair_pods_repaired", "Repairs, by type and result", repaired);
            let help = "Meshed pods on this node, by state of their capture rules";
            registry.register("weir_agent_meshed_pods", help, states);
            let help = "Meshed pods whose annotations ask for other capture rules than they were started with";
            registry.register("weir_agent_capture_annotations_changed", help, changed);
            let help = "Inspections of pods that took longer than allowed";
            registry.register("weir_agent_inspection_timeouts", help, slow);
            let help = "Pods whose network namespaces notify the agent of changes";
            registry.register("weir_agent_monitored_pods", help, monitored);
            let help = "Times that another writer kept changing the network namespace of a pod";
            registry.register("weir_agent_capture_contentions", help, contentions);
            let help = "Pods whose network namespaces another writer keeps changing";
            registry.register("weir_agent_capture_contended_pods", help, contended);
            let help = "Time from the notification of a change to the restored capture rules";
            registry.register("weir_agent_repair_window_seconds", help, windows);
            registry.register("weir_agent_drift", "Pods found with missing or changed capture rules", drift);
        });
        this
    }

    pub(super) fn record_repair(&self, kind: &'static str, result: &'static str) {
        self.repaired.get_or_create(&RepairLabels { r#type: kind, result }).inc();
    }

    pub(super) fn record_drift(&self, state: RuleState) {
        self.drift.get_or_create(&StateLabels { state: state.name() }).inc();
    }

    pub(super) fn record_timeout(&self) {
        self.slow.inc();
    }

    pub(super) fn set_monitored(&self, count: usize) {
        self.monitored.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    pub(super) fn record_window(&self, window: Duration) {
        self.windows.observe(window.as_secs_f64());
    }

    /// Counts a contention. Returns the gauge, from which whoever reported it takes the pod away again.
    pub(super) fn begin_contention(&self) -> Gauge {
        self.contentions.inc();
        self.contended.inc();
        self.contended.clone()
    }

    pub(super) fn set_pod_states(&self, states: &PodStates) {
        self.changed.set(i64::try_from(states.changed_count()).unwrap_or(i64::MAX));
        for (state, count) in states.counts() {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.states.get_or_create(&StateLabels { state: state.name() }).set(count);
        }
    }
}
