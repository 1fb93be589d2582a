//! The Helm chart of `manifests/chart`, built in: what a cluster gets, from a few settings.
//!
//! ```text
//! values.yaml ◀─ -f FILE ◀─ shortcuts ◀─ --set ──▶ values ──schema──▶ templates ──▶ objects, in the order in which they are applied
//! ```
//!
//! Helm makes the same objects of the same values, and so does kustomize (`manifests/compare.py`).

mod schema;
mod set;

use clap::Args;
use serde_json::{Map, Value, json};
use weir_injector::inject::TextSet;
use weir_injector::inject::selection::objects::NAMESPACE;
use weir_injector::yaml;

use crate::failure::Failure;
use crate::files::Source;

/// Its default values, as text.
const VALUES: &str = include_str!("../../manifests/chart/values.yaml");
/// What values may be.
const SCHEMA: &str = include_str!("../../manifests/chart/values.schema.json");
const CHART: &str = include_str!("../../manifests/chart/Chart.yaml");

macro_rules! templates {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_str!(concat!("../../manifests/chart/templates/", $name)))),*]
    };
}

/// Its templates that give objects.
const OBJECTS: [(&str, &str); 8] = templates![
    "namespaces.yaml",
    "node-agent.yaml",
    "node-rbac.yaml",
    "node-settings.yaml",
    "node-uninstall.yaml",
    "webhook-configuration.yaml",
    "webhook-rbac.yaml",
    "webhook.yaml",
];
/// Those that do not.
const OTHERS: [(&str, &str); 2] = templates!["_helpers.tpl", "NOTES.txt"];

/// What is installed, and how: options of all commands that need the objects.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Settings")]
pub(crate) struct SettingsArgs {
    /// Settings, as for the Helm chart; `-` for standard input; repeat it, later ones win (manifests/chart/values.yaml has them all)
    #[arg(short = 'f', long = "values", alias = "filename", value_name = "FILE")]
    values: Vec<String>,

    /// One setting: PATH=VALUE, several with commas, in Helm's grammar (`a.b=c`, `a[0]=c`, `a={x,y}`, `a=null`)
    #[arg(long, value_name = "SETTING")]
    set: Vec<String>,

    /// As --set, and the value is a text whatever it looks like
    #[arg(long, value_name = "SETTING")]
    set_string: Vec<String>,

    /// Namespace of the webhook
    #[arg(short, long, value_name = "NAME", default_value = NAMESPACE)]
    pub(crate) namespace: String,

    /// Revision of the webhook, beside others; without it, the default one (`revision`)
    #[arg(short, long, value_name = "NAME", default_value = "", hide_default_value = true)]
    revision: String,

    /// Where the nodes have their folders: kubeadm, gke, k3s, openshift and others (`platform`)
    #[arg(long, value_name = "NAME")]
    platform: Option<String>,

    /// The certificate by cert-manager (`webhook.certificates: cert-manager`)
    #[arg(long)]
    cert_manager: bool,

    /// No plugin and no agent on nodes: pods bring an init container that needs `NET_ADMIN` (`config.values.pilot.cni.enabled: false`)
    #[arg(long)]
    init_container_mode: bool,
}

/// Settings that are known to be right, and what they come to.
#[derive(Debug)]
pub(crate) struct Release {
    /// Namespace of the webhook.
    pub(crate) namespace: String,
    /// All values.
    pub(crate) values: Value,
}

impl SettingsArgs {
    /// Settings as tests write them.
    #[cfg(test)]
    pub(crate) fn of(set: &[&str]) -> Self {
        Self {
            set: set.iter().map(|&setting| setting.to_owned()).collect(),
            namespace: NAMESPACE.to_owned(),
            ..Self::default()
        }
    }

    /// Settings of nodes alone.
    pub(crate) fn for_platform(platform: Option<&str>, agent_image: Option<&str>) -> Self {
        Self {
            platform: platform.map(str::to_owned),
            set_string: agent_image
                .map(|image| format!("images.agent={}", image.replace(',', "\\,")))
                .into_iter()
                .collect(),
            namespace: NAMESPACE.to_owned(),
            ..Self::default()
        }
    }

    /// Reads the settings.
    ///
    /// # Errors
    /// A file cannot be read; all settings that are wrong, each with its path.
    pub(crate) fn release(&self) -> Result<Release, Failure> {
        let mut values = defaults()?;
        // Nobody else makes it.
        values["webhook"]["createNamespace"] = true.into();
        for name in &self.values {
            let source = Source::from(name.as_str());
            let given = yaml::from_str(&source.read()?)
                .map_err(|error| Failure::refused_in(&source.name(), &[error.to_string()]))?;
            match given {
                Value::Null => {}
                Value::Object(given) => merge(&mut values, given),
                _ => return Err(Failure::refused_in(&source.name(), &["is no map of settings".to_owned()])),
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
        let wrong: Vec<String> = settings
            .filter_map(|(text, as_text)| {
                let option = if as_text { "--set-string" } else { "--set" };
                set::apply(&mut values, text, as_text).err().map(|reason| format!("{option} {text}: {reason}"))
            })
            .collect();
        if !wrong.is_empty() {
            return Err(Failure::usage_all(wrong));
        }
        Release::new(self.namespace.clone(), values)
    }
}

/// The values of the chart.
///
/// # Errors
/// None: they are built in.
pub(crate) fn defaults() -> Result<Value, Failure> {
    yaml::from_str(VALUES).map_err(|error| Failure::usage(format!("the built-in values: {error}")))
}

/// Lays settings over values as Helm does: maps key by key, null takes a key away.
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
    /// Checks values.
    ///
    /// # Errors
    /// All that the schema does not allow.
    pub(crate) fn new(namespace: String, values: Value) -> Result<Self, Failure> {
        let schema: Value =
            serde_json::from_str(SCHEMA).map_err(|error| Failure::usage(format!("the built-in schema: {error}")))?;
        let mut findings = schema::findings(&schema, &values);
        if !is_label(&namespace) {
            findings.push(format!("namespace {namespace:?} is no name of a namespace"));
        }
        if findings.is_empty() { Ok(Self { namespace, values }) } else { Err(Failure::refused(findings)) }
    }

    /// Its revision, `default` for none.
    pub(crate) fn revision(&self) -> &str {
        match self.values["revision"].as_str() {
            None | Some("") => "default",
            Some(revision) => revision,
        }
    }

    /// Whether pods get their rules from the plugin, as far as these settings say.
    pub(crate) fn needs_agent(&self) -> bool {
        let values = &self.values;
        let cni = values.pointer("/config/values/pilot/cni/enabled").and_then(Value::as_bool);
        values["webhook"]["enabled"] == true && values["config"]["from"] == "values" && cni == Some(true)
    }

    /// Says otherwise about one value, by its path (as a JSON pointer); it is one that the schema allows.
    pub(crate) fn with(mut self, path: &str, value: impl Into<Value>) -> Self {
        if let Some(place) = self.values.pointer_mut(path) {
            *place = value.into();
        }
        self
    }

    /// Its objects, in the order in which they can be applied one after the other.
    ///
    /// # Errors
    /// Settings that do not go together.
    pub(crate) fn objects(&self) -> Result<Vec<Value>, Failure> {
        let (texts, data) = self.texts()?;
        let mut objects = Vec::new();
        for (name, _) in OBJECTS {
            let text = texts.render(name, &data).map_err(|reason| Failure::refused(vec![reason]))?;
            for document in documents(&text) {
                let object = yaml::from_str(document)
                    .map_err(|error| Failure::refused(vec![format!("what {name} gives is no YAML: {error}")]))?;
                if !object.is_null() {
                    objects.push(object);
                }
            }
        }
        // Stable: within a kind, as the chart has them.
        objects.sort_by_key(rank);
        Ok(objects)
    }

    /// What to do next, for people.
    ///
    /// # Errors
    /// Settings that do not go together.
    pub(crate) fn notes(&self) -> Result<String, Failure> {
        let (texts, data) = self.texts()?;
        texts.render("NOTES.txt", &data).map_err(|reason| Failure::refused(vec![reason]))
    }

    fn texts(&self) -> Result<(TextSet, Value), Failure> {
        let texts = TextSet::parse(&[&OBJECTS[..], &OTHERS].concat()).map_err(Failure::refused)?;
        let chart = yaml::from_str(CHART).map_err(|error| Failure::usage(format!("the built-in chart: {error}")))?;
        let data = json!({
            "Values": self.values,
            "Release": {"Name": "weir", "Namespace": self.namespace, "Service": "weir"},
            "Chart": {"Name": chart["name"], "Version": chart["version"], "AppVersion": chart["appVersion"]},
        });
        Ok((texts, data))
    }
}

/// Objects as a stream of YAML documents.
///
/// # Errors
/// None is known for what a chart makes.
pub(crate) fn stream(objects: &[Value]) -> Result<String, Failure> {
    let mut text = String::new();
    for object in objects {
        text.push_str("---\n");
        text.push_str(&yaml::to_string(object).map_err(anyhow::Error::from)?);
    }
    Ok(text)
}

/// The documents of a stream.
fn documents(text: &str) -> impl Iterator<Item = &str> {
    text.split("\n---\n").map(|document| document.strip_prefix("---\n").unwrap_or(document))
}

/// When a kind is applied: what others need comes first, what sends pods to the webhook last.
fn rank(object: &Value) -> usize {
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

/// A DNS label, as names of namespaces, revisions and tags are.
pub(crate) fn is_label(text: &str) -> bool {
    let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    (1..=63).contains(&bytes.len())
        && bytes.iter().all(|byte| alphanumeric(byte) || *byte == b'-')
        && bytes.first().is_some_and(alphanumeric)
        && bytes.last().is_some_and(alphanumeric)
}

#[cfg(test)]
mod tests;
