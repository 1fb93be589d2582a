//! What is known of the API server's objects of one kind.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tokio::sync::watch as channel;

/// The cache of a [`Follower`](crate::Follower), by uid; clones are the same one.
#[derive(Debug)]
pub struct Cache<T> {
    inner: Arc<Inner<T>>,
}

#[derive(Debug)]
struct Inner<T> {
    objects: RwLock<HashMap<String, Arc<T>>>,
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

impl<T> Default for Cache<T> {
    fn default() -> Self {
        let inner = Inner { objects: RwLock::default(), heard: RwLock::default(), changes: channel::Sender::new(0) };
        Self { inner: Arc::new(inner) }
    }
}

impl<T> Clone for Cache<T> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

impl<T: PartialEq> Cache<T> {
    /// An object is new or has changed. Nobody is woken for one of which all that is kept is as before: most changes of a
    /// node are its heartbeats.
    pub fn put(&self, uid: String, object: T) {
        if self.with(|objects| objects.get(&uid).is_some_and(|known| **known == object)) {
            return;
        }
        self.change(|objects| drop(objects.insert(uid, Arc::new(object))));
        self.wake();
    }
}

impl<T> Cache<T> {
    /// The object of that uid.
    pub fn get(&self, uid: &str) -> Option<Arc<T>> {
        self.with(|objects| objects.get(uid).cloned())
    }

    /// All of them, in no order.
    pub fn all(&self) -> Vec<Arc<T>> {
        self.with(|objects| objects.values().cloned().collect())
    }

    /// The first that fits, by whatever order.
    pub fn find(&self, mut fits: impl FnMut(&T) -> bool) -> Option<Arc<T>> {
        self.with(|objects| objects.values().find(|object| fits(object)).cloned())
    }

    fn with<R>(&self, read: impl FnOnce(&HashMap<String, Arc<T>>) -> R) -> R {
        read(&self.inner.objects.read().unwrap_or_else(PoisonError::into_inner))
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

    fn change(&self, change: impl FnOnce(&mut HashMap<String, Arc<T>>)) {
        change(&mut self.inner.objects.write().unwrap_or_else(PoisonError::into_inner));
    }

    fn wake(&self) {
        self.inner.changes.send_modify(|count| *count += 1);
    }

    /// An object is gone.
    pub fn remove(&self, uid: &str) {
        self.change(|objects| drop(objects.remove(uid)));
        self.wake();
    }

    /// These are all that there are.
    pub fn replace(&self, all: impl IntoIterator<Item = (String, T)>) {
        self.change(|objects| *objects = all.into_iter().map(|(uid, object)| (uid, Arc::new(object))).collect());
        self.set_heard(|heard| heard.synced = true);
        self.wake();
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
    use super::*;

    #[test]
    fn wakes_who_waits_and_knows_how_old_it_is() {
        let cache = Cache::default();
        let mut changes = cache.subscribe();
        assert!(cache.age().is_none() && !cache.is_synced());
        cache.replace([("u0".to_owned(), 0)]);
        cache.put("u1".to_owned(), 1);
        assert!(changes.has_changed().unwrap());
        changes.borrow_and_update();
        cache.put("u1".to_owned(), 1);
        assert!(!changes.has_changed().unwrap(), "as before");
        cache.remove("u0");
        assert!(changes.has_changed().unwrap());
        assert_eq!((cache.all().len(), cache.get("u1").as_deref(), cache.find(|n| *n == 0)), (1, Some(&1), None));
        cache.troubled("401".to_owned());
        assert_eq!(cache.trouble().as_deref(), Some("401"));
        cache.heard_now();
        assert!(cache.trouble().is_none() && cache.age().is_some() && cache.is_synced());
    }
}
