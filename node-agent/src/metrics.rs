//! The Prometheus registry. Metrics have Istio's name where Istio has the same metric; labels never contain text that a user wrote.

use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use weir_runtime::metrics::ProcessCollector;

/// Registry of all metrics; clones share it.
#[derive(Debug, Clone)]
pub struct MetricsRegistry {
    registry: Arc<Mutex<Registry>>,
}

impl Default for MetricsRegistry {
    fn default() -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(ProcessCollector));
        registry.register("weir_agent_build", "Build information", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        Self { registry: Arc::new(Mutex::new(registry)) }
    }
}

impl MetricsRegistry {
    /// Registers metrics. The library appends `_total` to the names of counters and `_info` to those of infos.
    pub fn register<R>(&self, add: impl FnOnce(&mut Registry) -> R) -> R {
        add(&mut self.registry.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Renders all metrics as `OpenMetrics`.
    pub fn render(&self) -> String {
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = String::with_capacity(4096);
        let _ = encode(&mut text, &registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;

    use super::*;

    #[test]
    fn registered_metrics_are_rendered() {
        let metrics = MetricsRegistry::default();
        let repairs = Counter::<u64>::default();
        metrics.register(|registry| registry.register("weir_agent_repairs", "Repairs", repairs.clone()));
        repairs.inc();
        let text = metrics.render();
        assert!(text.contains("weir_agent_repairs_total 1\n"), "{text}");
        assert!(text.contains("weir_agent_build_info{version=\""), "{text}");
    }
}
