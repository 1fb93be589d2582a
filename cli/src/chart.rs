//! The built-in Helm chart (`manifests/chart`): renders the objects of an installation from settings.
//!
//! ```text
//! values.yaml ◀─ -f FILE ◀─ shortcuts ◀─ --set ──▶ values ──schema──▶ templates ──▶ objects, in the order of installation
//! ```
//!
//! Helm and kustomize render the same objects (`manifests/compare.py`).

mod schema;
mod set;

use std::collections::BTreeMap;

use clap::Args;
use serde_json::{Map, Value, json};
use weir_injector::TemplateSet;
use weir_injector::selection::configurations::WEBHOOK_NAMESPACE;
use weir_injector::yaml;

use crate::failure::Failure;
use crate::files::InputFile;

/// Version of Kubernetes that manifests are rendered for where no cluster is asked.
const NEWEST_KUBERNETES: &str = "v1.36.0";
const VALUES: &str = include_str!("../../manifests/chart/values.yaml");
const SCHEMA: &str = include_str!("../../manifests/chart/values.schema.json");
const CHART: &str = include_str!("../../manifests/chart/Chart.yaml");

macro_rules! templates {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_str!(concat!("../../manifests/chart/templates/", $name)))),*]
    };
}

/// Templates of objects.
const OBJECTS: [(&str, &str); 10] = templates![
    "admission-policies.yaml",
    "namespaces.yaml",
    "node-agent.yaml",
    "node-rbac.yaml",
    "node-settings.yaml",
    "node-uninstall.yaml",
    "observability.yaml",
    "webhook-configuration.yaml",
    "webhook-rbac.yaml",
    "webhook.yaml",
];
/// Files of the chart that templates read.
const FILES: [(&str, &str); 3] = [
    ("observability/prometheus-rule.yaml", include_str!("../../manifests/chart/observability/prometheus-rule.yaml")),
    ("observability/weir-nodes.json", include_str!("../../manifests/chart/observability/weir-nodes.json")),
    ("observability/weir-webhook.json", include_str!("../../manifests/chart/observability/weir-webhook.json")),
];
/// Templates without objects of an installation.
const PARTIALS: [(&str, &str); 3] = templates!["_helpers.tpl", "NOTES.txt", "helm-test.yaml"];

/// Options of all commands that render the chart.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Settings")]
pub(crate) struct ChartArgs {
    /// Read settings from a values file of the Helm chart, or from standard input with `-`; repeatable, the last one wins
    #[arg(short = 'f', long = "values", alias = "filename", value_name = "FILE")]
    values: Vec<String>,

    #[arg(
        long,
        value_name = "PATH=VALUE",
        help = "Set values in Helm's grammar, separated by commas: a.b=c, a[0]=c, a={x,y}, a=null"
    )]
    set: Vec<String>,

    /// Set values like --set, always as strings
    #[arg(long, value_name = "PATH=VALUE")]
    set_string: Vec<String>,

    /// Namespace of the webhook
    #[arg(short, long, value_name = "NAMESPACE", default_value = WEBHOOK_NAMESPACE)]
    pub(crate) namespace: String,

    /// Revision of the webhook, to run several side by side (`revision`) [default: the default revision]
    #[arg(short, long, value_name = "REVISION", default_value = "", hide_default_value = true)]
    revision: String,

    /// Platform of the nodes, which determines their CNI directories: kubeadm, gke, k3s, openshift and others (`platform`)
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<String>,

    /// Let cert-manager issue the serving certificate (`webhook.certificates: cert-manager`)
    #[arg(long)]
    cert_manager: bool,

    /// Install no node agent; pods get an init container with `NET_ADMIN` instead (`config.values.pilot.cni.enabled: false`)
    #[arg(long)]
    init_container_mode: bool,
}

/// Validated values of an installation.
#[derive(Debug)]
pub(crate) struct Release {
    /// Namespace of the webhook.
    pub(crate) namespace: String,
    pub(crate) values: Value,
    /// Version of Kubernetes that the objects are for, such as `v1.36.0`.
    kube_version: String,
}

impl ChartArgs {
    #[cfg(test)]
    pub(crate) fn of(set: &[&str]) -> Self {
        Self {
            set: set.iter().map(|&setting| setting.to_owned()).collect(),
            namespace: WEBHOOK_NAMESPACE.to_owned(),
            ..Self::default()
        }
    }

    /// Returns the settings for the nodes of a platform.
    pub(crate) fn for_platform(platform: Option<&str>, agent_image: Option<&str>) -> Self {
        Self {
            platform: platform.map(str::to_owned),
            set_string: agent_image
                .map(|image| format!("images.agent={}", image.replace(',', "\\,")))
                .into_iter()
                .collect(),
            namespace: WEBHOOK_NAMESPACE.to_owned(),
            ..Self::default()
        }
    }

    /// Returns the settings of a revision beside Istio, whose configuration it follows; those of the command line count more.
    pub(crate) fn beside_istio(revision: &str, istio_namespace: &str, values: &[String], set: &[String]) -> Self {
        let follow = format!("config.from=istio,config.istioNamespace={istio_namespace},node.enabled=true");
        Self {
            values: values.to_vec(),
            set: std::iter::once(follow).chain(set.iter().cloned()).collect(),
            namespace: WEBHOOK_NAMESPACE.to_owned(),
            revision: revision.to_owned(),
            ..Self::default()
        }
    }

    /// Reads and validates the settings.
    ///
    /// # Errors
    /// A file cannot be read, or settings are invalid; each with its path.
    pub(crate) fn release(&self) -> Result<Release, Failure> {
        let mut values = defaults()?;
        // Helm has --create-namespace for this.
        values["webhook"]["createNamespace"] = true.into();
        for name in &self.values {
            let source = InputFile::from(name.as_str());
            let given = yaml::from_str(&source.read()?)
                .map_err(|error| Failure::findings_in(&source.name(), &[error.to_string()]))?;
            match given {
                Value::Null => {}
                Value::Object(given) => merge(&mut values, given),
                _ => return Err(Failure::findings_in(&source.name(), &["is not a map of settings".to_owned()])),
            }
        }
        let mut shortcuts = Map::new();
        if !self.revision.is_empty() {
            shortcuts.insert("revision".to_owned(), self.revision.as_str().into());
        }
        if let Some(platform) = &self.platform {
            shortcuts.insert("platform".to_owned(), platform.as_str().into());
        }
        if self.cert_manager {
            shortcuts.insert("webhook".to_owned(), json!({"certificates": "cert-manager"}));
        }
        if self.init_container_mode {
            shortcuts.insert("node".to_owned(), json!({"enabled": false}));
            shortcuts.insert("config".to_owned(), json!({"values": {"pilot": {"cni": {"enabled": false}}}}));
        }
        merge(&mut values, shortcuts);
        let settings = self.set.iter().map(|text| (text, false)).chain(self.set_string.iter().map(|text| (text, true)));
        let errors: Vec<String> = settings
            .filter_map(|(text, as_text)| {
                let option = if as_text { "--set-string" } else { "--set" };
                set::apply(&mut values, text, as_text).err().map(|reason| format!("{option} {text}: {reason}"))
            })
            .collect();
        if !errors.is_empty() {
            return Err(Failure::usage_all(errors));
        }
        Release::new(self.namespace.clone(), values)
    }
}

/// Returns the default values of the chart.
///
/// # Errors
/// None in a tested build: they are built in.
pub(crate) fn defaults() -> Result<Value, Failure> {
    yaml::from_str(VALUES).map_err(|error| Failure::usage(format!("the built-in values: {error}")))
}

/// Merges settings into values as Helm does: maps key by key, null removes a key.
fn merge(values: &mut Value, over: Map<String, Value>) {
    let Some(fields) = values.as_object_mut() else { return };
    for (key, value) in over {
        match (fields.get_mut(&key), value) {
            (_, Value::Null) => drop(fields.remove(&key)),
            (Some(old @ Value::Object(_)), Value::Object(over)) => merge(old, over),
            (_, value) => drop(fields.insert(key, value)),
        }
    }
}

impl Release {
    /// Validates values against the chart's schema.
    ///
    /// # Errors
    /// Every violation of the schema.
    pub(crate) fn new(namespace: String, values: Value) -> Result<Self, Failure> {
        let schema: Value =
            serde_json::from_str(SCHEMA).map_err(|error| Failure::usage(format!("the built-in schema: {error}")))?;
        let mut findings = schema::findings(&schema, &values);
        if !is_dns_label(&namespace) {
            findings.push(format!("namespace {namespace:?} is not a valid namespace name"));
        }
        if !findings.is_empty() {
            return Err(Failure::findings(findings));
        }
        Ok(Self { namespace, values, kube_version: NEWEST_KUBERNETES.to_owned() })
    }

    /// Returns the revision, `default` if none is set.
    pub(crate) fn revision(&self) -> &str {
        match self.values["revision"].as_str() {
            None | Some("") => "default",
            Some(revision) => revision,
        }
    }

    /// Returns whether pods need the plugin for their rules, according to these settings.
    pub(crate) fn needs_agent(&self) -> bool {
        let values = &self.values;
        let config = &values["config"];
        let is_cni_mode = config["cniMode"].as_bool().unwrap_or_else(|| match config["from"].as_str() {
            Some("istio") => values["node"]["enabled"] != false,
            _ => config.pointer("/values/pilot/cni/enabled").and_then(Value::as_bool) == Some(true),
        });
        values["webhook"]["enabled"] == true && is_cni_mode
    }

    /// Renders for this version of Kubernetes instead of the newest one.
    pub(crate) fn for_kubernetes(mut self, version: String) -> Self {
        self.kube_version = version;
        self
    }

    /// Replaces one value, by its path as a JSON pointer; the schema has to allow it.
    pub(crate) fn with_value(mut self, path: &str, value: impl Into<Value>) -> Self {
        if let Some(place) = self.values.pointer_mut(path) {
            *place = value.into();
        }
        self
    }

    /// Renders the objects, in the order in which they can be applied.
    ///
    /// # Errors
    /// Settings contradict each other.
    pub(crate) fn objects(&self) -> Result<Vec<Value>, Failure> {
        let (templates, data) = self.templates()?;
        let mut objects = Vec::new();
        for (name, _) in OBJECTS {
            let text = templates.render(name, &data).map_err(|reason| Failure::findings(vec![reason]))?;
            for document in documents(&text) {
                let object = yaml::from_str(document).map_err(|error| {
                    Failure::findings(vec![format!("template {name} does not render to YAML: {error}")])
                })?;
                if !object.is_null() {
                    objects.push(object);
                }
            }
        }
        // Stable: within a kind, the order is the chart's.
        objects.sort_by_key(apply_order);
        Ok(objects)
    }

    /// Renders the notes, which say what to do next. They leave out how to wait for the workloads if those are ready.
    ///
    /// # Errors
    /// Settings contradict each other.
    pub(crate) fn notes(&self, is_ready: bool) -> Result<String, Failure> {
        let (templates, mut data) = self.templates()?;
        data["Ready"] = is_ready.into();
        templates.render("NOTES.txt", &data).map_err(|reason| Failure::findings(vec![reason]))
    }

    fn templates(&self) -> Result<(TemplateSet, Value), Failure> {
        let templates = TemplateSet::parse(&[&OBJECTS[..], &PARTIALS].concat()).map_err(Failure::findings)?;
        let chart = yaml::from_str(CHART).map_err(|error| Failure::usage(format!("the built-in chart: {error}")))?;
        let data = json!({
            "Values": self.values,
            "Release": {"Name": "weir", "Namespace": self.namespace, "Service": "weir"},
            "Files": FILES.into_iter().collect::<BTreeMap<_, _>>(),
            "Capabilities": {"KubeVersion": {"Version": self.kube_version}},
            "Chart": {"Name": chart["name"], "Version": chart["version"], "AppVersion": chart["appVersion"]},
        });
        Ok((templates, data))
    }
}

/// Serializes objects as a stream of YAML documents.
///
/// # Errors
/// An object cannot be serialized.
pub(crate) fn to_yaml_stream(objects: &[Value]) -> Result<String, Failure> {
    let mut text = String::new();
    for object in objects {
        text.push_str("---\n");
        text.push_str(&yaml::to_string(object).map_err(anyhow::Error::from)?);
    }
    Ok(text)
}

fn documents(text: &str) -> impl Iterator<Item = &str> {
    text.split("\n---\n").map(|document| document.strip_prefix("---\n").unwrap_or(document))
}

/// Returns the position of a kind: what others need comes first, webhook configurations last.
fn apply_order(object: &Value) -> usize {
    const ORDER: [&str; 17] = [
        "Namespace",
        "ResourceQuota",
        "SecurityContextConstraints",
        "ServiceAccount",
        "ClusterRole",
        "ClusterRoleBinding",
        "Role",
        "RoleBinding",
        "NetworkPolicy",
        "ConfigMap",
        "NetworkAttachmentDefinition",
        "Issuer",
        "Certificate",
        "Service",
        "PodDisruptionBudget",
        "Deployment",
        "DaemonSet",
    ];
    match object["kind"].as_str() {
        Some("MutatingWebhookConfiguration") => ORDER.len() + 1,
        kind => ORDER.iter().position(|known| Some(*known) == kind).unwrap_or(ORDER.len()),
    }
}

/// Returns whether a text is a DNS label, as names of namespaces, revisions and tags have to be.
pub(crate) fn is_dns_label(text: &str) -> bool {
    let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    (1..=63).contains(&bytes.len())
        && bytes.iter().all(|byte| alphanumeric(byte) || *byte == b'-')
        && bytes.first().is_some_and(alphanumeric)
        && bytes.last().is_some_and(alphanumeric)
}

#[cfg(test)]
mod tests;
