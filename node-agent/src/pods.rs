//! The pods of this node, as far as they matter: one watch fills the cache, everything else reads it.
//!
//! ```text
//! API server ──watch.rs──▶ PodObject ──object.rs──▶ PodFacts ──▶ Pods ──▶ socket (answers), repair (every pod of the mesh)
//! ```

mod object;
mod watch;

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tokio::sync::watch as channel;

#[cfg(test)]
pub(crate) use self::object::facts;
pub use self::object::{Owner, PodFacts, PodObject};
pub use self::watch::{Connect, Follower};

/// The cache; clones are the same one.
#[derive(Debug, Clone)]
pub struct Pods {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    pods: RwLock<HashMap<String, Arc<PodFacts>>>,
    heard: RwLock<Heard>,
    /// Counts changes; waiters see that something is new.
    changes: channel::Sender<u64>,
}

/// What was last heard of the API server.
#[derive(Debug, Clone, Default)]
struct Heard {
    synced: bool,
    at: Option<Instant>,
    trouble: Option<String>,
}

impl Default for Pods {
    fn default() -> Self {
        let inner = Inner { pods: RwLock::default(), heard: RwLock::default(), changes: channel::Sender::new(0) };
        Self { inner: Arc::new(inner) }
    }
}

impl Pods {
    /// The pod that a plugin means. A pod of that name with another uid is another pod, most often the one that was there before.
    pub fn find(&self, uid: &str, namespace: &str, name: &str) -> Option<Arc<PodFacts>> {
        let pods = self.inner.pods.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(pod) = pods.get(uid) {
            return Some(Arc::clone(pod));
        }
        let named = pods.values().filter(|pod| pod.namespace == namespace && pod.name == name);
        named.into_iter().find(|pod| uid.is_empty() || pod.has_uid(uid)).cloned()
    }

    /// The pod of that uid.
    pub fn get(&self, uid: &str) -> Option<Arc<PodFacts>> {
        self.inner.pods.read().unwrap_or_else(PoisonError::into_inner).get(uid).cloned()
    }

    /// All of them, in the order of their names.
    pub fn all(&self) -> Vec<Arc<PodFacts>> {
        let pods = self.inner.pods.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<Arc<PodFacts>> = pods.values().cloned().collect();
        drop(pods);
        all.sort_unstable_by(|a, b| (&a.namespace, &a.name, &a.uid).cmp(&(&b.namespace, &b.name, &b.uid)));
        all
    }

    /// Wakes at every change.
    pub fn subscribe(&self) -> channel::Receiver<u64> {
        self.inner.changes.subscribe()
    }

    /// Whether the cache has ever been complete.
    pub fn is_synced(&self) -> bool {
        self.heard().synced
    }

    /// How long ago the API server said anything; `None` before its first word.
    pub fn age(&self) -> Option<Duration> {
        self.heard().at.map(|at| at.elapsed())
    }

    /// What keeps the cache from being up to date, in words.
    pub fn trouble(&self) -> Option<String> {
        self.heard().trouble
    }

    fn heard(&self) -> Heard {
        self.inner.heard.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_heard(&self, set: impl FnOnce(&mut Heard)) {
        set(&mut self.inner.heard.write().unwrap_or_else(PoisonError::into_inner));
    }

    fn change(&self, change: impl FnOnce(&mut HashMap<String, Arc<PodFacts>>)) {
        change(&mut self.inner.pods.write().unwrap_or_else(PoisonError::into_inner));
        self.inner.changes.send_modify(|count| *count += 1);
    }

    /// A pod is new or has changed.
    pub fn put(&self, pod: PodFacts) {
        self.change(|pods| drop(pods.insert(pod.uid.clone(), Arc::new(pod))));
    }

    /// A pod is gone.
    pub fn remove(&self, uid: &str) {
        self.change(|pods| drop(pods.remove(uid)));
    }

    /// These are all pods that there are.
    pub fn replace(&self, all: Vec<PodFacts>) {
        self.change(|pods| *pods = all.into_iter().map(|pod| (pod.uid.clone(), Arc::new(pod))).collect());
        self.set_heard(|heard| heard.synced = true);
    }

    /// The API server has said something.
    pub fn heard_now(&self) {
        self.set_heard(|heard| {
            heard.at = Some(Instant::now());
            heard.trouble = None;
        });
    }

    /// It did not, or not what was hoped for.
    pub fn troubled(&self, reason: String) {
        self.set_heard(|heard| heard.trouble = Some(reason));
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

    #[test]
    fn wakes_who_waits_and_knows_how_old_it_is() {
        let pods = Pods::default();
        let mut changes = pods.subscribe();
        assert!(pods.age().is_none() && !pods.is_synced());
        pods.replace(Vec::new());
        pods.put(pod("web", "u"));
        assert!(changes.has_changed().unwrap());
        changes.borrow_and_update();
        pods.remove("u");
        assert!(changes.has_changed().unwrap() && pods.all().is_empty());
        pods.troubled("401".to_owned());
        assert_eq!(pods.trouble().as_deref(), Some("401"));
        pods.heard_now();
        assert!(pods.trouble().is_none() && pods.age().is_some() && pods.is_synced());
    }
}
