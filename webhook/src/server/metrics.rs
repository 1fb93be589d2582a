//! Prometheus metrics. Names are Istio's where Istio has one; no label ever holds anything a user wrote.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::{EncodeLabelSet, text::encode};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use weir_injector::inject::SkipReason;

/// `Content-Type` of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Seconds. A typical pod takes some 100 us; the API server gives up after at most 30 s.
const BUCKETS: [f64; 14] =
    [0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0];

/// Bytes. A sidecar is a patch of some 6 KiB; the API server takes 3 MiB for an object.
const PATCH_BUCKETS: [f64; 8] = [1024.0, 4096.0, 8192.0, 16_384.0, 65_536.0, 262_144.0, 1_048_576.0, 4_194_304.0];

/// Templates that are built in.
const TEMPLATES: [&str; 4] = ["sidecar", "gateway", "grpc-agent", "grpc-simple"];
/// Value of the label for all others.
const CUSTOM: &str = "custom";

/// Every reason, so that each series is there from the start.
const SKIP_REASONS: [SkipReason; 9] = [
    SkipReason::HostNetwork,
    SkipReason::SystemNamespace,
    SkipReason::StaticPod,
    SkipReason::Windows,
    SkipReason::ExplicitlyOff,
    SkipReason::NeverSelector,
    SkipReason::PolicyDisabled,
    SkipReason::UnknownPolicy,
    SkipReason::UnrecordedSidecar,
];

/// How a request to `/inject` ended without a sidecar although nobody skipped it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The pod asks for something that cannot be.
    Denied,
    /// No AdmissionReview.
    BadRequest,
    /// Another `Content-Type`.
    MediaType,
    /// Beyond the limit of the body.
    TooLarge,
    /// The client did not send its request in time.
    Timeout,
    /// Its answer would have come too late.
    Overloaded,
    /// There is no configuration yet.
    NotReady,
    /// A defect of ours.
    Internal,
}

impl Failure {
    const ALL: [Self; 8] = [
        Self::Denied,
        Self::BadRequest,
        Self::MediaType,
        Self::TooLarge,
        Self::Timeout,
        Self::Overloaded,
        Self::NotReady,
        Self::Internal,
    ];

    /// Value of the label `reason`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Denied => "denied",
            Self::BadRequest => "bad_request",
            Self::MediaType => "media_type",
            Self::TooLarge => "too_large",
            Self::Timeout => "timeout",
            Self::Overloaded => "overloaded",
            Self::NotReady => "not_ready",
            Self::Internal => "internal",
        }
    }
}

/// What is re-read while the server runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Certificate and key.
    Certificate,
    /// Documents: values, mesh and config.
    Settings,
    /// `ProxyConfig` resources of the cluster.
    ProxyConfigs,
    /// Nodes of the cluster.
    Nodes,
    /// Namespaces of the cluster.
    Namespaces,
}

impl Source {
    const ALL: [Self; 5] = [Self::Certificate, Self::Settings, Self::ProxyConfigs, Self::Nodes, Self::Namespaces];

    /// Value of the label `source`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Certificate => "certificate",
            Self::Settings => "settings",
            Self::ProxyConfigs => "proxyconfigs",
            Self::Nodes => "nodes",
            Self::Namespaces => "namespaces",
        }
    }
}

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

/// All metrics of the server.
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
    handshake_failures: Counter,
    connections: Gauge,
    in_flight: Gauge,
    waited: Histogram,
    patch_bytes: Histogram,
    templates: Family<Template, Counter>,
    dry_runs: Counter,
    lines_left_out: Counter,
    settings_made: Gauge,
    settings_age: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Registers everything; every series of a bounded label starts at 0.
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
            handshake_failures: Counter::default(),
            connections: Gauge::default(),
            in_flight: Gauge::default(),
            waited: Histogram::new(BUCKETS),
            patch_bytes: Histogram::new(PATCH_BUCKETS),
            templates: Family::default(),
            dry_runs: Counter::default(),
            lines_left_out: Counter::default(),
            settings_made: Gauge::default(),
            settings_age: Gauge::default(),
        };
        for reason in SKIP_REASONS {
            drop(metrics.skipped.get_or_create(&Reason { reason: reason.name() }));
        }
        for failure in Failure::ALL {
            drop(metrics.failed.get_or_create(&Reason { reason: failure.name() }));
        }
        for template in TEMPLATES.into_iter().chain([CUSTOM]) {
            drop(metrics.templates.get_or_create(&Template { template }));
        }
        for source in Source::ALL {
            for result in ["replaced", "refused"] {
                drop(metrics.reloads.get_or_create(&Reload { source: source.name(), result }));
            }
        }
        metrics.register();
        metrics
    }

    fn register(&mut self) {
        let registry = self.registry.get_mut().unwrap_or_else(PoisonError::into_inner);
        // The library appends `_total` to counters and `_info` to infos.
        registry.register("sidecar_injection_requests", "Requests to the injection endpoint", self.requests.clone());
        registry.register(
            "sidecar_injection_success",
            "Requests that were allowed, with or without a patch",
            self.success.clone(),
        );
        registry.register("sidecar_injection_skip", "Pods left alone, by reason", self.skipped.clone());
        registry.register("sidecar_injection_failure", "Requests not allowed, by reason", self.failed.clone());
        registry.register(
            "sidecar_injection_time_seconds",
            "Time from the complete body to the complete answer",
            self.seconds.clone(),
        );
        registry.register("weir_webhook_injected", "Pods that got a patch", self.injected.clone());
        registry.register(
            "weir_webhook_not_pods",
            "Reviews of other objects or operations, allowed as they are",
            self.not_pods.clone(),
        );
        registry.register(
            "weir_webhook_reloads",
            "Changed files, by what they hold and whether they were taken",
            self.reloads.clone(),
        );
        registry.register(
            "weir_webhook_certificate_expiry_timestamp_seconds",
            "End of the served certificate, in seconds since 1970",
            self.certificate_expiry.clone(),
        );
        registry.register(
            "weir_webhook_tls_handshake_failures",
            "Connections that never became TLS",
            self.handshake_failures.clone(),
        );
        registry.register("weir_webhook_connections", "Connections open now, both ports", self.connections.clone());
        registry.register(
            "weir_webhook_in_flight",
            "Requests that came and are not answered yet",
            self.in_flight.clone(),
        );
        registry.register(
            "weir_webhook_wait_seconds",
            "Time from the arrival of a request to the start of its decision: for a turn, and for its body",
            self.waited.clone(),
        );
        registry.register("weir_webhook_patch_bytes", "Length of patches, before base64", self.patch_bytes.clone());
        registry.register(
            "weir_webhook_templates",
            "Pods that got a sidecar, by template; those that are not built in are `custom`",
            self.templates.clone(),
        );
        registry.register("weir_webhook_dry_runs", "Reviews of which nothing was to be created", self.dry_runs.clone());
        registry.register(
            "weir_webhook_log_lines_left_out",
            "Reviews without a line in the log, because of its bound",
            self.lines_left_out.clone(),
        );
        registry.register(
            "weir_webhook_settings_timestamp_seconds",
            "When the documents in use were taken, in seconds since 1970; 0 for none",
            self.settings_made.clone(),
        );
        registry.register("weir_webhook_config_age_seconds", "How long ago that was", self.settings_age.clone());
        registry.register("weir_webhook_build", "What runs here", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
    }

    /// Lets a part register what it has, under names that begin with `weir_webhook_`.
    pub fn with_registry<R>(&self, add: impl FnOnce(&mut Registry) -> R) -> R {
        add(&mut self.registry.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A request reached the injection endpoint.
    pub fn request(&self) {
        self.requests.inc();
    }

    /// A pod got its sidecar: from templates, comma separated, by a patch of so many bytes.
    pub fn injected(&self, templates: &str, patch_bytes: usize) {
        self.success.inc();
        self.injected.inc();
        for name in templates.split(',') {
            // Users choose the names of their own.
            let template = TEMPLATES.into_iter().find(|known| *known == name).unwrap_or(CUSTOM);
            self.templates.get_or_create(&Template { template }).inc();
        }
        #[expect(clippy::cast_precision_loss, reason = "megabytes at most")]
        self.patch_bytes.observe(patch_bytes as f64);
    }

    /// Nothing of it was to be created.
    pub fn dry_run(&self) {
        self.dry_runs.inc();
    }

    /// A review has no line in the log.
    pub fn line_left_out(&self) {
        self.lines_left_out.inc();
    }

    /// Time between the arrival of a request and its decision.
    pub fn waited(&self, time: Duration) {
        self.waited.observe(time.as_secs_f64());
    }

    /// A request came; it counts until the guard is dropped.
    pub fn in_flight(&self) -> GaugeGuard {
        GaugeGuard::new(&self.in_flight)
    }

    /// The documents in use were taken then.
    pub fn settings_made(&self, at: SystemTime) {
        self.settings_made.set(seconds(at));
    }

    /// A pod was left alone.
    pub fn skipped(&self, reason: SkipReason) {
        self.success.inc();
        self.skipped.get_or_create(&Reason { reason: reason.name() }).inc();
    }

    /// Not a new pod.
    pub fn not_a_pod(&self) {
        self.success.inc();
        self.not_pods.inc();
    }

    /// Not allowed.
    pub fn failed(&self, failure: Failure) {
        self.failed.get_or_create(&Reason { reason: failure.name() }).inc();
    }

    /// Time of a decision.
    pub fn took(&self, time: Duration) {
        self.seconds.observe(time.as_secs_f64());
    }

    /// A file changed.
    pub fn reloaded(&self, source: Source, taken: bool) {
        let result = if taken { "replaced" } else { "refused" };
        self.reloads.get_or_create(&Reload { source: source.name(), result }).inc();
    }

    /// Another certificate is served.
    pub fn certificate_expires(&self, at: SystemTime) {
        self.certificate_expiry.set(seconds(at));
    }

    /// A client did not speak TLS, or not ours.
    pub fn handshake_failed(&self) {
        self.handshake_failures.inc();
    }

    /// A connection opened; it counts until the guard is dropped.
    pub fn connection(&self) -> GaugeGuard {
        GaugeGuard::new(&self.connections)
    }

    /// The text that Prometheus scrapes, of type [`CONTENT_TYPE`].
    pub fn render(&self) -> String {
        let mut text = String::with_capacity(4096);
        let since = self.settings_made.get();
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

/// Something that is counted for as long as it is there.
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
    fn shows_every_series_before_the_first_request() {
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
    fn knows_every_reason_to_skip() {
        // A new reason does not compile here until it is in the list.
        let index = |reason| match reason {
            SkipReason::HostNetwork => 0,
            SkipReason::SystemNamespace => 1,
            SkipReason::StaticPod => 2,
            SkipReason::Windows => 3,
            SkipReason::ExplicitlyOff => 4,
            SkipReason::NeverSelector => 5,
            SkipReason::PolicyDisabled => 6,
            SkipReason::UnknownPolicy => 7,
            SkipReason::UnrecordedSidecar => 8,
        };
        assert_eq!(SKIP_REASONS.map(index), [0, 1, 2, 3, 4, 5, 6, 7, 8]);
    }

    #[test]
    fn counts_connections_until_their_guard_is_gone() {
        let metrics = Metrics::new();
        let guards = [metrics.connection(), metrics.connection()];
        assert!(metrics.render().contains("weir_webhook_connections 2"));
        drop(guards);
        assert!(metrics.render().contains("weir_webhook_connections 0"));
    }
}
