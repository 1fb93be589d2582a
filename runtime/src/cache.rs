//! Objects of one kind, as the API server last reported them.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tokio::sync::watch;

/// An object that is not in the cache, or not in its current version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SkippedObject {
    /// `namespace/name`, or the name alone.
    pub name: String,
    /// Limit that it exceeds, as a clause.
    pub reason: String,
}

impl std::fmt::Display for SkippedObject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.name, self.reason)
    }
}

/// The store of a [`Reflector`](crate::Reflector), by uid. Clones share it.
#[derive(Debug)]
pub struct Cache<T> {
    inner: Arc<Inner<T>>,
}

#[derive(Debug)]
struct Inner<T> {
    objects: RwLock<HashMap<String, Arc<T>>>,
    /// Objects that are missing, or not in their current version.
    skipped: RwLock<HashMap<String, SkippedObject>>,
    status: RwLock<SyncStatus>,
    /// Counts changes, so that subscribers notice them.
    changes: watch::Sender<u64>,
}

#[derive(Debug, Clone, Default)]
struct SyncStatus {
    synced: bool,
    last_contact: Option<Instant>,
    last_error: Option<String>,
}

impl<T> Default for Cache<T> {
    fn default() -> Self {
        let inner = Inner {
            objects: RwLock::default(),
            skipped: RwLock::default(),
            status: RwLock::default(),
            changes: watch::Sender::new(0),
        };
        Self { inner: Arc::new(inner) }
    }
}

impl<T> Clone for Cache<T> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

impl<T: PartialEq> Cache<T> {
    /// Adds or replaces an object. Wakes nobody if what is kept of it is unchanged: most changes of a node are heartbeats.
    pub fn put(&self, uid: String, object: T) {
        self.change_skipped(|skipped| drop(skipped.remove(&uid)));
        if self.read(|objects| objects.get(&uid).is_some_and(|known| **known == object)) {
            return;
        }
        self.write(|objects| drop(objects.insert(uid, Arc::new(object))));
        self.notify();
    }
}

impl<T> Cache<T> {
    /// Returns the object with that uid.
    pub fn get(&self, uid: &str) -> Option<Arc<T>> {
        self.read(|objects| objects.get(uid).cloned())
    }

    /// Returns all objects, in no order.
    pub fn all(&self) -> Vec<Arc<T>> {
        self.read(|objects| objects.values().cloned().collect())
    }

    /// Returns any object that matches.
    pub fn find(&self, mut predicate: impl FnMut(&T) -> bool) -> Option<Arc<T>> {
        self.read(|objects| objects.values().find(|object| predicate(object)).cloned())
    }

    /// Returns a receiver that wakes at every change.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.inner.changes.subscribe()
    }

    /// Returns whether the cache has ever been complete.
    pub fn is_synced(&self) -> bool {
        self.status().synced
    }

    /// Returns the time since the last response of the API server; `None` before the first.
    pub fn age(&self) -> Option<Duration> {
        self.status().last_contact.map(|at| at.elapsed())
    }

    /// Returns why the cache is not kept current at the moment.
    pub fn last_error(&self) -> Option<String> {
        self.status().last_error
    }

    /// Returns the objects that were skipped, sorted by name.
    pub fn skipped(&self) -> Vec<SkippedObject> {
        let skipped = self.inner.skipped.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = skipped.values().cloned().collect();
        all.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// Records that an object was skipped. Its last version stays, if there is one.
    pub fn skip(&self, uid: String, object: SkippedObject) {
        self.change_skipped(|skipped| drop(skipped.insert(uid, object)));
        self.notify();
    }

    /// Returns whether an object was not skipped for that reason before.
    pub fn is_newly_skipped(&self, uid: &str, object: &SkippedObject) -> bool {
        self.inner.skipped.read().unwrap_or_else(PoisonError::into_inner).get(uid) != Some(object)
    }

    /// Removes an object.
    pub fn remove(&self, uid: &str) {
        self.change_skipped(|skipped| drop(skipped.remove(uid)));
        self.write(|objects| drop(objects.remove(uid)));
        self.notify();
    }

    /// Replaces all objects. The cache is synced from then on.
    pub fn replace(&self, all: impl IntoIterator<Item = (String, T)>) {
        self.replace_with_skipped(all, []);
    }

    /// As [`replace`](Self::replace); of the skipped objects, the last versions stay.
    pub fn replace_with_skipped(
        &self,
        all: impl IntoIterator<Item = (String, T)>,
        skipped: impl IntoIterator<Item = (String, SkippedObject)>,
    ) {
        let skipped: HashMap<_, _> = skipped.into_iter().collect();
        self.write(|objects| {
            objects.retain(|uid, _| skipped.contains_key(uid));
            objects.extend(all.into_iter().map(|(uid, object)| (uid, Arc::new(object))));
        });
        self.change_skipped(|known| *known = skipped);
        self.update_status(|status| status.synced = true);
        self.notify();
    }

    /// Records a response of the API server, which ends an error.
    pub fn record_contact(&self) {
        self.update_status(|status| {
            status.last_contact = Some(Instant::now());
            status.last_error = None;
        });
    }

    /// Records why the API server could not be asked.
    pub fn record_error(&self, error: String) {
        self.update_status(|status| status.last_error = Some(error));
    }

    fn read<R>(&self, read: impl FnOnce(&HashMap<String, Arc<T>>) -> R) -> R {
        read(&self.inner.objects.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write(&self, write: impl FnOnce(&mut HashMap<String, Arc<T>>)) {
        write(&mut self.inner.objects.write().unwrap_or_else(PoisonError::into_inner));
    }

    fn change_skipped(&self, change: impl FnOnce(&mut HashMap<String, SkippedObject>)) {
        change(&mut self.inner.skipped.write().unwrap_or_else(PoisonError::into_inner));
    }

    fn status(&self) -> SyncStatus {
        self.inner.status.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn update_status(&self, update: impl FnOnce(&mut SyncStatus)) {
        update(&mut self.inner.status.write().unwrap_or_else(PoisonError::into_inner));
    }

    fn notify(&self) {
        self.inner.changes.send_modify(|count| *count += 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wakes_subscribers_of_real_changes() {
        let cache = Cache::default();
        let mut changes = cache.subscribe();
        cache.replace([("u0".to_owned(), 0)]);
        cache.put("u1".to_owned(), 1);
        assert!(changes.has_changed().unwrap());
        changes.borrow_and_update();
        cache.put("u1".to_owned(), 1);
        assert!(!changes.has_changed().unwrap(), "unchanged");
        cache.remove("u0");
        assert!(changes.has_changed().unwrap());
        assert_eq!((cache.all().len(), cache.get("u1").as_deref(), cache.find(|n| *n == 0)), (1, Some(&1), None));
    }

    #[test]
    fn contact_ends_an_error() {
        let cache = Cache::<u8>::default();
        assert!(cache.age().is_none() && !cache.is_synced());
        cache.replace([]);
        cache.record_error("401".to_owned());
        assert_eq!(cache.last_error().as_deref(), Some("401"));
        cache.record_contact();
        assert!(cache.last_error().is_none() && cache.age().is_some() && cache.is_synced());
    }
}
