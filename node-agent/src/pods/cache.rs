//! The pod cache.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use weir_runtime::Cache;

use super::object::PodFacts;

/// Pods of this node by uid; clones share the cache.
#[derive(Debug, Clone, Default)]
pub struct PodCache {
    pub(super) cache: Cache<PodFacts>,
}

impl PodCache {
    /// Finds the pod of a query: by uid, else by name. A pod of that name with another uid is another pod, usually the predecessor.
    pub fn find(&self, uid: &str, namespace: &str, name: &str) -> Option<Arc<PodFacts>> {
        if let Some(pod) = self.cache.get(uid) {
            return Some(pod);
        }
        let named = |pod: &PodFacts| pod.namespace == namespace && pod.name == name;
        self.cache.find(|pod| named(pod) && (uid.is_empty() || pod.has_uid(uid)))
    }

    /// Returns the pod with that uid.
    pub fn get(&self, uid: &str) -> Option<Arc<PodFacts>> {
        self.cache.get(uid)
    }

    /// Returns all pods, sorted by name.
    pub fn all(&self) -> Vec<Arc<PodFacts>> {
        let mut all = self.cache.all();
        all.sort_unstable_by(|a, b| (&a.namespace, &a.name, &a.uid).cmp(&(&b.namespace, &b.name, &b.uid)));
        all
    }

    /// Returns a receiver that is notified of every change.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.cache.subscribe()
    }

    /// Returns whether the cache has ever been complete.
    pub fn is_synced(&self) -> bool {
        self.cache.is_synced()
    }

    /// Returns the time since the last response of the API server; `None` before the first.
    pub fn age(&self) -> Option<Duration> {
        self.cache.age()
    }

    /// Returns the error that keeps the cache from being current.
    pub fn last_error(&self) -> Option<String> {
        self.cache.last_error()
    }

    /// Returns the pods that are too large or malformed, with the reason. The agent cannot answer about them or repair them.
    pub fn skipped(&self) -> Vec<String> {
        self.cache.skipped().iter().map(ToString::to_string).collect()
    }

    /// Adds or replaces a pod.
    pub fn put(&self, pod: PodFacts) {
        self.cache.put(pod.uid.clone(), pod);
    }

    /// Replaces all pods.
    pub fn replace(&self, all: Vec<PodFacts>) {
        self.cache.replace(all.into_iter().map(|pod| (pod.uid.clone(), pod)));
    }

    /// Records an error of the API server.
    pub fn record_error(&self, reason: String) {
        self.cache.record_error(reason);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::pods::facts;

    fn pod(name: &str, uid: &str) -> PodFacts {
        facts(json!({"metadata": {"namespace": "shop", "name": name, "uid": uid}}))
    }

    #[test]
    fn a_predecessor_of_the_same_name_is_not_found() {
        let pods = PodCache::default();
        pods.replace(vec![pod("web-0", "old"), pod("web-1", "u1")]);
        assert_eq!(pods.find("u1", "", "").map(|pod| pod.name.clone()), Some("web-1".to_owned()));
        assert_eq!(pods.find("", "shop", "web-0").map(|pod| pod.uid.clone()), Some("old".to_owned()));
        assert_eq!(pods.find("new", "shop", "web-0"), None);
        assert_eq!(pods.find("", "other", "web-0"), None);
    }
}
