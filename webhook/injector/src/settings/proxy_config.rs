//! Istio's `ProxyConfig` (istio/api `mesh/v1alpha1/proxy.proto`): defaults, overlay, and the text of the variable `PROXY_CONFIG`.

use std::sync::LazyLock;

use serde_json::{Map, Value, json};

use super::SettingsError;
use super::reader::{Findings, Node};
use super::schema::{Field, Kind, canonical, field, snake_case};

/// Configuration of one proxy, complete: built-in defaults lie below everything.
#[derive(Debug, Clone, PartialEq)]
pub struct ProxyConfig {
    /// Canonical form of the message, see [`super::schema`].
    fields: Map<String, Value>,
}

/// What Istio configures where nobody says otherwise.
static DEFAULTS: LazyLock<Map<String, Value>> = LazyLock::new(|| match defaults() {
    Value::Object(fields) => fields,
    _ => Map::new(),
});

fn defaults() -> Value {
    json!({
        "configPath": "./etc/istio/proxy",
        "binaryPath": "/usr/local/bin/envoy",
        "serviceCluster": "istio-proxy",
        "drainDuration": "45s",
        "discoveryAddress": "istiod.istio-system.svc:15012",
        "proxyAdminPort": 15000,
        "controlPlaneAuthPolicy": "MUTUAL_TLS",
        "statNameLength": 189,
        "statusPort": 15020,
        "terminationDrainDuration": "5s",
    })
}

/// Fields that `PROXY_CONFIG` leaves out where they equal the built-in default.
const LEFT_OUT_BY_DEFAULT: [&str; 14] = [
    "configPath",
    "binaryPath",
    "controlPlaneAuthPolicy",
    "serviceCluster",
    "drainDuration",
    "terminationDrainDuration",
    "discoveryAddress",
    "envoyMetricsService",
    "envoyAccessLogService",
    "tracing",
    "proxyAdminPort",
    "statNameLength",
    "statusPort",
    "concurrency",
];

/// Parts of `proxyHeaders` that are replaced one by one.
const HEADERS_ONE_BY_ONE: [&str; 5] =
    ["forwardedClientCert", "requestId", "attemptCount", "server", "envoyDebugHeaders"];

impl Default for ProxyConfig {
    fn default() -> Self {
        Self { fields: DEFAULTS.clone() }
    }
}

impl ProxyConfig {
    /// The built-in defaults with what the mesh configuration has under `defaultConfig`.
    pub(super) fn read(node: &Node<'_>) -> Self {
        let mut config = Self::default();
        if let Some(object) = node.object() {
            for field in &PROXY_CONFIG {
                node.findings().asked(node.path(), field.name);
                node.findings().asked(node.path(), &snake_case(field.name));
            }
            config.overlay(canonical(object, &PROXY_CONFIG, node.path(), node.findings()));
        }
        config
    }

    /// This configuration with the text of an annotation `proxy.istio.io/config` over it.
    ///
    /// # Errors
    /// The text is no YAML object, fields are ill-typed, or the result is none that a proxy can run with.
    pub fn with_annotation(&self, text: &str) -> Result<Self, Vec<String>> {
        let value = crate::yaml::from_str(text).map_err(|error| vec![error.to_string()])?;
        let findings = Findings::new("ProxyConfig");
        let mut config = self.clone();
        match &value {
            Value::Null => {}
            Value::Object(object) => config.overlay(canonical(object, &PROXY_CONFIG, "", &findings)),
            _ => findings.add("", "must be an object"),
        }
        config.check(&findings);
        let errors = findings.into_errors();
        if errors.is_empty() { Ok(config) } else { Err(errors.iter().map(SettingsError::short).collect()) }
    }

    /// Puts `upper` over this configuration: each field replaces the lower one whole, but the variables of `proxyMetadata`
    /// and the parts of `proxyHeaders` replace one by one.
    pub(super) fn overlay(&mut self, upper: Map<String, Value>) {
        // The two ways to name the cluster are a `oneof`: the later one wins.
        if upper.contains_key("tracingServiceName") {
            self.fields.remove("serviceCluster");
        } else if upper.contains_key("serviceCluster") {
            self.fields.remove("tracingServiceName");
        }
        for (name, value) in upper {
            match (name.as_str(), self.fields.get_mut(&name), value) {
                ("proxyMetadata", Some(Value::Object(lower)), Value::Object(upper)) => lower.extend(upper),
                ("proxyHeaders", Some(Value::Object(lower)), Value::Object(mut upper)) => {
                    for part in HEADERS_ONE_BY_ONE {
                        if let (None, Some(value)) = (upper.get(part), lower.remove(part)) {
                            upper.insert(part.to_owned(), value);
                        }
                    }
                    *lower = upper;
                }
                (_, Some(lower), value) => *lower = value,
                (_, None, value) => drop(self.fields.insert(name, value)),
            }
        }
    }

    /// The rules that Istio has for a `ProxyConfig` as a whole.
    pub(super) fn check(&self, findings: &Findings) {
        for port in ["proxyAdminPort", "statusPort"] {
            let number = self.fields.get(port).and_then(Value::as_i64).unwrap_or(0);
            if !(1..=65535).contains(&number) {
                findings.add(port, format!("{number} is not a port (1 to 65535)"));
            }
        }
        if let Some(text) = self.text("drainDuration")
            && (text.contains('.') || text.starts_with('-') || text == "0s")
        {
            findings.add("drainDuration", format!("{text} is not a positive number of whole seconds"));
        }
        let tracing = self.fields.get("tracing");
        let tracer = |name: &str| tracing.and_then(|tracing| tracing.get(name)?.get("address")?.as_str());
        let service = |name: &str| self.fields.get(name).and_then(|service| service.get("address")?.as_str());
        let addresses = [
            ("discoveryAddress", self.text("discoveryAddress")),
            ("statsdUdpAddress", self.text("statsdUdpAddress")),
            ("envoyMetricsService.address", service("envoyMetricsService")),
            ("envoyAccessLogService.address", service("envoyAccessLogService")),
            ("tracing.zipkin.address", tracer("zipkin").filter(|address| !address.contains("$(HOST_IP)"))),
            ("tracing.lightstep.address", tracer("lightstep")),
            ("tracing.datadog.address", tracer("datadog").filter(|address| !address.contains("$(HOST_IP)"))),
        ];
        for (path, address) in addresses {
            if let Some(address) = address
                && !is_address(address)
            {
                findings.add(path, format!("{address:?} is not an address of the form host:port"));
            }
        }
        if tracing.is_some_and(|tracing| {
            tracing.get("lightstep").is_some_and(|settings| settings.get("accessToken").is_none())
        }) {
            findings.add("tracing.lightstep.accessToken", "must be set");
        }
    }

    /// `interceptionMode`: `REDIRECT`, `TPROXY` or `NONE`.
    pub fn interception_mode(&self) -> &str {
        self.text("interceptionMode").unwrap_or("REDIRECT")
    }

    /// `holdApplicationUntilProxyStarts`.
    pub fn hold_application(&self) -> bool {
        self.fields.get("holdApplicationUntilProxyStarts").and_then(Value::as_bool).unwrap_or(false)
    }

    /// `proxyMetadata`: variables for the containers, sorted by name.
    pub fn metadata(&self) -> Vec<(&str, &str)> {
        let metadata = self.fields.get("proxyMetadata").and_then(Value::as_object);
        let mut pairs: Vec<(&str, &str)> = metadata
            .into_iter()
            .flatten()
            .map(|(name, value)| (name.as_str(), value.as_str().unwrap_or_default()))
            .collect();
        pairs.sort_unstable();
        pairs
    }

    /// One variable of `proxyMetadata`.
    pub fn metadata_value(&self, name: &str) -> Option<&str> {
        self.fields.get("proxyMetadata")?.get(name)?.as_str()
    }

    /// `image.imageType`.
    pub fn image_type(&self) -> Option<&str> {
        self.fields.get("image")?.get("imageType")?.as_str()
    }

    /// `statusPort`: port of the agent's status server.
    pub fn status_port(&self) -> u16 {
        self.fields.get("statusPort").and_then(Value::as_u64).and_then(|port| u16::try_from(port).ok()).unwrap_or(15020)
    }

    /// `proxyAdminPort`: port at which Envoy is administrated.
    pub fn admin_port(&self) -> u16 {
        let port = self.fields.get("proxyAdminPort").and_then(Value::as_u64);
        port.and_then(|port| u16::try_from(port).ok()).unwrap_or(15000)
    }

    /// `tracing.tlsSettings.caCertificates`, where the tracer is reached by TLS.
    pub fn tracing_ca(&self) -> Option<&str> {
        self.fields.get("tracing")?.get("tlsSettings")?.get("caCertificates")?.as_str()
    }

    /// Text of the variable `PROXY_CONFIG`: the message without what the agent takes by default, and a newline.
    pub fn to_env(&self) -> String {
        print(&self.fields)
    }

    /// The same text from a whole message such as [`Self::every_field`] gives; `None` where it is another one.
    pub(crate) fn env_of(fields: &Map<String, Value>) -> Option<String> {
        let whole = fields.contains_key("configPath") && fields.contains_key("discoveryAddress");
        whole.then(|| print(&canonical(fields, &PROXY_CONFIG, "", &Findings::new("ProxyConfig"))))
    }

    /// Every field of the message, those that are not set at their zero value; wrappers and messages are null then.
    pub(crate) fn every_field(&self) -> Map<String, Value> {
        let fields = PROXY_CONFIG.iter();
        fields
            .map(|field| {
                (field.name.to_owned(), self.fields.get(field.name).cloned().unwrap_or_else(|| field.kind.zero()))
            })
            .collect()
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.fields.get(name)?.as_str()
    }
}

fn print(fields: &Map<String, Value>) -> String {
    let mut printed = Map::new();
    for field in &PROXY_CONFIG {
        let Some(value) = fields.get(field.name) else { continue };
        if LEFT_OUT_BY_DEFAULT.contains(&field.name) && DEFAULTS.get(field.name) == Some(value) {
            continue;
        }
        let mut value = value.clone();
        if field.name == "proxyMetadata"
            && let Value::Object(metadata) = &mut value
        {
            metadata.sort_keys();
        }
        printed.insert(field.name.to_owned(), value);
    }
    format!("{}\n", Value::Object(printed))
}

/// `host:port`, the host a name, an address, or an IPv6 address in brackets.
fn is_address(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0)
}

static TLS_SETTINGS: [Field; 9] = [
    field("mode", Kind::Choice(&["DISABLE", "SIMPLE", "MUTUAL", "ISTIO_MUTUAL"])),
    field("clientCertificate", Kind::Text),
    field("privateKey", Kind::Text),
    field("caCertificates", Kind::Text),
    field("credentialName", Kind::Text),
    field("subjectAltNames", Kind::List(&Kind::Text)),
    field("sni", Kind::Text),
    field("insecureSkipVerify", Kind::FlagValue),
    field("caCrl", Kind::Text),
];
static ADDRESS: [Field; 1] = [field("address", Kind::Text)];
static LIGHTSTEP: [Field; 2] = [field("address", Kind::Text), field("accessToken", Kind::Text)];
static OPEN_CENSUS: [Field; 2] = [
    field("address", Kind::Text),
    field(
        "context",
        Kind::List(&Kind::Choice(&["UNSPECIFIED", "W3C_TRACE_CONTEXT", "GRPC_BIN", "CLOUD_TRACE_CONTEXT", "B3"])),
    ),
];
static TRACING: [Field; 10] = [
    field("zipkin", Kind::Message(&ADDRESS)),
    field("lightstep", Kind::Message(&LIGHTSTEP)),
    field("datadog", Kind::Message(&ADDRESS)),
    field("stackdriver", Kind::Opaque),
    field("openCensusAgent", Kind::Message(&OPEN_CENSUS)),
    field("customTags", Kind::Opaque),
    field("maxPathTagLength", Kind::Uint),
    field("sampling", Kind::Double),
    field("tlsSettings", Kind::Message(&TLS_SETTINGS)),
    field("enableIstioTags", Kind::FlagValue),
];
static KEEPALIVE: [Field; 3] =
    [field("probes", Kind::Uint), field("time", Kind::Duration), field("interval", Kind::Duration)];
static REMOTE_SERVICE: [Field; 3] = [
    field("address", Kind::Text),
    field("tlsSettings", Kind::Message(&TLS_SETTINGS)),
    field("tcpKeepalive", Kind::Message(&KEEPALIVE)),
];
const FORWARD_CERT: Kind =
    Kind::Choice(&["UNDEFINED", "SANITIZE", "FORWARD_ONLY", "APPEND_FORWARD", "SANITIZE_SET", "ALWAYS_FORWARD_ONLY"]);
static TOPOLOGY: [Field; 3] = [
    field("numTrustedProxies", Kind::Uint),
    field("forwardClientCertDetails", FORWARD_CERT),
    field("proxyProtocol", Kind::Opaque),
];
static STATS_MATCHER: [Field; 3] = [
    field("inclusionPrefixes", Kind::List(&Kind::Text)),
    field("inclusionSuffixes", Kind::List(&Kind::Text)),
    field("inclusionRegexps", Kind::List(&Kind::Text)),
];
/// Type `ProxyImage` of both the message and the resource.
pub(super) static IMAGE: [Field; 1] = [field("imageType", Kind::Text)];
static CERT_DETAILS: [Field; 5] = [
    field("subject", Kind::FlagValue),
    field("cert", Kind::FlagValue),
    field("chain", Kind::FlagValue),
    field("dns", Kind::FlagValue),
    field("uri", Kind::FlagValue),
];
static SWITCH: [Field; 1] = [field("disabled", Kind::FlagValue)];
static SERVER_HEADER: [Field; 2] = [field("disabled", Kind::FlagValue), field("value", Kind::Text)];
static EXCHANGE_HEADERS: [Field; 1] = [field("mode", Kind::Choice(&["UNDEFINED", "IN_MESH"]))];
static PROXY_HEADERS: [Field; 10] = [
    field("forwardedClientCert", FORWARD_CERT),
    field("setCurrentClientCertDetails", Kind::Message(&CERT_DETAILS)),
    field("requestId", Kind::Message(&SWITCH)),
    field("server", Kind::Message(&SERVER_HEADER)),
    field("attemptCount", Kind::Message(&SWITCH)),
    field("envoyDebugHeaders", Kind::Message(&SWITCH)),
    field("metadataExchangeHeaders", Kind::Message(&EXCHANGE_HEADERS)),
    field("preserveHttp1HeaderCase", Kind::FlagValue),
    field("xForwardedHost", Kind::Opaque),
    field("xForwardedPort", Kind::Opaque),
];

/// The message in declaration order, fields that Istio has deprecated included; the order of `PROXY_CONFIG`.
static PROXY_CONFIG: [Field; 38] = [
    field("configPath", Kind::Text),
    field("binaryPath", Kind::Text),
    field("serviceCluster", Kind::Text),
    field(
        "tracingServiceName",
        Kind::Choice(&["APP_LABEL_AND_NAMESPACE", "CANONICAL_NAME_ONLY", "CANONICAL_NAME_AND_NAMESPACE"]),
    ),
    field("drainDuration", Kind::Duration),
    field("discoveryAddress", Kind::Text),
    field("discoveryRefreshDelay", Kind::Duration),
    field("zipkinAddress", Kind::Text),
    field("statsdUdpAddress", Kind::Text),
    field("envoyMetricsServiceAddress", Kind::Text),
    field("proxyAdminPort", Kind::Int),
    field("availabilityZone", Kind::Text),
    field("controlPlaneAuthPolicy", Kind::Choice(&["NONE", "MUTUAL_TLS", "INHERIT"])),
    field("customConfigFile", Kind::Text),
    field("statNameLength", Kind::Int),
    field("concurrency", Kind::IntValue),
    field("proxyBootstrapTemplatePath", Kind::Text),
    field("interceptionMode", Kind::Choice(&["REDIRECT", "TPROXY", "NONE"])),
    field("tracing", Kind::Message(&TRACING)),
    field("envoyAccessLogService", Kind::Message(&REMOTE_SERVICE)),
    field("envoyMetricsService", Kind::Message(&REMOTE_SERVICE)),
    field("proxyMetadata", Kind::TextMap),
    field("runtimeValues", Kind::TextMap),
    field("statusPort", Kind::Int),
    field("extraStatTags", Kind::List(&Kind::Text)),
    field("gatewayTopology", Kind::Message(&TOPOLOGY)),
    field("terminationDrainDuration", Kind::Duration),
    field("meshId", Kind::Text),
    field("readinessProbe", Kind::Opaque),
    field("proxyStatsMatcher", Kind::Message(&STATS_MATCHER)),
    field("holdApplicationUntilProxyStarts", Kind::FlagValue),
    field("caCertificatesPem", Kind::List(&Kind::Text)),
    field("image", Kind::Message(&IMAGE)),
    field("privateKeyProvider", Kind::Opaque),
    field("proxyHeaders", Kind::Message(&PROXY_HEADERS)),
    field("fileFlushInterval", Kind::Duration),
    field("fileFlushMinSizeKb", Kind::Uint),
    field("statsCompression", Kind::FlagValue),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_nothing_of_the_defaults() {
        assert_eq!(ProxyConfig::default().to_env(), "{}\n");
        let same =
            ProxyConfig::default().with_annotation("drainDuration: 45s\nproxyMetadata: {}\nstatusPort: 15020").unwrap();
        assert_eq!(same.to_env(), "{}\n");
    }

    #[test]
    fn prints_in_declaration_order_with_the_keys_of_maps_sorted() {
        let text =
            "proxyMetadata: {FOO: bar, A: b}\nconcurrency: 0\ndiscoveryAddress: foo:123\ntracing: {}\nunknown: 1\n";
        let config = ProxyConfig::default().with_annotation(text).unwrap();
        let want =
            r#"{"discoveryAddress":"foo:123","concurrency":0,"tracing":{},"proxyMetadata":{"A":"b","FOO":"bar"}}"#;
        assert_eq!(config.to_env(), format!("{want}\n"));
    }

    #[test]
    fn replaces_whole_fields_but_merges_metadata_and_headers() {
        let lower = "proxyMetadata: {A: lower, B: lower}\ntracing: {zipkin: {address: 'z:9411'}}\n\
                     proxyHeaders: {server: {value: x}, preserveHttp1HeaderCase: true}\nextraStatTags: [a]";
        let upper = "proxyMetadata: {B: upper}\ntracing: {sampling: 5}\nproxyHeaders: {requestId: {disabled: true}}\nextraStatTags: [b]";
        let config = ProxyConfig::default().with_annotation(lower).unwrap().with_annotation(upper).unwrap();
        let printed: Value = serde_json::from_str(&config.to_env()).unwrap();
        assert_eq!(printed["proxyMetadata"], json!({"A": "lower", "B": "upper"}));
        assert_eq!(printed["tracing"], json!({"sampling": 5}));
        assert_eq!(printed["proxyHeaders"], json!({"requestId": {"disabled": true}, "server": {"value": "x"}}));
        assert_eq!(printed["extraStatTags"], json!(["b"]));
    }

    #[test]
    fn refuses_what_no_proxy_can_run_with_all_at_once() {
        let text = "statusPort: 70000\ndrainDuration: 1.5s\ndiscoveryAddress: nowhere\nconcurrency: many";
        let errors = ProxyConfig::default().with_annotation(text).unwrap_err();
        assert_eq!(errors.len(), 4, "{errors:?}");
        assert!(errors.iter().any(|error| error.starts_with("statusPort: 70000")), "{errors:?}");
        assert!(ProxyConfig::default().with_annotation("[1]").is_err());
    }
}
