//! Containers that the user declares to override injected ones; they are recorded, so that later injections apply them again.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::annotations::{OVERRIDES, StringMap};
use crate::compact::{self, Compact};
use crate::containers::{self, ContainerList, PROXY_CONTAINER};
use crate::merge::{MergeError, merge_container};
use crate::settings::Platform;

/// The annotation `proxy.istio.io/overrides`: containers and init containers as the user declared them, by name.
#[derive(Debug, Default)]
pub(crate) struct StoredOverrides(HashMap<String, Value>);

impl StoredOverrides {
    /// Reads the annotation.
    ///
    /// # Errors
    /// Fails if the annotation is invalid, because injecting without it would lose what the user declared.
    pub(crate) fn read(annotations: StringMap<'_>) -> Result<Self, String> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Lists {
            #[serde(default)]
            containers: Vec<Compact>,
            #[serde(default)]
            init_containers: Vec<Compact>,
        }
        let Some(text) = annotations.get(OVERRIDES) else { return Ok(Self::default()) };
        let lists: Lists = serde_json::from_str(text).map_err(|error| {
            let text: String = text.chars().take(80).collect();
            format!("invalid value '{text}' for annotation '{OVERRIDES}': {error}")
        })?;
        let containers = lists.containers.into_iter().chain(lists.init_containers);
        Ok(Self::of_containers(containers.map(|Compact(container)| container)))
    }

    fn of_containers(containers: impl Iterator<Item = Value>) -> Self {
        let mut stored = HashMap::new();
        for container in containers {
            if let Some(name) = container["name"].as_str() {
                stored.entry(name.to_owned()).or_insert(container);
            }
        }
        Self(stored)
    }

    /// Keeps the containers for which `limit` returns a value.
    pub(crate) fn limited(self, mut limit: impl FnMut(Value) -> Option<Value>) -> Self {
        let mut containers: Vec<(String, Value)> = self.0.into_iter().collect();
        containers.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        Self(containers.into_iter().filter_map(|(name, container)| Some((name, limit(container)?))).collect())
    }

    pub(crate) fn find(&self, name: &str) -> Option<&Value> {
        self.0.get(name)
    }
}

/// The user's containers that were merged over those of the templates.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AppliedOverrides {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    containers: Vec<Value>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    init_containers: Vec<Value>,
}

impl AppliedOverrides {
    /// Returns the value of `proxy.istio.io/overrides`; `None` if there is nothing to record.
    pub(crate) fn to_annotation(&self) -> Option<String> {
        if self.containers.is_empty() && self.init_containers.is_empty() {
            return None;
        }
        // Strings, numbers and string keys always serialize.
        serde_json::to_string(self).ok()
    }

    /// Returns what reading the annotation gives.
    pub(crate) fn into_stored(self) -> StoredOverrides {
        StoredOverrides::of_containers(self.containers.into_iter().chain(self.init_containers))
    }

    fn proxy(&self) -> Option<&Value> {
        self.containers.iter().chain(&self.init_containers).find(|container| container["name"] == PROXY_CONTAINER)
    }
}

/// Moves the user's proxy into the list in which the template has it.
pub(crate) fn align_proxy_list(pod: &mut Value, template: &Value) {
    for list in ContainerList::BOTH {
        if list.find(template, PROXY_CONTAINER).is_none() {
            continue;
        }
        let Some(mut proxy) = list.other().remove(pod, PROXY_CONTAINER) else { continue };
        if list == ContainerList::Containers
            && let Some(fields) = proxy.as_object_mut()
        {
            // Only meaningful in an init container.
            fields.shift_remove("restartPolicy");
        }
        list.remove(pod, PROXY_CONTAINER);
        list.push(pod, proxy);
    }
}

/// Merges the user's containers over those of the template.
///
/// # Errors
/// Fails if a container of the user cannot be merged, because an item of one of its lists has no merge key.
pub(crate) fn reapply(
    injected: &mut Value,
    original: &Value,
    template: &Value,
    stored: &StoredOverrides,
    platform: Platform,
) -> Result<AppliedOverrides, MergeError> {
    let mut applied = AppliedOverrides::default();
    let declared = ContainerList::BOTH.map(|list| list.positions(original));
    for list in ContainerList::BOTH {
        let positions: HashMap<String, usize> =
            list.positions(injected).into_iter().map(|(name, position)| (name.to_owned(), position)).collect();
        let Some(containers) = list.of_mut(injected) else { continue };
        for name in list.of(template).iter().filter_map(|container| container["name"].as_str()) {
            let own = user_version(original, &declared, name, list, stored);
            let container = positions.get(name).and_then(|position| containers.get_mut(*position));
            let (Some(own), Some(container)) = (own, container) else { continue };
            let mut own = compact::copy(own);
            if let Some(fields) = own.as_object_mut() {
                if fields.get("image").is_some_and(|image| image == "auto") {
                    fields.shift_remove("image");
                }
                if list == ContainerList::Containers && name == PROXY_CONTAINER {
                    fields.shift_remove("restartPolicy");
                }
            }
            if platform == Platform::OpenShift && name == PROXY_CONTAINER {
                remove_assigned_user(&mut own, original);
            }
            merge_container(container, compact::copy(&own), list.field())?;
            match list {
                ContainerList::Containers => applied.containers.push(own),
                ContainerList::InitContainers => applied.init_containers.push(own),
            }
        }
    }
    Ok(applied)
}

/// Returns the user's version of a template's container: the recorded one, else the one in the pod.
fn user_version<'a>(
    original: &'a Value,
    [containers, init_containers]: &[HashMap<&str, usize>; 2],
    name: &str,
    list: ContainerList,
    stored: &'a StoredOverrides,
) -> Option<&'a Value> {
    let in_containers = || Some(&ContainerList::Containers.of(original)[*containers.get(name)?]);
    let own = stored.find(name).or_else(in_containers);
    if list == ContainerList::InitContainers || name == PROXY_CONTAINER {
        return own.or_else(|| Some(&ContainerList::InitContainers.of(original)[*init_containers.get(name)?]));
    }
    own
}

/// Removes the user that OpenShift has assigned to the proxy, as to every container: it is not the user's override.
fn remove_assigned_user(proxy: &mut Value, original: &Value) {
    let mut applications =
        ContainerList::Containers.of(original).iter().filter(|container| container["name"] != PROXY_CONTAINER);
    let user = |container: &Value| container["securityContext"]["runAsUser"].as_i64().unwrap_or(0);
    let Some(assigned) = applications.next_back().map(user) else { return };
    if user(proxy) == assigned
        && let Some(security) = proxy.get_mut("securityContext").and_then(Value::as_object_mut)
    {
        security.shift_remove("runAsUser");
        security.shift_remove("runAsGroup");
    }
}

/// Makes the init container exempt the user and group that the proxy runs as after the overrides.
pub(crate) fn sync_init_user(injected: &mut Value, applied: &AppliedOverrides, tproxy: bool) {
    let Some(security) = applied.proxy().map(|proxy| &proxy["securityContext"]) else { return };
    let (user, group) = (security["runAsUser"].as_u64(), security["runAsGroup"].as_u64());
    let init = ["istio-init", "istio-validation"];
    let init = init.into_iter().find(|name| ContainerList::InitContainers.find(injected, name).is_some());
    let (Some(init), false) = (init, user.is_none() && group.is_none()) else { return };
    if tproxy
        && user.is_some()
        && let Some(proxy) = containers::find_mut(injected, PROXY_CONTAINER)
    {
        proxy["securityContext"]["runAsUser"] = 0.into();
    }
    let Some(init_container) = ContainerList::InitContainers.find_mut(injected, init) else { return };
    if !tproxy && init == "istio-validation" {
        for (field, id) in [("runAsUser", user), ("runAsGroup", group)] {
            if let Some(id) = id {
                init_container["securityContext"][field] = id.into();
            }
        }
    }
    if let Some(user) = user.filter(|user| *user != 0)
        && let Some(args) = init_container.get_mut("args").and_then(Value::as_array_mut)
        && let Some(flag) = args.iter().position(|arg| arg == "-u")
        && let Some(id) = args.get_mut(flag + 1)
    {
        *id = user.to_string().into();
    }
}
