//! What is known of the cluster's namespaces: the annotations that a pod depends on.

use std::collections::BTreeMap;
use std::sync::Arc;

/// Annotations by namespace; clones share them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Namespaces(Arc<BTreeMap<String, BTreeMap<String, String>>>);

impl Namespaces {
    /// Annotations that are read: OpenShift's ranges of users and groups.
    pub const READ: [&'static str; 2] = ["openshift.io/sa.scc.uid-range", "openshift.io/sa.scc.supplemental-groups"];

    /// Those of one namespace; none where nothing is known of it.
    pub fn annotations(&self, namespace: &str) -> BTreeMap<String, String> {
        self.0.get(namespace).cloned().unwrap_or_default()
    }
}

impl FromIterator<(String, BTreeMap<String, String>)> for Namespaces {
    fn from_iter<I: IntoIterator<Item = (String, BTreeMap<String, String>)>>(namespaces: I) -> Self {
        Self(Arc::new(namespaces.into_iter().filter(|(_, annotations)| !annotations.is_empty()).collect()))
    }
}
