//! The Prometheus registry. Every part of the agent registers its own metrics here; names are Istio's where Istio has one for the same
//! thing, and no label ever holds anything a user wrote.

use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

/// `Content-Type` of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The registry, shared.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        registry.register("weir_agent_build", "What runs here", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        Self { registry: Arc::new(Mutex::new(registry)) }
    }
}

impl Metrics {
    /// Lets a part register what it has. The library appends `_total` to counters and `_info` to infos.
    pub fn register<R>(&self, add: impl FnOnce(&mut Registry) -> R) -> R {
        add(&mut self.registry.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The text that Prometheus scrapes, of type [`CONTENT_TYPE`].
    pub fn render(&self) -> String {
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = String::with_capacity(4096);
        // Writing to a string does not fail.
        let _ = encode(&mut text, &registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;

    use super::*;

    #[test]
    fn renders_what_others_register() {
        let metrics = Metrics::default();
        let repairs = Counter::<u64>::default();
        metrics.register(|registry| registry.register("weir_agent_repairs", "Repairs", repairs.clone()));
        repairs.inc();
        let text = metrics.render();
        assert!(text.contains("weir_agent_repairs_total 1\n"), "{text}");
        assert!(text.contains("weir_agent_build_info{version=\""), "{text}");
    }
}
