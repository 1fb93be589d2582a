//! The document `mesh` (istio/api `MeshConfig`), as far as the injector reads it.

use serde_json::{Map, Value};

use crate::fields::FieldReader;
use crate::proxy_config::ProxyConfig;

/// Keys of `MeshConfig` (istio/api `mesh/v1alpha1/config.proto`) that the injector does not read.
pub(super) const UNREAD_KEYS: [&str; 46] = [
    "accessLogEncoding",
    "accessLogFile",
    "accessLogFormat",
    "ca",
    "caCertificates",
    "certificates",
    "configSources",
    "connectTimeout",
    "defaultDestinationRuleExportTo",
    "defaultHttpRetryPolicy",
    "defaultProviders",
    "defaultServiceExportTo",
    "defaultVirtualServiceExportTo",
    "disableEnvoyListenerLog",
    "discoverySelectors",
    "dnsRefreshRate",
    "enableAutoMtls",
    "enableEnvoyAccessLogService",
    "enableTracing",
    "h2UpgradePolicy",
    "hboneIdleTimeout",
    "inboundClusterStatName",
    "ingressClass",
    "ingressControllerMode",
    "ingressSelector",
    "ingressService",
    "localityLbSetting",
    "meshMTLS",
    "mixerCheckServer",
    "mixerReportServer",
    "outboundClusterStatName",
    "outboundTrafficPolicy",
    "pathNormalization",
    "policyCheckFailOpen",
    "protocolDetectionTimeout",
    "proxyHttpPort",
    "reportBatchMaxEntries",
    "reportBatchMaxTime",
    "sdsUdsPath",
    "serviceScopeConfigs",
    "serviceSettings",
    "tcpKeepalive",
    "thriftConfig",
    "tlsDefaults",
    "trustDomainAliases",
    "verifyCertificateAtClient",
];

/// The fields of `MeshConfig` that the injector reads.
#[derive(Debug, Clone, PartialEq)]
pub struct Mesh {
    /// `trustDomain`; empty for none.
    pub trust_domain: String,
    /// `rootNamespace`: namespace of configuration for the whole mesh.
    pub root_namespace: String,
    /// `enablePrometheusMerge`: whether the agent merges the application's metrics into its own.
    pub prometheus_merge: bool,
    /// `proxyListenPort`: port for captured outbound traffic.
    pub proxy_port: u16,
    /// `proxyInboundListenPort`: port for captured inbound traffic.
    pub inbound_port: u16,
    /// Whether `inboundTrafficPolicy.mode` is `LOCALHOST`: the proxy connects to the application at 127.0.0.1.
    pub inbound_localhost: bool,
    /// Whether an OpenTelemetry provider sets `serviceAttributeEnrichment: OTEL_SEMANTIC_CONVENTIONS`.
    pub otel_semantic_conventions: bool,
    /// `defaultConfig` over Istio's defaults.
    pub default_config: ProxyConfig,
}

impl Mesh {
    pub(super) fn read(root: &FieldReader<'_>) -> Self {
        let default_config = ProxyConfig::read(&root.field("defaultConfig"));
        default_config.validate(root.errors());
        let root_namespace = root.field("rootNamespace").string().filter(|namespace| !namespace.is_empty());
        Self {
            trust_domain: root.field("trustDomain").string().unwrap_or_else(|| "cluster.local".to_owned()),
            root_namespace: root_namespace.unwrap_or_else(|| "istio-system".to_owned()),
            prometheus_merge: root.field("enablePrometheusMerge").bool().unwrap_or(true),
            proxy_port: port_or(&root.field("proxyListenPort"), 15001),
            inbound_port: port_or(&root.field("proxyInboundListenPort"), 15006),
            inbound_localhost: root.field("inboundTrafficPolicy").field("mode").string().as_deref()
                == Some("LOCALHOST"),
            otel_semantic_conventions: root.field("extensionProviders").list().iter().any(|provider| {
                let enrichment = provider.get("opentelemetry").and_then(|otel| otel.get("serviceAttributeEnrichment"));
                enrichment.and_then(Value::as_str) == Some("OTEL_SEMANTIC_CONVENTIONS")
            }),
            default_config,
        }
    }

    /// Returns the fields of the document other than `defaultConfig`, with the injector's defaults for those that it reads.
    pub(crate) fn effective_fields(&self, document: Option<&Value>) -> Map<String, Value> {
        let mut fields = document.and_then(Value::as_object).cloned().unwrap_or_default();
        for (name, value) in [
            ("proxyListenPort", Value::from(self.proxy_port)),
            ("proxyInboundListenPort", self.inbound_port.into()),
            ("trustDomain", self.trust_domain.as_str().into()),
            ("enablePrometheusMerge", self.prometheus_merge.into()),
        ] {
            fields.insert(name.to_owned(), value);
        }
        fields.remove("defaultConfig");
        fields
    }
}

/// Reads a port; proto3 cannot tell 0 from absent.
fn port_or(field: &FieldReader<'_>, default: u16) -> u16 {
    field.port().filter(|port| *port != 0).unwrap_or(default)
}
