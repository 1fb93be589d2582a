//! The `values` document of Istio's injector, reduced to the keys that decide what a pod gets.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::reader::Node;
use super::templates::Templates;
use crate::inject::selector::Selector;

/// Images of a public Istio release, for installations that name none.
const HUB: &str = "docker.io/istio";
const TAG: &str = "1.28.0";

/// What the injector reads of Istio's installation values. Names follow the document.
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
    /// `gateways.securityContext`: pod security context of gateways; empty is none.
    pub gateway_security_context: Map<String, Value>,
    /// `revision`: revision of the control plane, part of its address. Empty for none.
    pub revision: String,
    /// `sidecarInjectorWebhook.rewriteAppHTTPProbe`: whether probes of applications go through the agent.
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
    /// Names of secrets that are added to the pod.
    pub image_pull_secrets: Vec<String>,
    /// Namespace of the control plane.
    pub istio_namespace: String,
    /// Who signs certificates: `istiod`, `kubernetes`, ...
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
    /// Whether certificates of a secret are mounted.
    pub mount_mtls_certs: bool,
    /// Whether `istio-init` uses nftables.
    pub native_nftables: bool,
    /// `sts.servicePort`, 0 for none.
    pub sts_port: u16,
    /// `sds.token.aud`: audience of the token that is shown to the control plane.
    pub token_audience: String,
    /// Name of the ConfigMap or trust bundle that holds the root certificate.
    pub trust_bundle_name: Option<String>,
    /// Trust domain, where the mesh configuration has none.
    pub trust_domain: Option<String>,
}

/// `global.proxy` of the values document.
#[derive(Debug, Clone, PartialEq)]
pub struct Proxy {
    /// Name of the image, or a whole reference where it has a `/`.
    pub image: String,
    /// DNS domain of the cluster.
    pub cluster_domain: String,
    /// `--proxyLogLevel`.
    pub log_level: String,
    /// `--proxyComponentLogLevel`.
    pub component_log_level: String,
    /// Captured outbound destinations.
    pub include_ip_ranges: String,
    /// Outbound destinations that are not captured.
    pub exclude_ip_ranges: String,
    /// Captured inbound ports.
    pub include_inbound_ports: String,
    /// Inbound ports that are not captured.
    pub exclude_inbound_ports: String,
    /// Outbound ports captured whatever the destination.
    pub include_outbound_ports: String,
    /// Outbound ports that are not captured.
    pub exclude_outbound_ports: String,
    /// Port of the agent's status server; 0 for no probes.
    pub status_port: u16,
    /// Readiness probe: seconds before the first one.
    pub readiness_initial_delay: u32,
    /// Readiness probe: seconds between two.
    pub readiness_period: u32,
    /// Readiness probe: failures until not ready.
    pub readiness_failures: u32,
    /// Startup probe: failures until the container is restarted; `None` for no startup probe.
    pub startup_failures: Option<u32>,
    /// Resources as in a container, nulls removed; empty for none.
    pub resources: Map<String, Value>,
    /// Whether the containers are privileged.
    pub privileged: bool,
    /// `seccompProfile` of the containers; empty for none.
    pub seccomp_profile: Map<String, Value>,
    /// Tracer (`datadog`, `lightstep`, ...).
    pub tracer: String,
    /// `--outlierLogPath`; empty for none.
    pub outlier_log_path: String,
    /// `lifecycle` of the proxy container, as the administrator wrote it.
    pub lifecycle: Option<Value>,
    /// Whether the proxy starts before the application.
    pub hold_application: bool,
    /// `capNetBindService`, as text.
    pub cap_net_bind_service: String,
}

/// `global.proxy_init` of the values document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyInit {
    /// Name of the image, or a whole reference where it has a `/`.
    pub image: String,
    /// Whether `istio-init` applies rules even where some exist.
    pub force_apply: bool,
}

/// `pilot` of the values document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pilot {
    /// `cni.enabled`: a CNI plugin captures traffic, not an init container.
    pub cni_enabled: bool,
    /// `cni.provider`: `multus` makes pods ask for the plugin.
    pub cni_provider: String,
    /// `env.ENABLE_CLUSTER_TRUST_BUNDLE_API`.
    pub cluster_trust_bundle: bool,
    /// `crlConfigMapName`.
    pub crl_config_map: String,
}

/// Document that stands in where none is given: what Istio's chart renders, with CNI mode on and the images of a public release.
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
    /// Reads the document. Keys that are missing take the values that Istio's chart gives them; a missing `resources` or
    /// `startupProbe` is none, since that is how a `null` in the chart's values arrives here.
    pub(super) fn read(root: &Node<'_>) -> Self {
        let global = root.at("global");
        let pilot = root.at("pilot");
        Self {
            proxy: Proxy::read(&global.at("proxy")),
            proxy_init: ProxyInit::read(&global.at("proxy_init")),
            global: Global::read(&global),
            pilot: Pilot::read(&pilot),
            gateway_security_context: root.at("gateways").at("securityContext").object().cloned().unwrap_or_default(),
            revision: root.at("revision").text().unwrap_or_default(),
            rewrite_probes: root.at("sidecarInjectorWebhook").at("rewriteAppHTTPProbe").flag().unwrap_or(true),
        }
    }
}

impl Global {
    fn read(node: &Node<'_>) -> Self {
        Self {
            hub: text(node, "hub", HUB),
            tag: node.at("tag").text_or_number().unwrap_or_else(|| TAG.to_owned()),
            variant: text(node, "variant", ""),
            image_pull_policy: text(node, "imagePullPolicy", ""),
            image_pull_secrets: pull_secrets(&node.at("imagePullSecrets")),
            istio_namespace: text(node, "istioNamespace", "istio-system"),
            pilot_cert_provider: text(node, "pilotCertProvider", "istiod"),
            ca_address: text(node, "caAddress", ""),
            ca_name: text(node, "caName", ""),
            mesh_id: text(node, "meshID", ""),
            network: text(node, "network", ""),
            cluster_name: text(&node.at("multiCluster"), "clusterName", ""),
            log_as_json: flag(node, "logAsJson"),
            logging_level: text(&node.at("logging"), "level", "default:info"),
            mount_mtls_certs: flag(node, "mountMtlsCerts"),
            native_nftables: flag(node, "nativeNftables"),
            sts_port: node.at("sts").at("servicePort").port().unwrap_or(0),
            token_audience: text(&node.at("sds").at("token"), "aud", "istio-ca"),
            trust_bundle_name: node.at("trustBundleName").text().filter(|name| !name.is_empty()),
            trust_domain: node.at("trustDomain").text().filter(|name| !name.is_empty()),
        }
    }
}

impl Proxy {
    fn read(node: &Node<'_>) -> Self {
        let startup = node.at("startupProbe");
        let startup_failures = startup.at("failureThreshold").number_u32().unwrap_or(600);
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
            status_port: node.at("statusPort").port().unwrap_or(15020),
            readiness_initial_delay: node.at("readinessInitialDelaySeconds").number_u32().unwrap_or(0),
            readiness_period: node.at("readinessPeriodSeconds").number_u32().unwrap_or(15),
            readiness_failures: node.at("readinessFailureThreshold").number_u32().unwrap_or(4),
            startup_failures: startup.at("enabled").flag().unwrap_or(false).then_some(startup_failures),
            resources: node.at("resources").object().map(without_nulls).unwrap_or_default(),
            privileged: flag(node, "privileged"),
            seccomp_profile: node.at("seccompProfile").object().cloned().unwrap_or_default(),
            tracer: text(node, "tracer", "none"),
            outlier_log_path: text(node, "outlierLogPath", ""),
            lifecycle: node
                .at("lifecycle")
                .object()
                .filter(|lifecycle| !lifecycle.is_empty())
                .cloned()
                .map(Value::Object),
            hold_application: flag(node, "holdApplicationUntilProxyStarts"),
            cap_net_bind_service: match node.at("capNetBindService").raw() {
                Some(Value::Bool(true)) => "true".to_owned(),
                Some(Value::Bool(false)) | None => String::new(),
                Some(_) => text(node, "capNetBindService", ""),
            },
        }
    }
}

impl ProxyInit {
    fn read(node: &Node<'_>) -> Self {
        Self { image: text(node, "image", "proxyv2"), force_apply: flag(node, "forceApplyIptables") }
    }
}

impl Pilot {
    fn read(node: &Node<'_>) -> Self {
        let cni = node.at("cni");
        Self {
            cni_enabled: flag(&cni, "enabled"),
            cni_provider: text(&cni, "provider", "default"),
            cluster_trust_bundle: flag(&node.at("env"), "ENABLE_CLUSTER_TRUST_BUNDLE_API"),
            crl_config_map: text(node, "crlConfigMapName", "istio-ca-crl"),
        }
    }
}

fn text(node: &Node<'_>, key: &str, default: &str) -> String {
    node.at(key).text().unwrap_or_else(|| default.to_owned())
}

fn flag(node: &Node<'_>, key: &str) -> bool {
    node.at(key).flag().unwrap_or(false)
}

/// A list of ports as text; a single port may be written as a number.
fn ports(node: &Node<'_>, key: &str, default: &str) -> String {
    node.at(key).text_or_number().unwrap_or_else(|| default.to_owned())
}

/// Names of secrets, each as plain text or as the object that a pod would carry (`{name: x}`).
fn pull_secrets(node: &Node<'_>) -> Vec<String> {
    let mut names = Vec::new();
    for (index, item) in node.list().iter().enumerate() {
        match item.as_str().or_else(|| item.get("name").and_then(Value::as_str)) {
            Some(name) => names.push(name.to_owned()),
            None => node.findings().add(&format!("{}[{index}]", node.path()), "must be the name of a secret"),
        }
    }
    names
}

/// The object without nulls and without what becomes empty by that.
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

/// Policy, selectors and annotations of the injector, from `global.proxy.autoInject` and `sidecarInjectorWebhook`.
#[derive(Debug, Clone, PartialEq)]
pub struct InjectionConfig {
    /// `enabled` or `disabled`; anything else injects nothing.
    pub policy: String,
    /// Templates of pods that name none.
    pub default_templates: Vec<String>,
    /// Names that stand for several templates.
    pub aliases: BTreeMap<String, Vec<String>>,
    /// Label selectors of pods that are left alone, or why one is not understood.
    pub never_inject: Vec<Result<Selector, String>>,
    /// Label selectors of pods that are injected whatever the policy; likewise.
    pub always_inject: Vec<Result<Selector, String>>,
    /// Annotations that every injected pod gets.
    pub injected_annotations: BTreeMap<String, String>,
    /// Templates that the documents bring along.
    pub templates: Templates,
}

impl InjectionConfig {
    /// Istio's chart makes the document `config` of the values; where a key is in both, the document counts.
    pub(super) fn read(root: &Node<'_>, config: &Node<'_>) -> Self {
        let webhook = root.at("sidecarInjectorWebhook");
        let pick = |key: &str| if config.at(key).raw().is_some() { config.at(key) } else { webhook.at(key) };
        let mut default_templates = pick("defaultTemplates").texts();
        if default_templates.is_empty() {
            default_templates.push("sidecar".to_owned());
        }
        let aliases_node = pick("aliases");
        let aliases = aliases_node.object().into_iter().flatten();
        let policy = config.at("policy").text();
        Self {
            policy: policy.unwrap_or_else(|| text(&root.at("global").at("proxy"), "autoInject", "enabled")),
            default_templates,
            aliases: aliases.map(|(name, _)| (name.clone(), aliases_node.at(name).texts())).collect(),
            never_inject: selectors(&pick("neverInjectSelector")),
            always_inject: selectors(&pick("alwaysInjectSelector")),
            injected_annotations: pick("injectedAnnotations").text_map(),
            templates: Templates::read(&[webhook.at("templates"), config.at("templates")]),
        }
    }
}

/// Selectors, read once for all pods.
fn selectors(list: &Node<'_>) -> Vec<Result<Selector, String>> {
    list.list().iter().map(Selector::parse).collect()
}
