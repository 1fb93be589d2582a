//! Access to the containers of a pod by list and name.

use std::collections::HashMap;

use serde_json::{Value, json};

/// Name of the proxy's container.
pub const PROXY_CONTAINER: &str = "istio-proxy";

/// A list of containers in a pod's spec.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ContainerList {
    /// `spec.containers`.
    Containers,
    /// `spec.initContainers`.
    InitContainers,
}

impl ContainerList {
    /// Both lists, in the order in which they are searched.
    pub(crate) const BOTH: [Self; 2] = [Self::Containers, Self::InitContainers];

    pub(crate) const fn other(self) -> Self {
        match self {
            Self::Containers => Self::InitContainers,
            Self::InitContainers => Self::Containers,
        }
    }

    /// Returns the name of the field in the pod's spec.
    pub(crate) const fn field(self) -> &'static str {
        match self {
            Self::Containers => "containers",
            Self::InitContainers => "initContainers",
        }
    }

    /// Returns the containers of the list.
    pub(crate) fn of(self, pod: &Value) -> &[Value] {
        pod["spec"][self.field()].as_array().map_or(&[], Vec::as_slice)
    }

    /// Returns the positions of the containers by name; of two with the same name, that of the first.
    pub(crate) fn positions(self, pod: &Value) -> HashMap<&str, usize> {
        let names = self.of(pod).iter().enumerate().rev();
        names.filter_map(|(position, container)| Some((container["name"].as_str()?, position))).collect()
    }

    pub(crate) fn of_mut(self, pod: &mut Value) -> Option<&mut Vec<Value>> {
        pod.get_mut("spec")?.get_mut(self.field())?.as_array_mut()
    }

    pub(crate) fn find<'a>(self, pod: &'a Value, name: &str) -> Option<&'a Value> {
        self.of(pod).iter().find(|container| container["name"] == name)
    }

    pub(crate) fn find_mut<'a>(self, pod: &'a mut Value, name: &str) -> Option<&'a mut Value> {
        self.of_mut(pod)?.iter_mut().find(|container| container["name"] == name)
    }

    pub(crate) fn remove(self, pod: &mut Value, name: &str) -> Option<Value> {
        let list = self.of_mut(pod)?;
        let index = list.iter().position(|container| container["name"] == name)?;
        Some(list.remove(index))
    }

    /// Appends a container; creates the list if the pod has none.
    pub(crate) fn push(self, pod: &mut Value, container: Value) {
        let list = &mut pod["spec"][self.field()];
        match list.as_array_mut() {
            Some(list) => list.push(container),
            None => *list = json!([container]),
        }
    }
}

/// Finds a container by name in either list.
pub(crate) fn find<'a>(pod: &'a Value, name: &str) -> Option<&'a Value> {
    ContainerList::BOTH.iter().find_map(|list| list.find(pod, name))
}

/// Finds a container by name in either list, for changes.
pub(crate) fn find_mut<'a>(pod: &'a mut Value, name: &str) -> Option<&'a mut Value> {
    let list = ContainerList::BOTH.into_iter().find(|list| list.find(pod, name).is_some())?;
    list.find_mut(pod, name)
}

/// Reduces an overlay to the names of what it adds: enough to tell the injected items from the user's.
pub(crate) fn outline(overlay: &Value) -> Value {
    let spec = &overlay["spec"];
    let names =
        |list: &Value| list.as_array().map(|items| items.iter().map(|item| json!({"name": item["name"]})).collect());
    let lists = ["initContainers", "containers", "volumes", "imagePullSecrets"];
    let lists = lists.into_iter().filter_map(|list| Some((list.to_owned(), names(&spec[list])?)));
    json!({"spec": Value::Object(lists.collect())})
}
