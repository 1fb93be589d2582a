//! What the user wrote about injected containers: it beats the templates, and it survives every further injection.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::annotations::{OVERRIDES, Texts};
use super::containers::{self, List};
use super::context::{Context, PROXY};
use super::merge::{MergeError, merge_container};
use crate::settings::Platform;

/// The annotation `proxy.istio.io/overrides`: containers of either kind as the user wrote them, by name.
#[derive(Debug, Default)]
pub(crate) struct Stored(HashMap<String, Value>);

impl Stored {
    /// Reads the annotation.
    ///
    /// # Errors
    /// It cannot be read: going on without it would lose what the user wrote.
    pub(super) fn read(annotations: Texts<'_>) -> Result<Self, String> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Lists {
            #[serde(default)]
            containers: Vec<Value>,
            #[serde(default)]
            init_containers: Vec<Value>,
        }
        let Some(text) = annotations.get(OVERRIDES) else { return Ok(Self::default()) };
        let lists: Lists = serde_json::from_str(text).map_err(|error| {
            let text: String = text.chars().take(80).collect();
            format!("invalid value '{text}' for annotation '{OVERRIDES}': {error}")
        })?;
        let mut stored = HashMap::new();
        for container in lists.containers.into_iter().chain(lists.init_containers) {
            if let Some(name) = container["name"].as_str() {
                stored.entry(name.to_owned()).or_insert(container);
            }
        }
        Ok(Self(stored))
    }

    /// The user's own version of a container.
    pub(super) fn find(&self, name: &str) -> Option<&Value> {
        self.0.get(name)
    }
}

/// The containers of the user that were merged over those of the templates.
#[derive(Debug, Default)]
pub(super) struct Recorded {
    containers: Vec<Value>,
    init_containers: Vec<Value>,
}

impl Recorded {
    /// The value of `proxy.istio.io/overrides`; `None` where there is nothing to record.
    pub(super) fn to_annotation(&self) -> Option<String> {
        let mut lists = Map::new();
        for (list, containers) in [(List::Containers, &self.containers), (List::InitContainers, &self.init_containers)]
        {
            if !containers.is_empty() {
                lists.insert(list.field().to_owned(), Value::Array(containers.clone()));
            }
        }
        (!lists.is_empty()).then(|| Value::Object(lists).to_string())
    }

    fn proxy(&self) -> Option<&Value> {
        self.containers.iter().chain(&self.init_containers).find(|container| container["name"] == PROXY)
    }
}

/// Puts the proxy into the list in which the template has it, wherever it was written.
pub(super) fn join_lists(pod: &mut Value, template: &Value) {
    for list in List::BOTH {
        if list.find(template, PROXY).is_none() {
            continue;
        }
        let Some(mut proxy) = list.other().remove(pod, PROXY) else { continue };
        if list == List::Containers
            && let Some(fields) = proxy.as_object_mut()
        {
            // It only means something in an init container.
            fields.shift_remove("restartPolicy");
        }
        list.remove(pod, PROXY);
        list.push(pod, proxy);
    }
}

/// Merges the user's containers over those of the template.
///
/// # Errors
/// A container of the user cannot be merged: an item of one of its lists has no key.
pub(super) fn reapply(
    injected: &mut Value,
    original: &Value,
    template: &Value,
    stored: &Stored,
    platform: Platform,
) -> Result<Recorded, MergeError> {
    let mut recorded = Recorded::default();
    let written = List::BOTH.map(|list| list.positions(original));
    for list in List::BOTH {
        let positions: HashMap<String, usize> =
            list.positions(injected).into_iter().map(|(name, position)| (name.to_owned(), position)).collect();
        let Some(containers) = list.of_mut(injected) else { continue };
        for name in list.of(template).iter().filter_map(|container| container["name"].as_str()) {
            let own = own_version(original, &written, name, list, stored);
            let container = positions.get(name).and_then(|position| containers.get_mut(*position));
            let (Some(own), Some(container)) = (own, container) else { continue };
            let mut own = own.clone();
            if let Some(fields) = own.as_object_mut() {
                if fields.get("image").is_some_and(|image| image == "auto") {
                    fields.shift_remove("image");
                }
                if list == List::Containers && name == PROXY {
                    fields.shift_remove("restartPolicy");
                }
            }
            if platform == Platform::OpenShift && name == PROXY {
                drop_assigned_user(&mut own, original);
            }
            merge_container(container, own.clone(), list.field())?;
            match list {
                List::Containers => recorded.containers.push(own),
                List::InitContainers => recorded.init_containers.push(own),
            }
        }
    }
    Ok(recorded)
}

/// What the user wrote about a container of the template: as he stored it, else as it stands in the pod.
fn own_version<'a>(
    original: &'a Value,
    [containers, init_containers]: &[HashMap<&str, usize>; 2],
    name: &str,
    list: List,
    stored: &'a Stored,
) -> Option<&'a Value> {
    let in_containers = || Some(&List::Containers.of(original)[*containers.get(name)?]);
    let own = stored.find(name).or_else(in_containers);
    if list == List::InitContainers || name == PROXY {
        return own.or_else(|| Some(&List::InitContainers.of(original)[*init_containers.get(name)?]));
    }
    own
}

/// OpenShift assigns every container the user of the namespace; on a proxy that the user wrote this is not his wish.
fn drop_assigned_user(proxy: &mut Value, original: &Value) {
    let mut applications = List::Containers.of(original).iter().filter(|container| container["name"] != PROXY);
    let user = |container: &Value| container["securityContext"]["runAsUser"].as_i64().unwrap_or(0);
    let Some(assigned) = applications.next_back().map(user) else { return };
    if user(proxy) == assigned
        && let Some(security) = proxy.get_mut("securityContext").and_then(Value::as_object_mut)
    {
        security.shift_remove("runAsUser");
        security.shift_remove("runAsGroup");
    }
}

/// Makes the init container exempt the user and group that the proxy really runs as.
pub(super) fn fix_init_user(injected: &mut Value, recorded: &Recorded, context: &Context<'_>) {
    let Some(security) = recorded.proxy().map(|proxy| &proxy["securityContext"]) else { return };
    let (user, group) = (security["runAsUser"].as_u64(), security["runAsGroup"].as_u64());
    let init = ["istio-init", "istio-validation"];
    let init = init.into_iter().find(|name| List::InitContainers.find(injected, name).is_some());
    let (Some(init), false) = (init, user.is_none() && group.is_none()) else { return };
    let tproxy = context.mode == "TPROXY" || context.proxy_config.interception_mode() == "TPROXY";
    if tproxy
        && user.is_some()
        && let Some(proxy) = containers::find_mut(injected, PROXY)
    {
        proxy["securityContext"]["runAsUser"] = 0.into();
    }
    let Some(init_container) = List::InitContainers.find_mut(injected, init) else { return };
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
