//! The capture configuration that each pod was started with. Later changes of its annotations change nothing until it is recreated.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use iptables_rules::CaptureConfig;

use crate::pods::PodFacts;

/// Most pods that are kept; a node has a few hundred at most.
const MAX_PODS: usize = 4096;
/// Length of all configurations together, as annotations. Beyond it a configuration is not kept.
const MAX_TOTAL_BYTES: usize = 8 << 20;
/// Time for a reported pod to appear in the pod cache.
const UNSEEN_FOR: Duration = Duration::from_mins(10);

/// Source of a configuration, the surest last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Knowledge {
    /// The annotations of the pod when the agent first saw it with an address. They may have changed since ADD.
    FirstSight,
    /// The plugin reported it, or the kernel was found to have exactly its rules.
    Installed,
}

#[derive(Debug)]
struct Entry {
    config: Arc<CaptureConfig>,
    knowledge: Knowledge,
    bytes: usize,
    /// Whether the pod was ever in the pod cache.
    seen: bool,
    recorded: Instant,
}

#[derive(Debug, Default)]
struct Entries {
    by_uid: HashMap<String, Entry>,
    bytes: usize,
}

/// Configurations by pod uid; clones share them. The first one that is known for sure stays.
#[derive(Debug, Clone, Default)]
pub struct InstalledConfigs(Arc<Mutex<Entries>>);

impl InstalledConfigs {
    /// Records what the plugin reported after an ADD, in the encoding of `weir.dev/capture`. A value of another version is ignored.
    pub fn record_report(&self, uid: &str, capture: &str) {
        if let Ok(config) = CaptureConfig::from_capture_annotation(capture) {
            self.record(uid, Arc::new(config), Knowledge::Installed, capture.len(), false);
        }
    }

    /// Records a configuration that the agent found out by itself.
    pub(super) fn record_found(&self, pod: &PodFacts, config: Arc<CaptureConfig>, knowledge: Knowledge) {
        let bytes = config.to_capture_annotation().len();
        self.record(&pod.uid, config, knowledge, bytes, true);
    }

    fn record(&self, uid: &str, config: Arc<CaptureConfig>, knowledge: Knowledge, bytes: usize, seen: bool) {
        let mut entries = self.lock();
        let (known, before) = match entries.by_uid.get(uid) {
            Some(entry) if entry.knowledge >= knowledge => return,
            Some(entry) => (entry.seen, entry.bytes),
            None if entries.by_uid.len() >= MAX_PODS => return,
            None => (false, 0),
        };
        let total = entries.bytes - before + bytes;
        if uid.is_empty() || total > MAX_TOTAL_BYTES {
            return;
        }
        entries.bytes = total;
        let entry = Entry { config, knowledge, bytes, seen: seen || known, recorded: Instant::now() };
        entries.by_uid.insert(uid.to_owned(), entry);
    }

    /// Returns what is known about a pod.
    pub fn get(&self, pod: &PodFacts) -> Option<(Arc<CaptureConfig>, Knowledge)> {
        let entries = self.lock();
        // The plugin knows a static pod by the kubelet's uid.
        let uids = pod.config_hash.iter().chain([&pod.uid]);
        let found = uids.filter_map(|uid| entries.by_uid.get(uid)).max_by_key(|entry| entry.knowledge);
        found.map(|entry| (Arc::clone(&entry.config), entry.knowledge))
    }

    /// Forgets the pods that are gone: those that are not among `pods` any more, or did not appear there in time.
    pub(super) fn retain(&self, pods: &[Arc<PodFacts>]) {
        let mut entries = self.lock();
        let Entries { by_uid, bytes } = &mut *entries;
        for entry in pods.iter().flat_map(|pod| pod.config_hash.iter().chain([&pod.uid])) {
            if let Some(entry) = by_uid.get_mut(entry) {
                entry.seen = true;
                entry.recorded = Instant::now();
            }
        }
        let present: std::collections::HashSet<&str> =
            pods.iter().flat_map(|pod| pod.config_hash.iter().chain([&pod.uid])).map(String::as_str).collect();
        by_uid.retain(|uid, entry| {
            let keep = present.contains(uid.as_str()) || (!entry.seen && entry.recorded.elapsed() < UNSEEN_FOR);
            if !keep {
                *bytes -= entry.bytes;
            }
            keep
        });
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::pods::facts;

    fn pod(uid: &str) -> PodFacts {
        facts(json!({"metadata": {"namespace": "shop", "name": uid, "uid": uid}}))
    }

    fn config(uid: u32) -> Arc<CaptureConfig> {
        Arc::new(CaptureConfig { proxy_uids: vec![uid], ..CaptureConfig::default() })
    }

    #[test]
    fn the_first_sure_knowledge_stays() {
        let configs = InstalledConfigs::default();
        let pod = pod("u1");
        assert_eq!(configs.get(&pod), None);
        configs.record_found(&pod, config(1), Knowledge::FirstSight);
        configs.record_found(&pod, config(2), Knowledge::FirstSight);
        assert_eq!(configs.get(&pod), Some((config(1), Knowledge::FirstSight)));
        configs.record_report("u1", r#"{"v":2}"#);
        configs.record_report("u1", r#"{"v":1,"proxyUids":[3]}"#);
        // Another sandbox of the same pod, after a change of its annotations.
        configs.record_report("u1", r#"{"v":1,"proxyUids":[4]}"#);
        assert_eq!(configs.get(&pod), Some((config(3), Knowledge::Installed)));
    }

    #[test]
    fn what_is_kept_is_bounded() {
        const BYTES: usize = 100_000;
        let configs = InstalledConfigs::default();
        for number in 0..2 * MAX_TOTAL_BYTES / BYTES {
            let config = Arc::new(CaptureConfig::default());
            configs.record(&number.to_string(), config, Knowledge::Installed, BYTES, false);
        }
        let kept = |configs: &InstalledConfigs| {
            let entries = configs.lock();
            (entries.bytes, entries.by_uid.values().map(|entry| entry.bytes).sum::<usize>())
        };
        assert!((1..=MAX_TOTAL_BYTES).contains(&kept(&configs).0));
        // A reported pod may not be in the cache yet; one that was is gone.
        configs.record_report("young", r#"{"v":1}"#);
        configs.retain(&[Arc::new(pod("0"))]);
        configs.retain(&[]);
        assert_eq!((configs.get(&pod("0")), configs.get(&pod("young")).is_some()), (None, true));
        let (total, sum) = kept(&configs);
        assert_eq!(total, sum);
    }
}
