//! The injector's settings: Istio's documents `values`, `mesh` and `config`, and what the process adds to them.
//!
//! The documents have Istio's format, so those of an existing installation work unchanged. Keys that the injector does not
//! read are accepted; every invalid field is reported, all of them together.

mod mesh;
mod namespaces;
mod nodes;
mod proxy_resources;
mod release;
mod templates;
mod values;

use serde_json::{Value, json};

use crate::assertions::CaptureAssertion;
use crate::fields::{FieldErrors, FieldReader};
use crate::template::SharedTemplateData;

pub use crate::fields::FieldError;
pub use crate::proxy_config::ProxyConfig;
pub use mesh::Mesh;
pub use namespaces::{NamespaceFacts, Namespaces};
pub use nodes::Nodes;
pub use proxy_resources::ProxyConfigResources;
pub use release::Release;
#[cfg(test)]
pub(crate) use templates::GATEWAY_CONTROLLER_TEMPLATES;
pub(crate) use templates::TemplateSource;
pub use templates::Templates;
pub use values::{Global, InjectionConfig, Pilot, Proxy, ProxyInit, Values};

/// Whether the sidecar is a native one: an init container with `restartPolicy: Always`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NativeSidecars {
    /// Native. Kubernetes 1.29 and later support it.
    #[default]
    On,
    /// An ordinary container.
    Off,
    /// Native if [`Settings::nodes`] support it.
    ByNodes,
}

/// Kubernetes distribution, as far as injection depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Platform {
    /// Any other.
    #[default]
    Kubernetes,
    /// OpenShift: the proxy's user and group come from annotations of the namespace.
    OpenShift,
}

/// Validated settings of an injector.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Revision written to the pod; empty means `default`.
    pub revision: String,
    /// Default for pods without the annotation `sidecar.istio.io/nativeSidecar`.
    pub native_sidecars: NativeSidecars,
    /// Nodes of the cluster, for [`NativeSidecars::ByNodes`].
    pub nodes: Nodes,
    /// Kubernetes distribution.
    pub platform: Platform,
    /// Namespaces of the cluster: annotations for [`Platform::OpenShift`], labels for [`Self::assertions`].
    pub namespaces: Namespaces,
    /// What the capture of created pods must be.
    pub assertions: Vec<CaptureAssertion>,
    /// Compliance policy passed to the proxy (`fips-140-2`, `fips-140-3`); empty for none.
    pub compliance_policy: String,
    /// Document `values`.
    pub values: Values,
    /// Document `mesh`.
    pub mesh: Mesh,
    /// Release of Istio that the documents belong to.
    pub release: Release,
    /// `ProxyConfig` resources of the cluster.
    pub proxy_configs: ProxyConfigResources,
    /// Policy, selectors and templates, from `config` and `values`.
    pub injection: InjectionConfig,
    /// Keys of the documents that have no effect and look like mistakes, and fields in templates that do not exist.
    pub ignored_keys: Vec<FieldError>,
}

/// The documents of an Istio installation.
#[derive(Debug, Clone, Copy, Default)]
pub struct Documents<'a> {
    /// ConfigMap `istio-sidecar-injector`, key `values`.
    pub values: Option<&'a Value>,
    /// ConfigMap `istio`, key `mesh`.
    pub mesh: Option<&'a Value>,
    /// ConfigMap `istio-sidecar-injector`, key `config`: policy, selectors and templates. Istio's chart renders it from the
    /// values; a key that is in both is read from here.
    pub config: Option<&'a Value>,
}

impl Settings {
    /// Returns the document `values` that is used if none is given.
    pub fn builtin_values() -> Value {
        values::builtin()
    }

    /// Reads `values` and `mesh`, see [`Self::from_documents`].
    ///
    /// # Errors
    /// Every invalid field.
    pub fn from_values_and_mesh(values: Option<&Value>, mesh: Option<&Value>) -> Result<Self, Vec<FieldError>> {
        Self::from_documents(Documents { values, mesh, config: None })
    }

    /// Reads the documents. If `values` is missing, [`Self::builtin_values`] stands in, which turns CNI mode on; values that are
    /// given do not turn it on by default, as in Istio.
    ///
    /// The revision is that of the values. What no document contains (`native_sidecars`, `nodes`, `platform`,
    /// `namespaces`, `assertions`, `compliance_policy`, `proxy_configs`) has its default, and the caller sets it.
    ///
    /// # Errors
    /// Every invalid field, and every template that cannot be compiled, with its line.
    pub fn from_documents(documents: Documents<'_>) -> Result<Self, Vec<FieldError>> {
        let builtin;
        let values = if let Some(values) = documents.values {
            values
        } else {
            builtin = values::builtin();
            &builtin
        };
        let (value_errors, mesh_errors, config_errors) =
            (FieldErrors::new("values"), FieldErrors::new("mesh"), FieldErrors::new("config"));
        let values_root = FieldReader::root(Some(values), &value_errors);
        let mesh_root = FieldReader::root(documents.mesh, &mesh_errors);
        let config_root = FieldReader::root(documents.config, &config_errors);
        reject_config_map_object(&values_root, "istio-sidecar-injector", "values");
        reject_config_map_object(&mesh_root, "istio", "mesh");
        reject_config_map_object(&config_root, "istio-sidecar-injector", "config");
        let typed_values = Values::read(&values_root);
        let mut settings = Self {
            revision: typed_values.revision.clone(),
            native_sidecars: NativeSidecars::default(),
            nodes: Nodes::default(),
            platform: Platform::default(),
            namespaces: Namespaces::default(),
            assertions: Vec::new(),
            compliance_policy: String::new(),
            injection: InjectionConfig::read(&values_root, &config_root),
            release: Release::of(&typed_values.global.tag, values),
            values: typed_values,
            mesh: Mesh::read(&mesh_root),
            proxy_configs: ProxyConfigResources::default(),
            ignored_keys: Vec::new(),
        };
        let mesh = &settings.mesh;
        settings.injection.templates.set_shared_data(|| {
            SharedTemplateData::new(values, &mesh.effective_fields(documents.mesh), &mesh.default_config)
        });
        settings.ignored_keys = value_errors.ignored_keys(Some(values), &[]);
        settings.ignored_keys.extend(mesh_errors.ignored_keys(documents.mesh, &mesh::UNREAD_KEYS));
        settings.ignored_keys.extend(config_errors.ignored_keys(documents.config, &["templates"]));
        settings.ignored_keys.extend(settings.injection.templates.warnings());
        let mut errors = value_errors.into_errors();
        errors.append(&mut mesh_errors.into_errors());
        errors.append(&mut config_errors.into_errors());
        // A value that several readers visit (`global`) is reported once.
        errors.sort_by(|a, b| (b.document, &a.path).cmp(&(a.document, &b.path)));
        errors.dedup();
        if errors.is_empty() { Ok(settings) } else { Err(errors) }
    }

    /// Returns whether the sidecar is native in a pod without an annotation about it; `node` is `spec.nodeName` of the pod.
    pub fn is_native_on(&self, node: Option<&str>) -> bool {
        match self.native_sidecars {
            NativeSidecars::On => true,
            NativeSidecars::Off => false,
            NativeSidecars::ByNodes => self.nodes.can_run_native_sidecars(node),
        }
    }
}

/// Adds an error if a document is a whole ConfigMap, which has none of the document's keys and would leave every default.
fn reject_config_map_object(root: &FieldReader<'_>, config_map: &str, key: &str) {
    if root.raw().is_some_and(|document| document.get("apiVersion").is_some() && document.get("kind").is_some()) {
        root.add_error(format!(
            "is a Kubernetes object, not the document in it; extract the document: \
             kubectl -n istio-system get configmap {config_map} -o jsonpath='{{.data.{key}}}'"
        ));
    }
}

/// Turns CNI mode on or off in a `values` document, under the key that its release has. What is no map stays, and is reported later.
pub fn set_cni_mode(values: &mut Value, enabled: bool) {
    let is_before_1_22 = values.get("istio_cni").is_some() && values.pointer("/pilot/cni").is_none();
    let path = if is_before_1_22 { &["istio_cni", "enabled"][..] } else { &["pilot", "cni", "enabled"] };
    let mut place = values;
    for key in path {
        if place.is_null() {
            *place = json!({});
        }
        let Some(map) = place.as_object_mut() else { return };
        place = map.entry(*key).or_insert(Value::Null);
    }
    *place = enabled.into();
}

#[cfg(test)]
mod tests;
