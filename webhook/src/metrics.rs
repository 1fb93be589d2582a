//! Prometheus metrics. Names are Istio's where Istio has one; no label ever holds anything that the author of a pod wrote.

mod labels;

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::{EncodeLabelSet, text::encode};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use weir_injector::SkipReason;
use weir_injector::assertions::{Action, CaptureAssertion};
use weir_runtime::listen::ConnectionMetrics;
use weir_runtime::metrics::ProcessCollector;

pub use self::labels::{ReloadSource, ReviewFailure};

/// Seconds. A typical pod takes about 100 us; the API server gives up after at most 30 s.
const BUCKETS: [f64; 14] =
    [0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0];

/// Bytes. A sidecar is a patch of about 6 KiB; the API server accepts objects of at most 3 MiB.
const PATCH_BUCKETS: [f64; 8] = [1024.0, 4096.0, 8192.0, 16_384.0, 65_536.0, 262_144.0, 1_048_576.0, 4_194_304.0];

/// Built-in templates.
const TEMPLATES: [&str; 4] = ["sidecar", "gateway", "grpc-agent", "grpc-simple"];
/// Label value of all other templates.
const CUSTOM: &str = "custom";

/// Every reason, so that each series exists from the start.
const SKIP_REASONS: [SkipReason; 9] = [
    SkipReason::HostNetwork,
    SkipReason::SystemNamespace,
    SkipReason::StaticPod,
    SkipReason::Windows,
    SkipReason::OptedOut,
    SkipReason::NeverSelector,
    SkipReason::PolicyDisabled,
    SkipReason::UnknownPolicy,
    SkipReason::UnrecordedSidecar,
];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Template {
    template: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reload {
    source: &'static str,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Assertion {
    assertion: String,
    action: &'static str,
}

impl Assertion {
    fn new(name: &str, action: Action) -> Self {
        Self { assertion: name.to_owned(), action: action.name() }
    }
}

/// The metrics of the webhook.
#[derive(Debug)]
pub struct Metrics {
    registry: Mutex<Registry>,
    requests: Counter,
    success: Counter,
    skipped: Family<Reason, Counter>,
    failed: Family<Reason, Counter>,
    seconds: Histogram,
    injected: Counter,
    not_pods: Counter,
    reloads: Family<Reload, Counter>,
    certificate_expiry: Gauge,
    connections: ConnectionMetrics,
    in_flight: Gauge,
    waited: Histogram,
    patch_bytes: Histogram,
    templates: Family<Template, Counter>,
    breaches: Family<Assertion, Counter>,
    dry_runs: Counter,
    suppressed_log_lines: Counter,
    settings_timestamp: Gauge,
    settings_age: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Registers all metrics; every series of a bounded label starts at 0.
    pub fn new() -> Self {
        let mut metrics = Self {
            registry: Mutex::default(),
            requests: Counter::default(),
            success: Counter::default(),
            skipped: Family::default(),
            failed: Family::default(),
            seconds: Histogram::new(BUCKETS),
            injected: Counter::default(),
            not_pods: Counter::default(),
            reloads: Family::default(),
            certificate_expiry: Gauge::default(),
            connections: ConnectionMetrics::default(),
            in_flight: Gauge::default(),
            waited: Histogram::new(BUCKETS),
            patch_bytes: Histogram::new(PATCH_BUCKETS),
            templates: Family::default(),
            breaches: Family::default(),
            dry_runs: Counter::default(),
            suppressed_log_lines: Counter::default(),
            settings_timestamp: Gauge::default(),
            settings_age: Gauge::default(),
        };
        for reason in SKIP_REASONS {
            drop(metrics.skipped.get_or_create(&Reason { reason: reason.name() }));
        }
        for failure in ReviewFailure::ALL {
            drop(metrics.failed.get_or_create(&Reason { reason: failure.name() }));
        }
        for template in TEMPLATES.into_iter().chain([CUSTOM]) {
            drop(metrics.templates.get_or_create(&Template { template }));
        }
        for source in ReloadSource::ALL {
            for result in ["replaced", "refused"] {
                drop(metrics.reloads.get_or_create(&Reload { source: source.name(), result }));
            }
        }
        metrics.register();
        metrics
    }

    fn register(&mut self) {
        let registry = self.registry.get_mut().unwrap_or_else(PoisonError::into_inner);
        registry.register_collector(Box::new(ProcessCollector));
        // The library appends `_total` to counters and `_info` to infos.
        registry.register("sidecar_injection_requests", "Requests to the injection endpoint", self.requests.clone());
        registry.register(
            "sidecar_injection_success",
            "Requests that were allowed, with or without a patch",
            self.success.clone(),
        );
        registry.register("sidecar_injection_skip", "Pods skipped, by reason", self.skipped.clone());
        registry.register("sidecar_injection_failure", "Requests not allowed, by reason", self.failed.clone());
        registry.register(
            "sidecar_injection_time_seconds",
            "Time from the complete body to the complete response",
            self.seconds.clone(),
        );
        registry.register("weir_webhook_injected", "Pods that were patched", self.injected.clone());
        registry.register(
            "weir_webhook_not_pods",
            "Reviews that are not pod creations, allowed unchanged",
            self.not_pods.clone(),
        );
        registry.register(
            "weir_webhook_reloads",
            "Reloads of files and cluster configuration, by source and result",
            self.reloads.clone(),
        );
        registry.register(
            "weir_webhook_certificate_expiry_timestamp_seconds",
            "Expiry of the serving certificate, in seconds since 1970",
            self.certificate_expiry.clone(),
        );
        registry.register(
            "weir_webhook_tls_handshake_failures",
            "TLS handshakes that failed",
            self.connections.handshake_failures.clone(),
        );
        registry.register("weir_webhook_connections", "Open connections of both ports", self.connections.open.clone());
        registry.register("weir_webhook_in_flight", "Requests in flight", self.in_flight.clone());
        registry.register(
            "weir_webhook_wait_seconds",
            "Time from the arrival of a request to the start of its decision, spent in the queue and receiving the body",
            self.waited.clone(),
        );
        registry.register(
            "weir_webhook_patch_bytes",
            "Size of patches in bytes, before base64",
            self.patch_bytes.clone(),
        );
        registry.register(
            "weir_webhook_templates",
            "Injected pods, by template; templates that are not built in are `custom`",
            self.templates.clone(),
        );
        registry.register(
            "weir_webhook_assertion_breaches",
            "Pods that break a capture assertion, by its name and action",
            self.breaches.clone(),
        );
        registry.register("weir_webhook_dry_runs", "Reviews of dry-run requests", self.dry_runs.clone());
        registry.register(
            "weir_webhook_log_lines_suppressed",
            "Review log lines suppressed by --log-max-per-second",
            self.suppressed_log_lines.clone(),
        );
        registry.register(
            "weir_webhook_settings_timestamp_seconds",
            "When the settings in use were loaded, in seconds since 1970; 0 for none",
            self.settings_timestamp.clone(),
        );
        registry.register(
            "weir_webhook_config_age_seconds",
            "Age of the settings in use, in seconds; 0 for none",
            self.settings_age.clone(),
        );
        registry.register(
            "weir_webhook_build",
            "Build information",
            Info::new([("version", env!("CARGO_PKG_VERSION"))]),
        );
    }

    /// Registers more metrics, under names that begin with `weir_webhook_`.
    pub fn with_registry<R>(&self, add: impl FnOnce(&mut Registry) -> R) -> R {
        add(&mut self.registry.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns what the ports count connections with.
    pub fn connections(&self) -> &ConnectionMetrics {
        &self.connections
    }

    /// Records a request to the injection endpoint.
    pub fn record_request(&self) {
        self.requests.inc();
    }

    /// Counts a request for as long as the guard exists.
    pub fn track_in_flight(&self) -> GaugeGuard {
        GaugeGuard::new(&self.in_flight)
    }

    /// Records an injected pod: its templates, comma separated, and the size of its patch.
    pub fn record_injected(&self, templates: &str, patch_bytes: usize) {
        self.success.inc();
        self.injected.inc();
        for name in templates.split(',') {
            // Names of other templates are chosen by users.
            let template = TEMPLATES.into_iter().find(|known| *known == name).unwrap_or(CUSTOM);
            self.templates.get_or_create(&Template { template }).inc();
        }
        #[expect(clippy::cast_precision_loss, reason = "megabytes at most")]
        self.patch_bytes.observe(patch_bytes as f64);
    }

    /// Records a skipped pod.
    pub fn record_skipped(&self, reason: SkipReason) {
        self.success.inc();
        self.skipped.get_or_create(&Reason { reason: reason.name() }).inc();
    }

    /// Records a review that is not the creation of a pod.
    pub fn record_not_a_pod(&self) {
        self.success.inc();
        self.not_pods.inc();
    }

    /// Records a review that was not allowed.
    pub fn record_failed(&self, failure: ReviewFailure) {
        self.failed.get_or_create(&Reason { reason: failure.name() }).inc();
    }

    /// Lets the counters of capture assertions start at 0. The administrator names those, 200 at most.
    pub fn declare_assertions(&self, assertions: &[CaptureAssertion]) {
        for assertion in assertions {
            drop(self.breaches.get_or_create(&Assertion::new(&assertion.name, assertion.action)));
        }
    }

    /// Records a pod that breaks a capture assertion.
    pub fn record_breach(&self, assertion: &str, action: Action) {
        self.breaches.get_or_create(&Assertion::new(assertion, action)).inc();
    }

    /// Records a review of a dry-run request.
    pub fn record_dry_run(&self) {
        self.dry_runs.inc();
    }

    /// Records a review without a line in the log.
    pub fn record_log_suppressed(&self) {
        self.suppressed_log_lines.inc();
    }

    /// Observes the time between the arrival of a request and its decision.
    pub fn observe_wait(&self, time: Duration) {
        self.waited.observe(time.as_secs_f64());
    }

    /// Observes the duration of a decision.
    pub fn observe_duration(&self, time: Duration) {
        self.seconds.observe(time.as_secs_f64());
    }

    /// Sets when the settings in use were loaded.
    pub fn set_settings_timestamp(&self, at: SystemTime) {
        self.settings_timestamp.set(seconds(at));
    }

    /// Records a reload, and whether it was accepted.
    pub fn record_reload(&self, source: ReloadSource, accepted: bool) {
        let result = if accepted { "replaced" } else { "refused" };
        self.reloads.get_or_create(&Reload { source: source.name(), result }).inc();
    }

    /// Sets the expiry of the serving certificate.
    pub fn set_certificate_expiry(&self, at: SystemTime) {
        self.certificate_expiry.set(seconds(at));
    }

    /// Renders all metrics as `OpenMetrics`.
    pub fn render(&self) -> String {
        let mut text = String::with_capacity(4096);
        let since = self.settings_timestamp.get();
        self.settings_age.set(if since == 0 { 0 } else { seconds(SystemTime::now()).saturating_sub(since) });
        // Writing to a string does not fail.
        let _ = encode(&mut text, &self.registry.lock().unwrap_or_else(PoisonError::into_inner));
        text
    }
}

/// Seconds since 1970.
fn seconds(at: SystemTime) -> i64 {
    i64::try_from(at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()).unwrap_or(i64::MAX)
}

/// Counts something for as long as it exists.
#[derive(Debug)]
pub struct GaugeGuard(Gauge);

impl GaugeGuard {
    fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_series_exists_before_the_first_request() {
        let text = Metrics::new().render();
        for line in [
            "sidecar_injection_requests_total 0",
            "sidecar_injection_success_total 0",
            "sidecar_injection_skip_total{reason=\"host_network\"} 0",
            "sidecar_injection_failure_total{reason=\"denied\"} 0",
            "sidecar_injection_time_seconds_count 0",
            "weir_webhook_reloads_total{source=\"certificate\",result=\"refused\"} 0",
            "weir_webhook_certificate_expiry_timestamp_seconds 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line:?} is missing in\n{text}");
        }
        assert!(text.contains("weir_webhook_build_info{version=\""), "{text}");
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn every_skip_reason_is_listed() {
        // A new reason does not compile here until it is in the list.
        let index = |reason| match reason {
            SkipReason::HostNetwork => 0,
            SkipReason::SystemNamespace => 1,
            SkipReason::StaticPod => 2,
            SkipReason::Windows => 3,
            SkipReason::OptedOut => 4,
            SkipReason::NeverSelector => 5,
            SkipReason::PolicyDisabled => 6,
            SkipReason::UnknownPolicy => 7,
            SkipReason::UnrecordedSidecar => 8,
        };
        assert_eq!(SKIP_REASONS.map(index), [0, 1, 2, 3, 4, 5, 6, 7, 8]);
    }
}
