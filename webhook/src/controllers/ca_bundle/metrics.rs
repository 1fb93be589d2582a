//! Metrics about `caBundle`.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use weir_runtime::client::ApiError;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PatchLabels {
    result: &'static str,
}

const RESULTS: [&str; 6] = ["patched", "conflict", "forbidden", "not_found", "invalid", "failed"];

#[derive(Debug, Default)]
pub(super) struct BundleMetrics {
    patches: Family<PatchLabels, Counter>,
    mismatches: Gauge,
}

impl BundleMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        for result in RESULTS {
            drop(metrics.patches.get_or_create(&PatchLabels { result }));
        }
        registry.register(
            "weir_webhook_ca_bundle_patches",
            "Writes of caBundle to a MutatingWebhookConfiguration, by result",
            metrics.patches.clone(),
        );
        registry.register(
            "weir_webhook_ca_bundle_mismatches",
            "Webhook entries whose caBundle does not verify the serving certificate",
            metrics.mismatches.clone(),
        );
        metrics
    }

    pub(super) fn record_patch(&self, error: Option<&ApiError>) {
        let result = match error.map(|error| error.status) {
            None => "patched",
            Some(Some(403)) => "forbidden",
            Some(Some(404)) => "not_found",
            Some(Some(409)) => "conflict",
            Some(Some(422)) => "invalid",
            Some(_) => "failed",
        };
        self.patches.get_or_create(&PatchLabels { result }).inc();
    }

    pub(super) fn set_mismatches(&self, count: usize) {
        self.mismatches.set(i64::try_from(count).unwrap_or(i64::MAX));
    }
}
