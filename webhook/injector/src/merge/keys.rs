//! Merge keys of a pod's lists, from `patchMergeKey` and `patchStrategy` in `k8s.io/api/core/v1`.

use std::borrow::Cow;

use serde_json::{Map, Value};

/// The part of a pod to which a map belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MapKind {
    /// The pod itself.
    Pod,
    /// `metadata`.
    ObjectMeta,
    /// `spec`.
    PodSpec,
    /// An item of one of the lists of containers.
    Container,
    /// Any other map; no list in it has a merge key.
    Other,
}

/// Strategy by which a field is merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Field {
    /// A list of objects that a key identifies.
    Keyed(Key, MapKind),
    /// A list of scalars that becomes the union of both.
    Union,
    /// A map that is merged, or anything else, which is replaced.
    Plain(MapKind),
}

/// The merge key of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Key {
    /// The field that every item must have.
    pub(crate) field: &'static str,
    /// A second field with its default, if the first is not unique.
    second: Option<(&'static str, &'static str)>,
}

impl Key {
    const fn new(field: &'static str) -> Self {
        Self { field, second: None }
    }

    /// Returns the identity of an item; `None` if it has no key.
    pub(crate) fn identity<'a>(&self, item: &'a Map<String, Value>) -> Option<Cow<'a, str>> {
        let first = match item.get(self.field)? {
            Value::String(text) => Cow::Borrowed(text.as_str()),
            Value::Number(number) => Cow::Owned(number.to_string()),
            Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => return None,
        };
        let Some((field, default)) = self.second else { return Some(first) };
        let second = item.get(field).and_then(Value::as_str).filter(|text| !text.is_empty()).unwrap_or(default);
        Some(Cow::Owned(format!("{first}/{second}")))
    }
}

impl MapKind {
    /// Returns how a field of this part of a pod is merged.
    ///
    /// Ports are identified by number and protocol, as in server-side apply (`x-kubernetes-list-map-keys`): by the number
    /// alone, DNS over UDP and TCP would become one port.
    pub(crate) fn field(self, name: &str) -> Field {
        let by_name = Key::new("name");
        match (self, name) {
            (Self::Pod, "metadata") => Field::Plain(Self::ObjectMeta),
            (Self::Pod, "spec") => Field::Plain(Self::PodSpec),
            (Self::ObjectMeta, "ownerReferences") => Field::Keyed(Key::new("uid"), Self::Other),
            (Self::ObjectMeta, "finalizers") => Field::Union,
            (Self::PodSpec, "containers" | "initContainers" | "ephemeralContainers") => {
                Field::Keyed(by_name, Self::Container)
            }
            (
                Self::PodSpec,
                "volumes" | "imagePullSecrets" | "schedulingGates" | "resourceClaims" | "evictionResponders",
            )
            | (Self::Container, "env") => Field::Keyed(by_name, Self::Other),
            (Self::PodSpec, "hostAliases") => Field::Keyed(Key::new("ip"), Self::Other),
            (Self::PodSpec, "topologySpreadConstraints") => Field::Keyed(Key::new("topologyKey"), Self::Other),
            (Self::Container, "ports") => {
                Field::Keyed(Key { field: "containerPort", second: Some(("protocol", "TCP")) }, Self::Other)
            }
            (Self::Container, "volumeMounts") => Field::Keyed(Key::new("mountPath"), Self::Other),
            (Self::Container, "volumeDevices") => Field::Keyed(Key::new("devicePath"), Self::Other),
            _ => Field::Plain(Self::Other),
        }
    }
}
