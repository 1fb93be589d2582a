//! Limits on the size of objects; larger ones are skipped.

use std::collections::HashMap;

use serde::Deserialize;

/// Largest object that is read at all; etcd stores at most 1.5 MiB.
pub(super) const MAX_OBJECT_BYTES: usize = 4 << 20;

/// Limits of the objects that a reflector keeps. Those beyond are skipped, and listed in
/// [`Cache::skipped`](crate::Cache::skipped); of a changed one, the last version within the limits is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObjectLimits {
    /// Bytes of an object, as JSON.
    pub object_bytes: usize,
    /// Bytes of all objects of a namespace, as JSON.
    pub namespace_bytes: usize,
}

impl ObjectLimits {
    /// No limit but that of etcd: for objects of which little is kept, or that only administrators write.
    pub const ETCD: Self = Self { object_bytes: MAX_OBJECT_BYTES, namespace_bytes: usize::MAX };
}

/// Identity of an object; the rest of its text is skipped.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ObjectHead {
    pub(super) metadata: HeadMetadata,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct HeadMetadata {
    pub(super) uid: String,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) resource_version: String,
}

impl HeadMetadata {
    pub(super) fn full_name(&self) -> String {
        if self.namespace.is_empty() { self.name.clone() } else { format!("{}/{}", self.namespace, self.name) }
    }
}

/// Bytes of the objects in the cache, by uid and by namespace.
#[derive(Debug, Default)]
pub(super) struct Usage {
    objects: HashMap<String, (String, usize)>,
    namespaces: HashMap<String, usize>,
}

impl Usage {
    /// Adds or replaces an object, unless it is beyond the limits: then the error says why.
    pub(super) fn put(&mut self, head: &HeadMetadata, bytes: usize, limits: ObjectLimits) -> Result<(), String> {
        if bytes > limits.object_bytes {
            return Err(format!("has {bytes} bytes; the limit is {}", limits.object_bytes));
        }
        let known = self.objects.get(&head.uid).map_or(0, |(_, bytes)| *bytes);
        let others = self.namespaces.get(&head.namespace).map_or(0, |all| all - known);
        if bytes > limits.namespace_bytes.saturating_sub(others) {
            let (limit, namespace) = (limits.namespace_bytes, &head.namespace);
            return Err(format!("objects of namespace {namespace} together have more than {limit} bytes"));
        }
        self.remove(&head.uid);
        self.objects.insert(head.uid.clone(), (head.namespace.clone(), bytes));
        *self.namespaces.entry(head.namespace.clone()).or_default() += bytes;
        Ok(())
    }

    pub(super) fn remove(&mut self, uid: &str) {
        let Some((namespace, bytes)) = self.objects.remove(uid) else { return };
        if let Some(all) = self.namespaces.get_mut(&namespace) {
            *all -= bytes;
            if *all == 0 {
                self.namespaces.remove(&namespace);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_hold_by_object_and_by_namespace() {
        let head = |namespace: &str, uid: &str| HeadMetadata {
            uid: uid.to_owned(),
            namespace: namespace.to_owned(),
            ..HeadMetadata::default()
        };
        let limits = ObjectLimits { object_bytes: 60, namespace_bytes: 100 };
        let mut usage = Usage::default();
        assert!(usage.put(&head("a", "1"), 61, limits).unwrap_err().contains("has 61 bytes; the limit is 60"));
        assert_eq!(usage.put(&head("a", "1"), 60, limits), Ok(()));
        assert!(usage.put(&head("a", "2"), 50, limits).unwrap_err().contains("namespace a"));
        assert_eq!(usage.put(&head("b", "3"), 50, limits), Ok(()), "another namespace has its own share");
        assert_eq!(usage.put(&head("a", "1"), 50, limits), Ok(()), "an object replaces itself");
        assert_eq!(usage.put(&head("a", "2"), 50, limits), Ok(()));
        usage.remove("1");
        usage.remove("2");
        assert_eq!(usage.namespaces.len(), 1);
    }
}
