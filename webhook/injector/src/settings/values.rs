//! The document `values` of Istio's injector, as far as the injector reads it.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::templates::Templates;
use crate::fields::FieldReader;
use crate::selector::Selector;

/// Images of a public Istio release, used if the values name none.
const HUB: &str = "docker.io/istio";
const TAG: &str = "1.28.0";

/// The installation values that the injector reads.
#[derive(Debug, Clone, PartialEq)]
pub struct Values {
    /// `global`.
    pub global: Global,
    /// `global.proxy`.
    pub proxy: Proxy,
    /// `global.proxy_init`.
    pub proxy_init: ProxyInit,
    /// `pilot`.
    pub pilot: Pilot,
    /// `gateways.securityContext`: pod security context of gateways; empty for none.
    pub gateway_security_context: Map<String, Value>,
    /// `revision`: revision of the control plane, part of its address. Empty for none.
    pub revision: String,
    /// `sidecarInjectorWebhook.rewriteAppHTTPProbe`: whether probes of applications are rewritten to go through the agent.
    pub rewrite_probes: bool,
}

/// `global` of the values document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Global {
    /// Registry and path of the images.
    pub hub: String,
    /// Tag of the images.
    pub tag: String,
    /// Image type (`distroless`, `debug`); empty for none.
    pub variant: String,
    /// `imagePullPolicy` of the injected containers; empty leaves it out.
    pub image_pull_policy: String,
    /// Secrets added to the pod's `imagePullSecrets`.
    pub image_pull_secrets: Vec<String>,
    /// Namespace of the control plane.
    pub istio_namespace: String,
    /// Issuer of certificates: `istiod`, `kubernetes`, ...
    pub pilot_cert_provider: String,
    /// Address of the certificate authority; empty for the control plane.
    pub ca_address: String,
    /// Name of the certificate authority.
    pub ca_name: String,
    /// Name of the mesh; empty for its trust domain.
    pub mesh_id: String,
    /// Network of the cluster; empty for none.
    pub network: String,
    /// `multiCluster.clusterName`; empty for none.
    pub cluster_name: String,
    /// Whether logs are JSON.
    pub log_as_json: bool,
    /// `logging.level` of the agent.
    pub logging_level: String,
    /// Whether the certificates of a Secret are mounted.
    pub mount_mtls_certs: bool,
    /// Whether `istio-init` uses nftables.
    pub native_nftables: bool,
    /// `sts.servicePort`; 0 for none.
    pub sts_port: u16,
    /// `sds.token.aud`: audience of the token that authenticates the proxy to the control plane.
    pub token_audience: String,
    /// Name of the ConfigMap or ClusterTrustBundle with the root certificate.
    pub trust_bundle_name: Option<String>,
    /// Trust domain, used if the mesh configuration has none.
    pub trust_domain: Option<String>,
}

/// `global.proxy` of the values document.
#[derive(Debug, Clone, PartialEq)]
pub struct Proxy {
    /// Name of the image; a complete reference if it contains `/`.
    pub image: String,
    /// DNS domain of the cluster.
    pub cluster_domain: String,
    /// `--proxyLogLevel`.
    pub log_level: String,
    /// `--proxyComponentLogLevel`.
    pub component_log_level: String,
    /// Outbound destinations that are captured.
    pub include_ip_ranges: String,
    /// Outbound destinations that are not captured.
    pub exclude_ip_ranges: String,
    /// Inbound ports that are captured.
    pub include_inbound_ports: String,
    /// Inbound ports that are not captured.
    pub exclude_inbound_ports: String,
    /// Outbound ports that are captured for every destination.
    pub include_outbound_ports: String,
    /// Outbound ports that are not captured.
    pub exclude_outbound_ports: String,
    /// Port of the agent's status server; 0 disables the proxy's probes.
    pub status_port: u16,
    /// `initialDelaySeconds` of the readiness probe.
    pub readiness_initial_delay: u32,
    /// `periodSeconds` of the readiness probe.
    pub readiness_period: u32,
    /// `failureThreshold` of the readiness probe.
    pub readiness_failures: u32,
    /// `failureThreshold` of the startup probe; `None` for no startup probe.
    pub startup_failures: Option<u32>,
    /// `resources` of the container without nulls; empty for none.
    pub resources: Map<String, Value>,
    /// Whether the containers are privileged.
    pub privileged: bool,
    /// `seccompProfile` of the containers; empty for none.
    pub seccomp_profile: Map<String, Value>,
    /// Tracer (`datadog`, `lightstep`, ...).
    pub tracer: String,
    /// `--outlierLogPath`; empty for none.
    pub outlier_log_path: String,
    /// `lifecycle` of the proxy container.
    pub lifecycle: Option<Value>,
    /// Whether the proxy starts before the application.
    pub hold_application: bool,
    /// `capNetBindService`: `true`, or empty.
    pub cap_net_bind_service: String,
}

/// `global.proxy_init` of the values document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyInit {
    /// Name of the image; a complete reference if it contains `/`.
    pub image: String,
    /// Whether `istio-init` applies its rules even if rules exist.
    pub force_apply: bool,
}

/// `pilot` of the values document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pilot {
    /// `cni.enabled`, or `istio_cni.enabled` of charts up to 1.21: whether a CNI plugin installs the capture rules, not an init
    /// container.
    pub cni_enabled: bool,
    /// `cni.provider`; for `multus`, pods get an annotation with the plugin's network.
    pub cni_provider: String,
    /// `env.ENABLE_CLUSTER_TRUST_BUNDLE_API`.
    pub cluster_trust_bundle: bool,
    /// `crlConfigMapName`.
    pub crl_config_map: String,
}

/// Returns the document that is used if none is given: Istio's defaults with CNI mode on and the images of a public release.
pub(super) fn builtin() -> Value {
    json!({
        "global": {
            "hub": HUB,
            "tag": TAG,
            "proxy": {
                "autoInject": "enabled",
                "startupProbe": {"enabled": true, "failureThreshold": 600},
                "resources": {
                    "requests": {"cpu": "100m", "memory": "128Mi"},
                    "limits": {"cpu": "2000m", "memory": "1024Mi"},
                },
            },
        },
        "pilot": {"cni": {"enabled": true}},
    })
}

impl Values {
    /// Reads the document with the defaults of Istio's chart. A missing `resources` or `startupProbe` means none, since a
    /// `null` in the chart's values arrives like that.
    pub(super) fn read(root: &FieldReader<'_>) -> Self {
        let global = root.field("global");
        let pilot = root.field("pilot");
        Self {
            proxy: Proxy::read(&global.field("proxy")),
            proxy_init: ProxyInit::read(&global.field("proxy_init")),
            global: Global::read(&global),
            pilot: Pilot::read(&pilot, &root.field("istio_cni")),
            gateway_security_context: root
                .field("gateways")
                .field("securityContext")
                .object()
                .cloned()
                .unwrap_or_default(),
            revision: root.field("revision").string().unwrap_or_default(),
            rewrite_probes: root.field("sidecarInjectorWebhook").field("rewriteAppHTTPProbe").bool().unwrap_or(true),
        }
    }
}

impl Global {
    fn read(node: &FieldReader<'_>) -> Self {
        Self {
            hub: text(node, "hub", HUB),
            tag: node.field("tag").string_or_number().unwrap_or_else(|| TAG.to_owned()),
            variant: text(node, "variant", ""),
            image_pull_policy: text(node, "imagePullPolicy", ""),
            image_pull_secrets: pull_secrets(&node.field("imagePullSecrets")),
            istio_namespace: text(node, "istioNamespace", "istio-system"),
            pilot_cert_provider: text(node, "pilotCertProvider", "istiod"),
            ca_address: text(node, "caAddress", ""),
            ca_name: text(node, "caName", ""),
            mesh_id: text(node, "meshID", ""),
            network: text(node, "network", ""),
            cluster_name: text(&node.field("multiCluster"), "clusterName", ""),
            log_as_json: flag(node, "logAsJson"),
            logging_level: text(&node.field("logging"), "level", "default:info"),
            mount_mtls_certs: flag(node, "mountMtlsCerts"),
            native_nftables: flag(node, "nativeNftables"),
            sts_port: node.field("sts").field("servicePort").port().unwrap_or(0),
            token_audience: text(&node.field("sds").field("token"), "aud", "istio-ca"),
            trust_bundle_name: node.field("trustBundleName").string().filter(|name| !name.is_empty()),
            trust_domain: node.field("trustDomain").string().filter(|name| !name.is_empty()),
        }
    }
}

impl Proxy {
    fn read(node: &FieldReader<'_>) -> Self {
        let startup = node.field("startupProbe");
        let startup_failures = startup.field("failureThreshold").u32().unwrap_or(600);
        Self {
            image: text(node, "image", "proxyv2"),
            cluster_domain: text(node, "clusterDomain", "cluster.local"),
            log_level: text(node, "logLevel", "warning"),
            component_log_level: text(node, "componentLogLevel", "misc:error"),
            include_ip_ranges: text(node, "includeIPRanges", "*"),
            exclude_ip_ranges: text(node, "excludeIPRanges", ""),
            include_inbound_ports: ports(node, "includeInboundPorts", "*"),
            exclude_inbound_ports: ports(node, "excludeInboundPorts", ""),
            include_outbound_ports: ports(node, "includeOutboundPorts", ""),
            exclude_outbound_ports: ports(node, "excludeOutboundPorts", ""),
            status_port: node.field("statusPort").port().unwrap_or(15020),
            readiness_initial_delay: node.field("readinessInitialDelaySeconds").u32().unwrap_or(0),
            readiness_period: node.field("readinessPeriodSeconds").u32().unwrap_or(15),
            readiness_failures: node.field("readinessFailureThreshold").u32().unwrap_or(4),
            startup_failures: startup.field("enabled").bool().unwrap_or(false).then_some(startup_failures),
            resources: node.field("resources").object().map(without_nulls).unwrap_or_default(),
            privileged: flag(node, "privileged"),
            seccomp_profile: node.field("seccompProfile").object().cloned().unwrap_or_default(),
            tracer: text(node, "tracer", "none"),
            outlier_log_path: text(node, "outlierLogPath", ""),
            lifecycle: node
                .field("lifecycle")
                .object()
                .filter(|lifecycle| !lifecycle.is_empty())
                .cloned()
                .map(Value::Object),
            hold_application: flag(node, "holdApplicationUntilProxyStarts"),
            cap_net_bind_service: match node.field("capNetBindService").raw() {
                Some(Value::Bool(true)) => "true".to_owned(),
                Some(Value::Bool(false)) | None => String::new(),
                Some(_) => text(node, "capNetBindService", ""),
            },
        }
    }
}

impl ProxyInit {
    fn read(node: &FieldReader<'_>) -> Self {
        Self { image: text(node, "image", "proxyv2"), force_apply: flag(node, "forceApplyIptables") }
    }
}

impl Pilot {
    fn read(node: &FieldReader<'_>, istio_cni: &FieldReader<'_>) -> Self {
        let cni = node.field("cni");
        Self {
            cni_enabled: flag(&cni, "enabled") || flag(istio_cni, "enabled"),
            cni_provider: text(&cni, "provider", "default"),
            cluster_trust_bundle: flag(&node.field("env"), "ENABLE_CLUSTER_TRUST_BUNDLE_API"),
            crl_config_map: text(node, "crlConfigMapName", "istio-ca-crl"),
        }
    }
}

fn text(node: &FieldReader<'_>, key: &str, default: &str) -> String {
    node.field(key).string().unwrap_or_else(|| default.to_owned())
}

fn flag(node: &FieldReader<'_>, key: &str) -> bool {
    node.field(key).bool().unwrap_or(false)
}

/// Reads a list of ports as a string; a single port may be a number.
fn ports(node: &FieldReader<'_>, key: &str, default: &str) -> String {
    node.field(key).string_or_number().unwrap_or_else(|| default.to_owned())
}

/// Reads names of secrets; each is a string or an object `{name: x}`.
fn pull_secrets(node: &FieldReader<'_>) -> Vec<String> {
    let mut names = Vec::new();
    for (index, item) in node.list().iter().enumerate() {
        match item.as_str().or_else(|| item.get("name").and_then(Value::as_str)) {
            Some(name) => names.push(name.to_owned()),
            None => node.errors().add(&format!("{}[{index}]", node.path()), "must be the name of a Secret"),
        }
    }
    names
}

/// Returns the object without nulls, and without lists and objects that become empty by that.
fn without_nulls(object: &Map<String, Value>) -> Map<String, Value> {
    let mut kept = Map::new();
    for (key, value) in object {
        match value {
            Value::Null => {}
            Value::Object(inner) => {
                let inner = without_nulls(inner);
                if !inner.is_empty() {
                    kept.insert(key.clone(), Value::Object(inner));
                }
            }
            Value::Array(items) => {
                let items: Vec<Value> = items.iter().filter(|item| !item.is_null()).cloned().collect();
                if !items.is_empty() {
                    kept.insert(key.clone(), Value::Array(items));
                }
            }
            other => drop(kept.insert(key.clone(), other.clone())),
        }
    }
    kept
}

/// Policy, selectors and templates of the injector, from `config`, `sidecarInjectorWebhook` and `global.proxy.autoInject`.
#[derive(Debug, Clone, PartialEq)]
pub struct InjectionConfig {
    /// `enabled` or `disabled`; any other value injects nothing.
    pub policy: String,
    /// Templates of pods that request none.
    pub default_templates: Vec<String>,
    /// Template names that expand to several templates.
    pub aliases: BTreeMap<String, Vec<String>>,
    /// Label selectors of pods that are not injected, or the error of an invalid one.
    pub never_inject: Vec<Result<Selector, String>>,
    /// Label selectors of pods that are injected despite the policy, or the error of an invalid one.
    pub always_inject: Vec<Result<Selector, String>>,
    /// Annotations added to every injected pod.
    pub injected_annotations: BTreeMap<String, String>,
    /// Templates of the documents.
    pub templates: Templates,
}

/// Function in `template` of charts since 1.8, which makes injectors before 1.8 fail.
const VERSION_MISMATCH: &str = "Template_Version_And_Istio_Version_Mismatched";

impl InjectionConfig {
    /// Reads each key from `config`, or else from the values.
    pub(super) fn read(root: &FieldReader<'_>, config: &FieldReader<'_>) -> Self {
        let webhook = root.field("sidecarInjectorWebhook");
        let field = |key: &str| if config.field(key).raw().is_some() { config.field(key) } else { webhook.field(key) };
        let mut default_templates = field("defaultTemplates").string_list();
        if default_templates.is_empty() {
            default_templates.push("sidecar".to_owned());
        }
        let aliases_field = field("aliases");
        let aliases = aliases_field.object().into_iter().flatten();
        let policy = config.field("policy").string();
        let template = config.field("template");
        if template.string().is_some_and(|text| !text.contains(VERSION_MISMATCH)) {
            template.add_error(
                "is a template of Istio before 1.8, which is not supported; templates are read from `templates`",
            );
        }
        Self {
            policy: policy.unwrap_or_else(|| text(&root.field("global").field("proxy"), "autoInject", "enabled")),
            default_templates,
            aliases: aliases.map(|(name, _)| (name.clone(), aliases_field.field(name).string_list())).collect(),
            never_inject: selectors(&field("neverInjectSelector")),
            always_inject: selectors(&field("alwaysInjectSelector")),
            injected_annotations: field("injectedAnnotations").string_map(),
            templates: Templates::read(&[webhook.field("templates"), config.field("templates")]),
        }
    }
}

fn selectors(list: &FieldReader<'_>) -> Vec<Result<Selector, String>> {
    list.list().iter().map(Selector::parse).collect()
}
