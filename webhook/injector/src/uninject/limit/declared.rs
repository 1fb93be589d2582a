//! A user's declaration of a container of the mesh counts as far as the container in the pod shows it.

use std::collections::HashSet;

use serde_json::Value;

use super::comparison::{Change, Comparison, Decide, ListRules};
use super::rules::{MeshRules, redirected_or};
use crate::containers::{self, ContainerList, PROXY_CONTAINER};
use crate::merge::keys::MapKind;

impl<'a> MeshRules<'a> {
    /// Decides about a field of the declaration; `user` is the declared user of the container.
    pub(super) fn declared_field(
        self,
        at: &mut Comparison,
        container: &str,
        user: Option<i64>,
        key: &str,
        change: Change<'a>,
    ) -> Option<Value> {
        match key {
            "name" | "restartPolicy" => change.now,
            "image" if change.now.as_ref().is_some_and(|image| image == "auto") => change.now,
            "args" if is_same_but_user(change.was, change.now.as_ref()) => change.now,
            "securityContext" => at.fields(change, &mut |at, key, change| {
                if self.is_written_user(container, user, key, change.was) { change.now } else { at.shown(change) }
            }),
            "env" => {
                let variables = change.was.and_then(Value::as_array).into_iter().flatten();
                let present: HashSet<&str> = variables.filter_map(|item| item["name"].as_str()).collect();
                let written = self.current.variables;
                declared_items(at, key, change, &mut |at, _, change| {
                    let name = change.now.as_ref().and_then(|item| item["name"].as_str()).unwrap_or_default();
                    let overridden =
                        name.starts_with("ISTIO_") || written.is_some_and(|written| written.contains_key(name));
                    if overridden || (change.was.is_none() && present.contains(name)) {
                        return change.now;
                    }
                    at.shown(change)
                })
            }
            "volumeMounts" | "volumeDevices" | "ports" => {
                declared_items(at, key, change, &mut |at, _, change| at.shown(change))
            }
            "lifecycle" => {
                at.fields(change, &mut |at, key, change| redirected_or(at, container, key, change, Comparison::shown))
            }
            _ => redirected_or(at, container, key, change, Comparison::shown),
        }
    }

    /// Returns whether an injection wrote this user or group over the declared one.
    fn is_written_user(self, container: &str, user: Option<i64>, key: &str, was: Option<&Value>) -> bool {
        if !matches!(key, "runAsUser" | "runAsGroup") {
            return false;
        }
        if container != PROXY_CONTAINER {
            let proxy = containers::find(self.standing, PROXY_CONTAINER).map(|proxy| &proxy["securityContext"][key]);
            return was.is_some() && proxy == was;
        }
        // TPROXY needs root.
        if key == "runAsUser" && was.is_some_and(|was| *was == 0) {
            return true;
        }
        let mut applications =
            ContainerList::Containers.of(self.standing).iter().filter(|other| other["name"] != PROXY_CONTAINER);
        let assigned = applications.next_back().map(|last| last["securityContext"]["runAsUser"].as_i64().unwrap_or(0));
        self.current.assigns_users && assigned.is_some() && assigned == user
    }
}

/// Decides about the items of a declared list, whose others come from the templates.
fn declared_items<'a>(at: &mut Comparison, field: &str, change: Change<'a>, decide: Decide<'_, 'a>) -> Option<Value> {
    at.items(change, MapKind::Container, field, &mut ListRules { may_go: &|_, _| true, decide, is_ordered: None })
}

/// Returns whether two lists of arguments are equal but for the user of the proxy (`-u`).
fn is_same_but_user(was: Option<&Value>, now: Option<&Value>) -> bool {
    let (Some(was), Some(now)) = (was.and_then(Value::as_array), now.and_then(Value::as_array)) else { return false };
    let user = was.iter().position(|arg| arg == "-u").map(|flag| flag + 1);
    was.len() == now.len()
        && was.iter().zip(now).enumerate().all(|(position, (was, now))| was == now || Some(position) == user)
}
