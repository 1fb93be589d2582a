//! Metrics about the CA.

use std::time::UNIX_EPOCH;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::state::CaState;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PhaseLabel {
    phase: &'static str,
}

#[derive(Debug, Default)]
pub(super) struct CaMetrics {
    expiry: Gauge,
    phase: Family<PhaseLabel, Gauge>,
    leader: Gauge,
}

impl CaMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let help = "Expiry of the CA that signs, in seconds since 1970";
        registry.register("weir_webhook_ca_expiry_timestamp_seconds", help, metrics.expiry.clone());
        let help = "1 for the current phase of CA rotation";
        registry.register("weir_webhook_ca_rotation_phase", help, metrics.phase.clone());
        let help = "Whether this replica is the leader, which writes the CA";
        registry.register("weir_webhook_lease_holder", help, metrics.leader.clone());
        metrics.set_phase("");
        metrics
    }

    pub(super) fn set_leader(&self, is_leader: bool) {
        self.leader.set(i64::from(is_leader));
    }

    pub(super) fn set_state(&self, state: &CaState) {
        self.set_phase(state.phase.name());
        let end = state.current.cert().validity().not_after.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.expiry.set(i64::try_from(end.as_secs()).unwrap_or(i64::MAX));
    }

    fn set_phase(&self, name: &str) {
        for phase in ["stable", "publishing", "retiring"] {
            self.phase.get_or_create(&PhaseLabel { phase }).set(i64::from(phase == name));
        }
    }
}
