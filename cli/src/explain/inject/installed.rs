//! Installed injectors of a cluster: webhook configurations, and labels of namespaces.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use serde_json::{Map, Value};
use weir_injector::selection::configurations::{
    DEACTIVATED_LABEL, OWNER_REVISION_LABEL, OWNER_TAG_LABEL, configuration_name,
};
use weir_injector::selection::{InjectorRevision, Labels, Selection, WebhookEntry};

use crate::cluster::{Cluster, ConnectArgs};
use crate::failure::Failure;
use crate::objects::{CONFIGURATION, NAMESPACE, ObjectRef};
use crate::revisions::{DEFAULT, label};

const TIMEOUT: Duration = Duration::from_secs(30);

/// Webhook configurations of a cluster, and the labels of some of its namespaces.
#[derive(Debug)]
pub(super) struct Installed {
    configurations: Vec<Value>,
    namespaces: HashMap<String, Map<String, Value>>,
}

impl Installed {
    /// Reads the configurations, and these namespaces.
    ///
    /// # Errors
    /// The cluster is unreachable, or rejects a request.
    pub(super) fn read(connect: &ConnectArgs, namespaces: &HashSet<String>) -> Result<Self, Failure> {
        connect.run(TIMEOUT, async |cluster| Self::read_from(&cluster, namespaces).await)
    }

    async fn read_from(cluster: &Cluster, names: &HashSet<String>) -> Result<Self, Failure> {
        let configurations = cluster.objects(CONFIGURATION, "", "").await?;
        let mut namespaces = HashMap::new();
        for name in names {
            if let Some(namespace) = cluster.object(&ObjectRef::new(NAMESPACE, "", name)).await? {
                let labels = namespace["metadata"]["labels"].as_object().cloned();
                namespaces.insert(name.clone(), labels.unwrap_or_default());
            }
        }
        Ok(Self { configurations, namespaces })
    }

    /// Returns the labels of a namespace that exists.
    pub(super) fn namespace_labels(&self, name: &str) -> Option<&Map<String, Value>> {
        self.namespaces.get(name)
    }

    /// Returns every entry for pods of an injector, by the names of configuration and entry, and whether it selects the labels; and
    /// whether the revision of Weir gets the pod.
    ///
    /// # Errors
    /// A selector is invalid.
    pub(super) fn select(
        &self,
        labels: Labels<'_>,
        namespace: &str,
        revision: &str,
    ) -> Result<(Vec<(String, bool)>, Selection), String> {
        let (mut entries, mut is_selected) = (Vec::new(), false);
        for configuration in &self.configurations {
            let of = label(configuration, OWNER_REVISION_LABEL);
            let name = configuration["metadata"]["name"].as_str().unwrap_or_default();
            for entry in entries_of(configuration).iter().filter(|entry| of.is_some() || calls_an_injector(entry)) {
                let known = WebhookEntry {
                    name: entry["name"].as_str().unwrap_or_default().to_owned(),
                    namespace_selector: entry["namespaceSelector"].clone(),
                    object_selector: entry["objectSelector"].clone(),
                };
                let selects = known.matches(labels).map_err(|error| format!("{name}: {error}"))?;
                is_selected |= selects && of == Some(revision);
                entries.push((format!("{name}: {}", known.name), selects));
            }
        }
        let selection = if is_selected { Selection::Selected } else { self.why_not(labels, namespace, revision) };
        Ok((entries, selection))
    }

    fn why_not(&self, labels: Labels<'_>, namespace: &str, revision: &str) -> Selection {
        let own: Vec<&Value> =
            self.configurations.iter().filter(|it| label(it, OWNER_REVISION_LABEL) == Some(revision)).collect();
        if own.is_empty() {
            return Selection::NotSelected {
                reason: format!("the cluster has no webhook configuration {}", configuration_name(revision)),
                remedy: "weir install; `weir check` says what is missing".to_owned(),
            };
        }
        let entries = || own.iter().flat_map(|configuration| entries_of(configuration));
        let described = InjectorRevision {
            revision: revision.to_owned(),
            tags: own.iter().filter_map(|it| label(it, OWNER_TAG_LABEL)).map(str::to_owned).collect(),
            enable_namespaces_by_default: entries()
                .any(|entry| entry["name"].as_str().is_some_and(|name| name.starts_with("auto."))),
            deactivated: revision == DEFAULT
                && entries().any(|entry| entry["namespaceSelector"].to_string().contains(DEACTIVATED_LABEL)),
        };
        match described.select(labels, namespace) {
            Selection::Selected => Selection::NotSelected {
                reason: "the labels ask for it, but no installed webhook entry selects it".to_owned(),
                remedy: "`weir check` compares the installed webhook configurations with those of this release"
                    .to_owned(),
            },
            not_selected @ Selection::NotSelected { .. } => not_selected,
        }
    }
}

fn entries_of(configuration: &Value) -> &[Value] {
    configuration["webhooks"].as_array().map_or(&[][..], Vec::as_slice)
}

/// Returns whether an entry sends pods to a path that injectors serve.
fn calls_an_injector(entry: &Value) -> bool {
    let client = &entry["clientConfig"];
    let path = client["service"]["path"].as_str().or(client["url"].as_str()).unwrap_or_default();
    path.contains("/inject")
}
