//! The annotations of the cluster's namespaces that injection depends on.

use std::collections::BTreeMap;
use std::sync::Arc;

/// Annotations by namespace. Clones share them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NamespaceAnnotations(Arc<BTreeMap<String, BTreeMap<String, String>>>);

impl NamespaceAnnotations {
    /// The annotations that are read: OpenShift's ranges of users and groups.
    pub const READ_KEYS: [&'static str; 2] =
        ["openshift.io/sa.scc.uid-range", "openshift.io/sa.scc.supplemental-groups"];

    /// Returns the annotations of a namespace; empty if the namespace is not known.
    pub fn of(&self, namespace: &str) -> BTreeMap<String, String> {
        self.0.get(namespace).cloned().unwrap_or_default()
    }
}

impl FromIterator<(String, BTreeMap<String, String>)> for NamespaceAnnotations {
    fn from_iter<I: IntoIterator<Item = (String, BTreeMap<String, String>)>>(namespaces: I) -> Self {
        Self(Arc::new(namespaces.into_iter().filter(|(_, annotations)| !annotations.is_empty()).collect()))
    }
}
