//! What injection and capture assertions depend on in the cluster's namespaces.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value};

/// Longest labels of a namespace that are kept, in bytes: names and values together.
const MAX_LABEL_BYTES: usize = 16 << 10;

/// Annotations and labels of namespaces. Clones share them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Namespaces(Arc<BTreeMap<String, NamespaceFacts>>);

/// What is kept of a namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NamespaceFacts {
    annotations: BTreeMap<String, String>,
    /// `None` if they are too long.
    labels: Option<Map<String, Value>>,
}

impl NamespaceFacts {
    /// The annotations that are read: OpenShift's ranges of users and groups.
    const READ_ANNOTATIONS: [&'static str; 2] =
        ["openshift.io/sa.scc.uid-range", "openshift.io/sa.scc.supplemental-groups"];

    /// Keeps what is needed.
    pub fn new(mut annotations: BTreeMap<String, String>, labels: BTreeMap<String, String>) -> Self {
        annotations.retain(|key, _| Self::READ_ANNOTATIONS.contains(&key.as_str()));
        let bytes: usize = labels.iter().map(|(key, value)| key.len() + value.len()).sum();
        let labels = labels.into_iter().map(|(key, value)| (key, Value::from(value))).collect();
        Self { annotations, labels: (bytes <= MAX_LABEL_BYTES).then_some(labels) }
    }
}

impl Namespaces {
    /// Returns the annotations of a namespace that pods depend on; empty if the namespace is not known.
    pub fn annotations(&self, namespace: &str) -> BTreeMap<String, String> {
        self.0.get(namespace).map(|facts| facts.annotations.clone()).unwrap_or_default()
    }

    /// Returns the labels of a namespace; `None` if they are not known.
    pub fn labels(&self, namespace: &str) -> Option<&Map<String, Value>> {
        self.0.get(namespace)?.labels.as_ref()
    }
}

impl FromIterator<(String, NamespaceFacts)> for Namespaces {
    fn from_iter<I: IntoIterator<Item = (String, NamespaceFacts)>>(namespaces: I) -> Self {
        Self(Arc::new(namespaces.into_iter().collect()))
    }
}
