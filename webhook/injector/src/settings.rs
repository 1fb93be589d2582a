//! What the administrator configured: Istio's `values` and `mesh` documents and a few settings of the process.
//!
//! The documents are Istio's own (ConfigMap `istio-sidecar-injector` key `values`, ConfigMap `istio` key `mesh`), so those of an
//! existing installation work unchanged. Keys that the injector does not read are tolerated; keys that it reads and cannot
//! understand are refused, all of them at once.

mod mesh;
mod namespaces;
mod nodes;
mod proxy_config;
mod proxy_resources;
mod reader;
mod schema;
mod templates;
mod values;

use serde_json::Value;

use reader::{Findings, Node};

use crate::inject::template::data::Installation;

pub use mesh::Mesh;
pub use namespaces::Namespaces;
pub use nodes::Nodes;
pub use proxy_config::ProxyConfig;
pub use proxy_resources::ProxyConfigResources;
pub(crate) use templates::Source as TemplateSource;
pub use templates::Templates;
pub use values::{Global, InjectionConfig, Pilot, Proxy, ProxyInit, Values};

/// Why a settings document was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{document}: {path}: {reason}")]
pub struct SettingsError {
    /// `values`, `mesh` or `config`.
    pub document: &'static str,
    /// Where in it.
    pub path: String,
    /// What is wrong.
    pub reason: String,
}

impl SettingsError {
    /// The message without the document's name.
    pub(crate) fn short(&self) -> String {
        if self.path == "." { self.reason.clone() } else { format!("{}: {}", self.path, self.reason) }
    }
}

/// Whether the sidecar is an init container with `restartPolicy: Always`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NativeSidecars {
    /// Native. Kubernetes 1.29 and later run it; Istio's own default turns on from 1.33.
    #[default]
    On,
    /// An ordinary container.
    Off,
    /// Native where the nodes of the cluster can run it, by [`Settings::nodes`].
    ByNodes,
}

/// The kind of cluster, where it makes a difference to the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Platform {
    /// Any Kubernetes.
    #[default]
    Kubernetes,
    /// OpenShift: user and group of the proxy come from the ranges of the namespace.
    OpenShift,
}

/// Resolved settings of an injector.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Revision that is written to the pod; empty means `default`.
    pub revision: String,
    /// Default for pods that do not say it themselves.
    pub native_sidecars: NativeSidecars,
    /// Nodes of the cluster, for [`NativeSidecars::ByNodes`].
    pub nodes: Nodes,
    /// Kind of cluster.
    pub platform: Platform,
    /// Namespaces of the cluster, for [`Platform::OpenShift`].
    pub namespaces: Namespaces,
    /// Compliance policy of the control plane (`fips-140-2`, `fips-140-3`, ...), handed on to the proxy; empty for none.
    pub compliance_policy: String,
    /// The `values` document.
    pub values: Values,
    /// The `mesh` document.
    pub mesh: Mesh,
    /// `ProxyConfig` resources of the cluster.
    pub proxy_configs: ProxyConfigResources,
    /// Who is injected, and with what.
    pub injection: InjectionConfig,
    /// Keys of the documents that have no effect and look like mistakes.
    pub passed_over: Vec<SettingsError>,
}

/// Keys of the document `config` that are not read.
const CONFIG_KEYS: [&str; 1] = ["template"];

/// Keys of the document `mesh` (istio/api `mesh/v1alpha1/config.proto`) that are not read.
const MESH_KEYS: [&str; 46] = [
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

/// The documents of an installation.
#[derive(Debug, Clone, Copy, Default)]
pub struct Documents<'a> {
    /// ConfigMap `istio-sidecar-injector`, key `values`.
    pub values: Option<&'a Value>,
    /// ConfigMap `istio`, key `mesh`.
    pub mesh: Option<&'a Value>,
    /// ConfigMap `istio-sidecar-injector`, key `config`: policy, selectors and templates. What it says wins over the values,
    /// from which Istio's chart makes it.
    pub config: Option<&'a Value>,
}

impl Settings {
    /// The document `values` that stands in where none is given.
    pub fn builtin_values() -> Value {
        values::builtin()
    }

    /// Settings from `values` and `mesh` alone, see [`Self::from_all`].
    ///
    /// # Errors
    /// Every field that is ill-typed, with its path.
    pub fn from_documents(values: Option<&Value>, mesh: Option<&Value>) -> Result<Self, Vec<SettingsError>> {
        Self::from_all(Documents { values, mesh, config: None })
    }

    /// Settings from documents; those that are missing take the built-in defaults (Istio's, with CNI mode on).
    ///
    /// A document that is given is followed as Istio follows it; in particular it does not turn CNI mode on by itself.
    /// The revision is that of the values; what is no document (`native_sidecars`, `nodes`, `platform`,
    /// `namespaces`, `compliance_policy`, `proxy_configs`) starts at its default and is the caller's to set.
    ///
    /// # Errors
    /// Every field that is ill-typed, with its path, and every template that cannot be rendered, with the line.
    pub fn from_all(documents: Documents<'_>) -> Result<Self, Vec<SettingsError>> {
        let builtin;
        let values = if let Some(values) = documents.values {
            values
        } else {
            builtin = values::builtin();
            &builtin
        };
        let mesh_document = documents.mesh;
        let value_findings = Findings::new("values");
        let values_root = Node::root(Some(values), &value_findings);
        let mesh_findings = Findings::new("mesh");
        let mesh_root = Node::root(mesh_document, &mesh_findings);
        let config_findings = Findings::new("config");
        let config_root = Node::root(documents.config, &config_findings);
        refuse_whole_object(&values_root, "istio-sidecar-injector", "values");
        refuse_whole_object(&mesh_root, "istio", "mesh");
        refuse_whole_object(&config_root, "istio-sidecar-injector", "config");
        let raw_values = values;
        let values = Values::read(&values_root);
        let mut settings = Self {
            revision: values.revision.clone(),
            native_sidecars: NativeSidecars::default(),
            nodes: Nodes::default(),
            platform: Platform::default(),
            namespaces: Namespaces::default(),
            compliance_policy: String::new(),
            injection: InjectionConfig::read(&values_root, &config_root),
            values,
            mesh: Mesh::read(&mesh_root),
            proxy_configs: ProxyConfigResources::default(),
            passed_over: Vec::new(),
        };
        settings.injection.templates.set_installation(|| Installation::new(raw_values, mesh_document, &settings.mesh));
        drop((values_root, mesh_root, config_root));
        settings.passed_over = value_findings.passed_over(Some(raw_values), &[]);
        settings.passed_over.extend(mesh_findings.passed_over(mesh_document, &MESH_KEYS));
        settings.passed_over.extend(config_findings.passed_over(documents.config, &CONFIG_KEYS));
        let mut errors = value_findings.into_errors();
        errors.append(&mut mesh_findings.into_errors());
        errors.append(&mut config_findings.into_errors());
        // Places that several readers pass (`global`) are named once.
        errors.sort_by(|a, b| (b.document, &a.path).cmp(&(a.document, &b.path)));
        errors.dedup();
        if errors.is_empty() { Ok(settings) } else { Err(errors) }
    }
}

impl Settings {
    /// Whether the sidecar of a pod that does not say it itself is native; `node` is the node that the pod names.
    pub fn native_for(&self, node: Option<&str>) -> bool {
        match self.native_sidecars {
            NativeSidecars::On => true,
            NativeSidecars::Off => false,
            NativeSidecars::ByNodes => self.nodes.run_native_sidecars(node),
        }
    }
}

/// A whole ConfigMap has none of the keys, and every default would hold without a word.
fn refuse_whole_object(root: &Node<'_>, config_map: &str, key: &str) {
    if root.raw().is_some_and(|document| document.get("apiVersion").is_some() && document.get("kind").is_some()) {
        root.refuse(format!(
            "this is a Kubernetes object, not what it carries; take the document out of it: \
             kubectl -n istio-system get configmap {config_map} -o jsonpath='{{.data.{key}}}'"
        ));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn defaults_are_istios_with_cni_mode_on() {
        let settings = Settings::from_documents(None, None).unwrap();
        assert!(settings.values.pilot.cni_enabled);
        assert_eq!(settings.values.global.hub, "docker.io/istio");
        assert_eq!(settings.values.proxy.status_port, 15020);
        assert_eq!(settings.values.proxy.startup_failures, Some(600));
        assert_eq!(settings.values.proxy.resources["limits"], json!({"cpu": "2000m", "memory": "1024Mi"}));
        assert_eq!(settings.mesh.trust_domain, "cluster.local");
        assert_eq!(settings.injection.policy, "enabled");
        assert_eq!(settings.injection.default_templates, ["sidecar"]);
    }

    #[test]
    fn a_given_document_does_not_turn_cni_mode_on() {
        let settings = Settings::from_documents(Some(&json!({"global": {"tag": 1.5}})), None).unwrap();
        assert!(!settings.values.pilot.cni_enabled);
        assert_eq!(settings.values.global.tag, "1.5");
    }

    #[test]
    fn null_counts_as_absent_and_unknown_keys_are_tolerated() {
        let values = json!({
            "global": {"proxy": {"resources": {"limits": {"cpu": null}, "requests": {"cpu": "0", "memory": null}}, "logLevel": null}},
            "gateways": null, "somethingElse": [1],
        });
        let settings = Settings::from_documents(Some(&values), None).unwrap();
        assert_eq!(Value::Object(settings.values.proxy.resources), json!({"requests": {"cpu": "0"}}));
        assert_eq!(settings.values.proxy.log_level, "warning");
    }

    #[test]
    fn refuses_every_ill_typed_key_of_both_documents_with_its_path() {
        let values = json!({"global": {"hub": 5, "proxy": {"statusPort": 70000, "privileged": "maybe"}, "imagePullSecrets": [1]}});
        let mesh = json!({"defaultConfig": {"concurrency": "x"}, "proxyListenPort": []});
        let errors = Settings::from_documents(Some(&values), Some(&mesh)).unwrap_err();
        let paths: Vec<&str> = errors.iter().map(|error| error.path.as_str()).collect();
        let want = [
            "global.hub",
            "global.imagePullSecrets[0]",
            "global.proxy.privileged",
            "global.proxy.statusPort",
            "defaultConfig.concurrency",
            "proxyListenPort",
        ];
        assert_eq!(paths, want);
        assert_eq!(errors[0].to_string(), "values: global.hub: must be a string, found a number (5)");
    }

    #[test]
    fn a_document_that_is_no_object_is_refused_once() {
        let errors = Settings::from_documents(Some(&json!([])), None).unwrap_err();
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert_eq!(errors[0].to_string(), "values: .: must be an object, found a list");
    }

    #[test]
    fn whole_objects_are_refused_with_the_way_to_what_they_carry() {
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"values": "{}"}});
        let errors = Settings::from_documents(Some(&object), Some(&object)).unwrap_err();
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(texts.len(), 2, "{texts:?}");
        assert!(texts[0].contains("get configmap istio-sidecar-injector -o jsonpath='{.data.values}'"), "{texts:?}");
        assert!(texts[1].contains("get configmap istio -o jsonpath='{.data.mesh}'"), "{texts:?}");
    }
}
