//! The lists of containers of a pod, by name.

use std::collections::HashMap;

use serde_json::{Value, json};

/// Which list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum List {
    /// `spec.containers`.
    Containers,
    /// `spec.initContainers`.
    InitContainers,
}

impl List {
    /// Both, in the order in which they are looked through.
    pub(crate) const BOTH: [Self; 2] = [Self::Containers, Self::InitContainers];

    /// The other one.
    pub(crate) const fn other(self) -> Self {
        match self {
            Self::Containers => Self::InitContainers,
            Self::InitContainers => Self::Containers,
        }
    }

    /// Name of the field in the pod's spec.
    pub(crate) const fn field(self) -> &'static str {
        match self {
            Self::Containers => "containers",
            Self::InitContainers => "initContainers",
        }
    }

    /// The containers in it.
    pub(crate) fn of(self, pod: &Value) -> &[Value] {
        pod["spec"][self.field()].as_array().map_or(&[], Vec::as_slice)
    }

    /// Positions of the containers by name; of two of one name the first.
    pub(crate) fn positions(self, pod: &Value) -> HashMap<&str, usize> {
        let names = self.of(pod).iter().enumerate().rev();
        names.filter_map(|(position, container)| Some((container["name"].as_str()?, position))).collect()
    }

    /// The containers, to change them; `None` where the pod has no such list.
    pub(crate) fn of_mut(self, pod: &mut Value) -> Option<&mut Vec<Value>> {
        pod.get_mut("spec")?.get_mut(self.field())?.as_array_mut()
    }

    /// The container of that name.
    pub(crate) fn find<'a>(self, pod: &'a Value, name: &str) -> Option<&'a Value> {
        self.of(pod).iter().find(|container| container["name"] == name)
    }

    /// The container of that name, to change it.
    pub(crate) fn find_mut<'a>(self, pod: &'a mut Value, name: &str) -> Option<&'a mut Value> {
        self.of_mut(pod)?.iter_mut().find(|container| container["name"] == name)
    }

    /// Takes the container of that name out.
    pub(crate) fn remove(self, pod: &mut Value, name: &str) -> Option<Value> {
        let list = self.of_mut(pod)?;
        let index = list.iter().position(|container| container["name"] == name)?;
        Some(list.remove(index))
    }

    /// Puts a container at the end.
    pub(crate) fn push(self, pod: &mut Value, container: Value) {
        let list = &mut pod["spec"][self.field()];
        match list.as_array_mut() {
            Some(list) => list.push(container),
            None => *list = json!([container]),
        }
    }
}

/// The container of that name, in either list.
pub(crate) fn find<'a>(pod: &'a Value, name: &str) -> Option<&'a Value> {
    List::BOTH.iter().find_map(|list| list.find(pod, name))
}

/// The container of that name in either list, to change it.
pub(crate) fn find_mut<'a>(pod: &'a mut Value, name: &str) -> Option<&'a mut Value> {
    let list = List::BOTH.into_iter().find(|list| list.find(pod, name).is_some())?;
    list.find_mut(pod, name)
}

/// What a template adds, by name only: enough to know what is its own.
pub(crate) fn outline(template: &Value) -> Value {
    let spec = &template["spec"];
    let names =
        |list: &Value| list.as_array().map(|items| items.iter().map(|item| json!({"name": item["name"]})).collect());
    let lists = ["initContainers", "containers", "volumes", "imagePullSecrets"];
    let lists = lists.into_iter().filter_map(|list| Some((list.to_owned(), names(&spec[list])?)));
    json!({"spec": Value::Object(lists.collect())})
}
