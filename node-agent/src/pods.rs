//! The pods of this node, as far as they matter: one watch fills the cache, everything else reads it.
//!
//! ```text
//! API server ──watch.rs──▶ PodObject ──object.rs──▶ PodFacts ──▶ Pods ──▶ socket (answers), repair (every pod of the mesh)
//! ```

mod object;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch as channel;
use weir_runtime::Cache;

#[cfg(test)]
pub(crate) use self::object::facts;
pub use self::object::{Owner, PodFacts, PodObject};
pub use self::watch::{Connect, Follower};

/// The cache; clones are the same one.
#[derive(Debug, Clone, Default)]
pub struct Pods {
    cache: Cache<PodFacts>,
}

impl Pods {
    /// The pod that a plugin means. A pod of that name with another uid is another pod, most often the one that was there before.
    pub fn find(&self, uid: &str, namespace: &str, name: &str) -> Option<Arc<PodFacts>> {
        if let Some(pod) = self.cache.get(uid) {
            return Some(pod);
        }
        let named = |pod: &PodFacts| pod.namespace == namespace && pod.name == name;
        self.cache.find(|pod| named(pod) && (uid.is_empty() || pod.has_uid(uid)))
    }

    /// The pod of that uid.
    pub fn get(&self, uid: &str) -> Option<Arc<PodFacts>> {
        self.cache.get(uid)
    }

    /// All of them, in the order of their names.
    pub fn all(&self) -> Vec<Arc<PodFacts>> {
        let mut all = self.cache.all();
        all.sort_unstable_by(|a, b| (&a.namespace, &a.name, &a.uid).cmp(&(&b.namespace, &b.name, &b.uid)));
        all
    }

    /// Wakes at every change.
    pub fn subscribe(&self) -> channel::Receiver<u64> {
        self.cache.subscribe()
    }

    /// Whether the cache has ever been complete.
    pub fn is_synced(&self) -> bool {
        self.cache.is_synced()
    }

    /// How long ago the API server said anything; `None` before its first word.
    pub fn age(&self) -> Option<Duration> {
        self.cache.age()
    }

    /// What keeps the cache from being up to date, in words.
    pub fn trouble(&self) -> Option<String> {
        self.cache.trouble()
    }

    /// A pod is new or has changed.
    pub fn put(&self, pod: PodFacts) {
        self.cache.put(pod.uid.clone(), pod);
    }

    /// These are all pods that there are.
    pub fn replace(&self, all: Vec<PodFacts>) {
        self.cache.replace(all.into_iter().map(|pod| (pod.uid.clone(), pod)));
    }

    /// The API server did not say what was hoped for.
    pub fn troubled(&self, reason: String) {
        self.cache.troubled(reason);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, uid: &str) -> PodFacts {
        facts(json!({"metadata": {"namespace": "shop", "name": name, "uid": uid}}))
    }

    #[test]
    fn finds_by_uid_and_never_takes_a_predecessor_for_its_successor() {
        let pods = Pods::default();
        pods.replace(vec![pod("web-0", "old"), pod("web-1", "u1")]);
        assert_eq!(pods.find("u1", "", "").map(|pod| pod.name.clone()), Some("web-1".to_owned()));
        assert_eq!(pods.find("", "shop", "web-0").map(|pod| pod.uid.clone()), Some("old".to_owned()));
        assert_eq!(pods.find("new", "shop", "web-0"), None);
        assert_eq!(pods.find("", "other", "web-0"), None);
    }
}
