//! Istio's `ProxyConfig`: defaults, overlay, validation, and the value of the variable `PROXY_CONFIG`.

mod message;
pub(crate) mod schema;

use std::borrow::Cow;
use std::sync::{Arc, LazyLock};

use serde::Serializer as _;
use serde_json::{Map, Value, json};

use crate::fields::{FieldError, FieldErrors, FieldReader};
pub(crate) use message::IMAGE;
use message::PROXY_CONFIG;
use schema::{Field, FieldType, canonical, snake_case};

use crate::go_names::upper_first;

/// Complete configuration of one proxy: what is not set has Istio's default.
#[derive(Debug, Clone, PartialEq)]
pub struct ProxyConfig {
    /// Canonical form of the message, see [`schema`]. Shared by the pods that change nothing in it.
    fields: Arc<Map<String, Value>>,
}

/// Istio's defaults.
static DEFAULTS: LazyLock<Arc<Map<String, Value>>> = LazyLock::new(|| match defaults() {
    Value::Object(fields) => Arc::new(fields),
    _ => Arc::default(),
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

/// Fields that the variable `PROXY_CONFIG` omits if they equal Istio's default.
const OMITTED_BY_DEFAULT: [&str; 14] = [
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

/// Address to which proxies sent traces by default before Istio 1.22.
const ZIPKIN: &str = "zipkin.istio-system:9411";

/// Fields of `proxyHeaders` that an overlay replaces one by one.
const MERGED_HEADERS: [&str; 5] = ["forwardedClientCert", "requestId", "attemptCount", "server", "envoyDebugHeaders"];

impl Default for ProxyConfig {
    fn default() -> Self {
        Self { fields: DEFAULTS.clone() }
    }
}

impl ProxyConfig {
    /// Reads `defaultConfig` of the mesh configuration over Istio's defaults.
    pub(crate) fn read(default_config: &FieldReader<'_>) -> Self {
        let mut config = Self::default();
        if let Some(object) = default_config.object() {
            let (path, errors) = (default_config.path(), default_config.errors());
            for field in &PROXY_CONFIG {
                errors.add_known_key(path, field.name);
                errors.add_known_key(path, &snake_case(field.name));
            }
            config.overlay(canonical(object, &PROXY_CONFIG, path, errors));
        }
        config
    }

    /// Returns this configuration overlaid with the YAML text of an annotation `proxy.istio.io/config`.
    ///
    /// # Errors
    /// The text is not a YAML object, fields are ill-typed, or the result is invalid.
    pub fn with_annotation(&self, text: &str) -> Result<Self, Vec<String>> {
        let value = crate::yaml::from_str(text).map_err(|error| vec![error.to_string()])?;
        let errors = FieldErrors::new("ProxyConfig");
        let mut config = self.clone();
        match &value {
            Value::Null => {}
            Value::Object(object) => config.overlay(canonical(object, &PROXY_CONFIG, "", &errors)),
            _ => errors.add("", "must be an object"),
        }
        config.validate(&errors);
        let errors = errors.into_errors();
        if errors.is_empty() { Ok(config) } else { Err(errors.iter().map(FieldError::without_document).collect()) }
    }

    /// Overlays the fields of `upper`. A field replaces the lower one as a whole, except that `proxyMetadata` and some of
    /// `proxyHeaders` are merged.
    pub(crate) fn overlay(&mut self, upper: Map<String, Value>) {
        // The two fields are a `oneof`: the later one wins.
        let fields = Arc::make_mut(&mut self.fields);
        if upper.contains_key("tracingServiceName") {
            fields.remove("serviceCluster");
        } else if upper.contains_key("serviceCluster") {
            fields.remove("tracingServiceName");
        }
        for (name, value) in upper {
            match (name.as_str(), fields.get_mut(&name), value) {
                ("proxyMetadata", Some(Value::Object(lower)), Value::Object(upper)) => lower.extend(upper),
                ("proxyHeaders", Some(Value::Object(lower)), Value::Object(mut upper)) => {
                    for header in MERGED_HEADERS {
                        if let (None, Some(value)) = (upper.get(header), lower.remove(header)) {
                            upper.insert(header.to_owned(), value);
                        }
                    }
                    *lower = upper;
                }
                (_, Some(lower), value) => *lower = value,
                (_, None, value) => drop(fields.insert(name, value)),
            }
        }
    }

    /// Validates the whole message by Istio's rules.
    pub(crate) fn validate(&self, errors: &FieldErrors) {
        for port in ["proxyAdminPort", "statusPort"] {
            let number = self.fields.get(port).and_then(Value::as_i64).unwrap_or(0);
            if !(1..=65535).contains(&number) {
                errors.add(port, format!("{number} is not a valid port (1-65535)"));
            }
        }
        if let Some(text) = self.text("drainDuration")
            && (text.contains('.') || text.starts_with('-') || text == "0s")
        {
            errors.add("drainDuration", format!("must be a positive number of whole seconds, found {text}"));
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
                && !is_host_port(address)
            {
                errors.add(path, format!("must be host:port, found {address:?}"));
            }
        }
        if tracing.is_some_and(|tracing| {
            tracing.get("lightstep").is_some_and(|settings| settings.get("accessToken").is_none())
        }) {
            errors.add("tracing.lightstep.accessToken", "must be set");
        }
    }

    /// Returns `interceptionMode`: `REDIRECT`, `TPROXY` or `NONE`.
    pub fn interception_mode(&self) -> &str {
        self.text("interceptionMode").unwrap_or("REDIRECT")
    }

    /// Returns `holdApplicationUntilProxyStarts`.
    pub fn hold_application(&self) -> bool {
        self.fields.get("holdApplicationUntilProxyStarts").and_then(Value::as_bool).unwrap_or(false)
    }

    /// Returns `proxyMetadata`, the variables for the proxy's containers, sorted by name.
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

    /// Returns one variable of `proxyMetadata`.
    pub fn metadata_value(&self, name: &str) -> Option<&str> {
        self.fields.get("proxyMetadata")?.get(name)?.as_str()
    }

    /// Returns `image.imageType`.
    pub fn image_type(&self) -> Option<&str> {
        self.fields.get("image")?.get("imageType")?.as_str()
    }

    /// Returns `statusPort`, the port of the agent's status server.
    pub fn status_port(&self) -> u16 {
        self.port("statusPort").unwrap_or(15020)
    }

    /// Returns `proxyAdminPort`, the port of Envoy's admin interface.
    pub fn admin_port(&self) -> u16 {
        self.port("proxyAdminPort").unwrap_or(15000)
    }

    /// Returns `tracing.tlsSettings.caCertificates`.
    pub fn tracing_ca(&self) -> Option<&str> {
        self.fields.get("tracing")?.get("tlsSettings")?.get("caCertificates")?.as_str()
    }

    /// Returns the value of the variable `PROXY_CONFIG`: the message without the agent's defaults, and a newline.
    pub fn to_env(&self) -> String {
        env_text(&self.fields)
    }

    /// Returns the value of `PROXY_CONFIG` for the fields of a complete message, as [`Self::all_fields`] returns them;
    /// `None` for those of another message. Before Istio 1.22 Zipkin in the mesh was a default, which is left out as well.
    pub(crate) fn env_from_fields(fields: &Map<String, Value>, before_1_22: bool) -> Option<String> {
        let is_complete = fields.contains_key("configPath") && fields.contains_key("discoveryAddress");
        is_complete.then(|| {
            let mut fields = canonical(fields, &PROXY_CONFIG, "", &FieldErrors::new("ProxyConfig"));
            if before_1_22 && fields.get("tracing") == Some(&json!({"zipkin": {"address": ZIPKIN}})) {
                fields.shift_remove("tracing");
            }
            env_text(&fields)
        })
    }

    /// Returns the fields that are set.
    #[cfg(test)]
    pub(crate) fn fields(&self) -> &Map<String, Value> {
        &self.fields
    }

    /// Returns whether the Go type at a path of Go names has the field; `None` if its fields are not known.
    pub(crate) fn has_go_field<'a>(path: impl Iterator<Item = &'a str>, name: &str) -> Option<bool> {
        let find = |message: &'static [Field], name: &str| message.iter().find(|field| upper_first(field.name) == name);
        let mut message: &'static [Field] = &PROXY_CONFIG;
        for segment in path {
            match find(message, segment)?.field_type {
                FieldType::Message(inner) => message = inner,
                FieldType::Duration | FieldType::Opaque | FieldType::StringMap | FieldType::Repeated(_) => return None,
                _ => return Some(false),
            }
        }
        Some(find(message, name).is_some())
    }

    /// Returns every field of the message; unset scalars, lists and maps have their zero value, other unset fields are null.
    pub(crate) fn all_fields(&self) -> Map<String, Value> {
        let value =
            |field: &Field| self.fields.get(field.name).cloned().unwrap_or_else(|| field.field_type.zero_value());
        PROXY_CONFIG.iter().map(|field| (field.name.to_owned(), value(field))).collect()
    }

    /// Returns `concurrency`, the number of worker threads; 0 stands for all processors.
    pub(crate) fn concurrency(&self) -> Option<i64> {
        self.fields.get("concurrency")?.as_i64()
    }

    fn port(&self, name: &str) -> Option<u16> {
        u16::try_from(self.fields.get(name)?.as_u64()?).ok()
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.fields.get(name)?.as_str()
    }
}

fn env_text(fields: &Map<String, Value>) -> String {
    let printed = PROXY_CONFIG.iter().filter_map(|field| {
        let value = fields.get(field.name)?;
        if OMITTED_BY_DEFAULT.contains(&field.name) && DEFAULTS.get(field.name) == Some(value) {
            return None;
        }
        let mut value = Cow::Borrowed(value);
        if field.name == "proxyMetadata"
            && let Value::Object(metadata) = value.to_mut()
        {
            metadata.sort_keys();
        }
        Some((field.name, value))
    });
    let mut text = Vec::with_capacity(256);
    // Strings, numbers and string keys always serialize, to UTF-8.
    drop(serde_json::Serializer::new(&mut text).collect_map(printed));
    text.push(b'\n');
    String::from_utf8(text).unwrap_or_default()
}

/// Returns whether the text is `host:port`; the host may be an IPv6 address in brackets.
fn is_host_port(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0)
}

#[cfg(test)]
mod tests;
