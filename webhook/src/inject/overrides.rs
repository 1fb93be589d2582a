//! What the user wrote about injected containers: it beats the templates, and it survives every further injection.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::containers::{self, List};
use super::context::{Context, PROXY};
use super::merge::{MergeError, merge_container};
use super::previous::Previous;
use crate::settings::Platform;

/// Variables of the proxy that an injection appends for the application's sake. What they tell cannot be read from an
/// injected pod a second time.
const KEPT_VARIABLES: [&str; 2] = ["ISTIO_PROMETHEUS_ANNOTATIONS", "ISTIO_KUBE_APP_PROBERS"];

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

/// Prepares a pod for the merge: what an earlier injection added and this one does not add at the same place goes, and the
/// proxy that the user wrote stands in the list in which the template has it.
pub(super) fn prepare(pod: &mut Value, template: &Value, previous: &Previous) {
    for list in List::BOTH {
        let listed = |name: &str| match list {
            List::Containers => previous.injected_container(name),
            List::InitContainers => previous.injected_init_container(name),
        };
        let (here, there) = (list.positions(template), list.other().positions(template));
        let Some(containers) = list.of_mut(pod) else { continue };
        let is_stale =
            |container: &Value| container["name"].as_str().is_some_and(|name| listed(name) && !here.contains_key(name));
        let (stale, kept) = std::mem::take(containers).into_iter().partition(is_stale);
        *containers = kept;
        let stale: Vec<Value> = stale;
        for container in stale {
            let name = container["name"].as_str().unwrap_or_default();
            if there.contains_key(name) {
                list.other().push(pod, remains(name, &container, previous));
            } else if let Some(original) = previous.stored(name) {
                list.push(pod, original.clone());
            }
        }
    }
    join_lists(pod, template);
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

/// What of a container has to outlive its move to the other list: what the user wrote, and what only it knows.
fn remains(name: &str, container: &Value, previous: &Previous) -> Value {
    let mut remains = previous.stored(name).cloned().unwrap_or_else(|| json!({"name": name}));
    let is_kept = |variable: &&Value| variable["name"].as_str().is_some_and(|name| KEPT_VARIABLES.contains(&name));
    let kept: Vec<Value> = container["env"].as_array().into_iter().flatten().filter(is_kept).cloned().collect();
    if !kept.is_empty() {
        match remains["env"].as_array_mut() {
            Some(env) => env.extend(kept),
            None => remains["env"] = Value::Array(kept),
        }
    }
    remains
}

/// Merges the user's containers over those of the template.
///
/// # Errors
/// A container of the user cannot be merged: an item of one of its lists has no key.
pub(super) fn reapply(
    injected: &mut Value,
    original: &Value,
    template: &Value,
    previous: &Previous,
    platform: Platform,
) -> Result<Recorded, MergeError> {
    let mut recorded = Recorded::default();
    let written = List::BOTH.map(|list| list.positions(original));
    for list in List::BOTH {
        let positions: HashMap<String, usize> =
            list.positions(injected).into_iter().map(|(name, position)| (name.to_owned(), position)).collect();
        let Some(containers) = list.of_mut(injected) else { continue };
        for name in list.of(template).iter().filter_map(|container| container["name"].as_str()) {
            let own = own_version(original, &written, name, list, previous);
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
            if previous.injected && name != PROXY {
                take_back_handlers(container, &own);
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

/// Takes the actions out of handlers that the user wrote: an earlier injection has sent them through the agent, and the
/// user's own, which come back with the merge, are sent there again.
fn take_back_handlers(container: &mut Value, own: &Value) {
    let handlers = ["/readinessProbe", "/livenessProbe", "/startupProbe", "/lifecycle/preStop", "/lifecycle/postStart"];
    for handler in handlers.into_iter().filter(|handler| own.pointer(handler).is_some_and(Value::is_object)) {
        if let Some(Value::Object(fields)) = container.pointer_mut(handler) {
            fields.retain(|field, _| !matches!(field.as_str(), "exec" | "httpGet" | "tcpSocket" | "grpc"));
        }
    }
}

/// What the user wrote about a container of the template: as it was stored by the first injection, else as it stands in the
/// pod, unless an earlier injection put it there.
fn own_version<'a>(
    original: &'a Value,
    [containers, init_containers]: &[HashMap<&str, usize>; 2],
    name: &str,
    list: List,
    previous: &'a Previous,
) -> Option<&'a Value> {
    if let Some(stored) = previous.stored(name) {
        return Some(stored);
    }
    if previous.injected_container(name) || previous.injected_init_container(name) {
        return None;
    }
    let own = containers.get(name).map(|position| &List::Containers.of(original)[*position]);
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

/// Puts the variables that stand last after a first injection last again.
pub(super) fn keep_variables_last(pod: &mut Value) {
    let Some(env) = containers::find_mut(pod, PROXY).and_then(|proxy| proxy.get_mut("env")?.as_array_mut()) else {
        return;
    };
    let kept = |variable: &Value, wanted: &str| variable["name"] == wanted;
    for wanted in KEPT_VARIABLES {
        if let Some(index) = env.iter().position(|variable| kept(variable, wanted)) {
            env[index..].rotate_left(1);
        }
    }
}
