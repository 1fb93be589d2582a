//! The `mesh` document (istio/api `MeshConfig`), reduced to what the injector reads.

use serde_json::Value;

use super::proxy_config::ProxyConfig;
use super::reader::Node;

/// What the injector reads of the mesh configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Mesh {
    /// `trustDomain`; empty for none.
    pub trust_domain: String,
    /// `rootNamespace`: where configuration for the whole mesh lives.
    pub root_namespace: String,
    /// `enablePrometheusMerge`: whether the agent merges the application's metrics into its own.
    pub prometheus_merge: bool,
    /// `proxyListenPort`: port for captured outbound traffic.
    pub proxy_port: u16,
    /// `proxyInboundListenPort`: port for captured inbound traffic.
    pub inbound_port: u16,
    /// `inboundTrafficPolicy.mode` is `LOCALHOST`: the proxy reaches the application at 127.0.0.1.
    pub inbound_localhost: bool,
    /// Some OpenTelemetry provider wants the semantic conventions' service attributes.
    pub otel_semantic_conventions: bool,
    /// `defaultConfig` over the built-in defaults.
    pub default_config: ProxyConfig,
}

impl Mesh {
    pub(super) fn read(root: &Node<'_>) -> Self {
        let default_config = ProxyConfig::read(&root.at("defaultConfig"));
        default_config.check(root.findings());
        Self {
            trust_domain: root.at("trustDomain").text().unwrap_or_else(|| "cluster.local".to_owned()),
            root_namespace: (root.at("rootNamespace").text().filter(|namespace| !namespace.is_empty()))
                .unwrap_or_else(|| "istio-system".to_owned()),
            prometheus_merge: root.at("enablePrometheusMerge").flag().unwrap_or(true),
            proxy_port: nonzero(&root.at("proxyListenPort"), 15001),
            inbound_port: nonzero(&root.at("proxyInboundListenPort"), 15006),
            inbound_localhost: root.at("inboundTrafficPolicy").at("mode").text().as_deref() == Some("LOCALHOST"),
            otel_semantic_conventions: root.at("extensionProviders").list().iter().any(|provider| {
                let enrichment = provider.get("opentelemetry").and_then(|otel| otel.get("serviceAttributeEnrichment"));
                enrichment.and_then(Value::as_str) == Some("OTEL_SEMANTIC_CONVENTIONS")
            }),
            default_config,
        }
    }
}

/// A port; 0 cannot be told from absent in this document.
fn nonzero(node: &Node<'_>, default: u16) -> u16 {
    node.port().filter(|port| *port != 0).unwrap_or(default)
}
