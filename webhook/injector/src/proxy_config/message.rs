//! Istio's message `ProxyConfig` (istio/api `mesh/v1alpha1/proxy.proto`) and the messages in it.

use super::schema::{Field, FieldType, field};

static TLS_SETTINGS: [Field; 9] = [
    field("mode", FieldType::Enum(&["DISABLE", "SIMPLE", "MUTUAL", "ISTIO_MUTUAL"])),
    field("clientCertificate", FieldType::String),
    field("privateKey", FieldType::String),
    field("caCertificates", FieldType::String),
    field("credentialName", FieldType::String),
    field("subjectAltNames", FieldType::Repeated(&FieldType::String)),
    field("sni", FieldType::String),
    field("insecureSkipVerify", FieldType::BoolValue),
    field("caCrl", FieldType::String),
];
static ADDRESS: [Field; 1] = [field("address", FieldType::String)];
static LIGHTSTEP: [Field; 2] = [field("address", FieldType::String), field("accessToken", FieldType::String)];
static OPEN_CENSUS: [Field; 2] = [
    field("address", FieldType::String),
    field(
        "context",
        FieldType::Repeated(&FieldType::Enum(&[
            "UNSPECIFIED",
            "W3C_TRACE_CONTEXT",
            "GRPC_BIN",
            "CLOUD_TRACE_CONTEXT",
            "B3",
        ])),
    ),
];
static TRACING: [Field; 10] = [
    field("zipkin", FieldType::Message(&ADDRESS)),
    field("lightstep", FieldType::Message(&LIGHTSTEP)),
    field("datadog", FieldType::Message(&ADDRESS)),
    field("stackdriver", FieldType::Opaque),
    field("openCensusAgent", FieldType::Message(&OPEN_CENSUS)),
    field("customTags", FieldType::Opaque),
    field("maxPathTagLength", FieldType::Uint32),
    field("sampling", FieldType::Double),
    field("tlsSettings", FieldType::Message(&TLS_SETTINGS)),
    field("enableIstioTags", FieldType::BoolValue),
];
static KEEPALIVE: [Field; 3] =
    [field("probes", FieldType::Uint32), field("time", FieldType::Duration), field("interval", FieldType::Duration)];
static REMOTE_SERVICE: [Field; 3] = [
    field("address", FieldType::String),
    field("tlsSettings", FieldType::Message(&TLS_SETTINGS)),
    field("tcpKeepalive", FieldType::Message(&KEEPALIVE)),
];
const FORWARD_CERT: FieldType = FieldType::Enum(&[
    "UNDEFINED",
    "SANITIZE",
    "FORWARD_ONLY",
    "APPEND_FORWARD",
    "SANITIZE_SET",
    "ALWAYS_FORWARD_ONLY",
]);
static TOPOLOGY: [Field; 3] = [
    field("numTrustedProxies", FieldType::Uint32),
    field("forwardClientCertDetails", FORWARD_CERT),
    field("proxyProtocol", FieldType::Opaque),
];
static STATS_MATCHER: [Field; 3] = [
    field("inclusionPrefixes", FieldType::Repeated(&FieldType::String)),
    field("inclusionSuffixes", FieldType::Repeated(&FieldType::String)),
    field("inclusionRegexps", FieldType::Repeated(&FieldType::String)),
];
/// `ProxyImage`, in the message and in the resource `ProxyConfig`.
pub(crate) static IMAGE: [Field; 1] = [field("imageType", FieldType::String)];
static CERT_DETAILS: [Field; 5] = [
    field("subject", FieldType::BoolValue),
    field("cert", FieldType::BoolValue),
    field("chain", FieldType::BoolValue),
    field("dns", FieldType::BoolValue),
    field("uri", FieldType::BoolValue),
];
static SWITCH: [Field; 1] = [field("disabled", FieldType::BoolValue)];
static SERVER_HEADER: [Field; 2] = [field("disabled", FieldType::BoolValue), field("value", FieldType::String)];
static EXCHANGE_HEADERS: [Field; 1] = [field("mode", FieldType::Enum(&["UNDEFINED", "IN_MESH"]))];
static PROXY_HEADERS: [Field; 10] = [
    field("forwardedClientCert", FORWARD_CERT),
    field("setCurrentClientCertDetails", FieldType::Message(&CERT_DETAILS)),
    field("requestId", FieldType::Message(&SWITCH)),
    field("server", FieldType::Message(&SERVER_HEADER)),
    field("attemptCount", FieldType::Message(&SWITCH)),
    field("envoyDebugHeaders", FieldType::Message(&SWITCH)),
    field("metadataExchangeHeaders", FieldType::Message(&EXCHANGE_HEADERS)),
    field("preserveHttp1HeaderCase", FieldType::BoolValue),
    field("xForwardedHost", FieldType::Opaque),
    field("xForwardedPort", FieldType::Opaque),
];

/// The message with its deprecated fields. The variable `PROXY_CONFIG` has this order.
pub(super) static PROXY_CONFIG: [Field; 38] = [
    field("configPath", FieldType::String),
    field("binaryPath", FieldType::String),
    field("serviceCluster", FieldType::String),
    field(
        "tracingServiceName",
        FieldType::Enum(&["APP_LABEL_AND_NAMESPACE", "CANONICAL_NAME_ONLY", "CANONICAL_NAME_AND_NAMESPACE"]),
    ),
    field("drainDuration", FieldType::Duration),
    field("discoveryAddress", FieldType::String),
    field("discoveryRefreshDelay", FieldType::Duration),
    field("zipkinAddress", FieldType::String),
    field("statsdUdpAddress", FieldType::String),
    field("envoyMetricsServiceAddress", FieldType::String),
    field("proxyAdminPort", FieldType::Int32),
    field("availabilityZone", FieldType::String),
    field("controlPlaneAuthPolicy", FieldType::Enum(&["NONE", "MUTUAL_TLS", "INHERIT"])),
    field("customConfigFile", FieldType::String),
    field("statNameLength", FieldType::Int32),
    field("concurrency", FieldType::IntValue),
    field("proxyBootstrapTemplatePath", FieldType::String),
    field("interceptionMode", FieldType::Enum(&["REDIRECT", "TPROXY", "NONE"])),
    field("tracing", FieldType::Message(&TRACING)),
    field("envoyAccessLogService", FieldType::Message(&REMOTE_SERVICE)),
    field("envoyMetricsService", FieldType::Message(&REMOTE_SERVICE)),
    field("proxyMetadata", FieldType::StringMap),
    field("runtimeValues", FieldType::StringMap),
    field("statusPort", FieldType::Int32),
    field("extraStatTags", FieldType::Repeated(&FieldType::String)),
    field("gatewayTopology", FieldType::Message(&TOPOLOGY)),
    field("terminationDrainDuration", FieldType::Duration),
    field("meshId", FieldType::String),
    field("readinessProbe", FieldType::Opaque),
    field("proxyStatsMatcher", FieldType::Message(&STATS_MATCHER)),
    field("holdApplicationUntilProxyStarts", FieldType::BoolValue),
    field("caCertificatesPem", FieldType::Repeated(&FieldType::String)),
    field("image", FieldType::Message(&IMAGE)),
    field("privateKeyProvider", FieldType::Opaque),
    field("proxyHeaders", FieldType::Message(&PROXY_HEADERS)),
    field("fileFlushInterval", FieldType::Duration),
    field("fileFlushMinSizeKb", FieldType::Uint32),
    field("statsCompression", FieldType::BoolValue),
];
