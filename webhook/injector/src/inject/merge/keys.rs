//! Which lists of a pod are merged, and by what: the merge keys of `k8s.io/api/core/v1` (`patchMergeKey`, `patchStrategy`)
//! that matter to a pod, as one table.

use std::borrow::Cow;

use serde_json::{Map, Value};

/// The part of a pod that a map is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The pod itself.
    Pod,
    /// `metadata`.
    ObjectMeta,
    /// `spec`.
    PodSpec,
    /// An item of one of the lists of containers.
    Container,
    /// Anything below which no list has a key.
    Other,
}

/// What a field means for a merge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Field {
    /// A list of objects, told apart by a key.
    Keyed(Key, Kind),
    /// A list of scalars of which the union is taken.
    Union,
    /// A map that is merged, or anything else, which is replaced.
    Plain(Kind),
}

/// What tells the items of a list apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Key {
    /// The field that every item must have.
    pub(crate) field: &'static str,
    /// A second field with its default, where the first does not suffice.
    second: Option<(&'static str, &'static str)>,
}

impl Key {
    const fn new(field: &'static str) -> Self {
        Self { field, second: None }
    }

    /// What tells this item from the others; `None` where it lacks the key.
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

impl Kind {
    /// The meaning of a field of this part of a pod.
    ///
    /// Ports are told apart by number and protocol, as the API server does it when it applies a manifest
    /// (`x-kubernetes-list-map-keys`): by the number alone, DNS over UDP and TCP would become one port.
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
