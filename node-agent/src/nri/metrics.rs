//! Metrics of the agent as an NRI plugin.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use super::outcome::{Occasion, PodOutcome};
use crate::metrics::MetricsRegistry;

/// Upper bounds in seconds, from a pod outside the mesh to the runtime's limit.
const BUCKETS: [f64; 11] = [0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.05, 0.1, 0.5, 2.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PodLabels {
    occasion: &'static str,
    outcome: &'static str,
}

/// Metrics of the agent as an NRI plugin.
#[derive(Debug, Clone)]
pub struct NriMetrics {
    pods: Family<PodLabels, Counter>,
    duration: Histogram,
    /// 1 while the runtime calls the agent.
    pub(super) connected: Gauge,
    /// Connections that have ended.
    pub(super) disconnects: Counter,
}

impl Default for NriMetrics {
    fn default() -> Self {
        let duration = Histogram::new(BUCKETS);
        Self { pods: Family::default(), duration, connected: Gauge::default(), disconnects: Counter::default() }
    }
}

impl NriMetrics {
    /// Registers the metrics.
    pub fn register(metrics: &MetricsRegistry) -> Self {
        let this = Self::default();
        let Self { pods, duration, connected, disconnects } = this.clone();
        for outcome in [PodOutcome::Installed, PodOutcome::Failed].map(PodOutcome::name) {
            drop(pods.get_or_create(&PodLabels { occasion: Occasion::Run.name(), outcome }));
        }
        metrics.register(|registry| {
            registry.register("weir_agent_nri_pods", "Pods that the runtime reported, by occasion and outcome", pods);
            let help = "Time from the runtime's report of a new pod until its rules are in place";
            registry.register("weir_agent_nri_run_duration_seconds", help, duration);
            registry.register("weir_agent_nri_connected", "1 while the agent is registered at the runtime", connected);
            registry.register("weir_agent_nri_disconnects", "Connections to the runtime that ended", disconnects);
        });
        this
    }

    pub(super) fn record(&self, occasion: Occasion, outcome: PodOutcome, duration: Duration) {
        self.pods.get_or_create(&PodLabels { occasion: occasion.name(), outcome: outcome.name() }).inc();
        if occasion == Occasion::Run {
            self.duration.observe(duration.as_secs_f64());
        }
    }
}
