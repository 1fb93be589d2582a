//! Discovery: `/api`, `/apis`, `/api/v1`, `/apis/GROUP/VERSION`, by which clients find the resource of a kind.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::resources::Resource;
use super::store::Store;

const VERBS: [&str; 8] = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

/// Returns the response to a discovery path; `None` for any other path.
pub(super) fn respond(store: &Store, path: &str) -> Option<Value> {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    match parts.as_slice() {
        ["version"] => Some(json!({
            "major": "1", "minor": "33", "gitVersion": "v1.33.0", "gitCommit": "", "gitTreeState": "clean",
            "buildDate": "2025-04-23T13:00:00Z", "goVersion": "go1.24", "compiler": "gc", "platform": "linux/amd64",
        })),
        ["api"] => Some(json!({ "kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": [] })),
        ["apis"] => Some(json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups(store) })),
        ["api", version] => resources(store, version),
        ["apis", group] => groups(store).into_iter().find(|found| found["name"] == *group),
        ["apis", group, version] => resources(store, &format!("{group}/{version}")),
        _ => None,
    }
}

fn groups(store: &Store) -> Vec<Value> {
    let mut groups: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for resource in Resource::all(store) {
        if let Some((group, _)) = resource.api_version.split_once('/') {
            groups.entry(group.to_owned()).or_default().insert(resource.api_version);
        }
    }
    let version = |api_version: &String| {
        let version = api_version.rsplit('/').next().unwrap_or_default();
        json!({ "groupVersion": api_version, "version": version })
    };
    let group = |(name, versions): (String, BTreeSet<String>)| {
        let versions: Vec<Value> = versions.iter().map(version).collect();
        json!({ "kind": "APIGroup", "apiVersion": "v1", "name": name, "preferredVersion": versions.last(), "versions": versions })
    };
    groups.into_iter().map(group).collect()
}

/// Lists the resources of a version with their subresources; `None` for an unknown version.
fn resources(store: &Store, api_version: &str) -> Option<Value> {
    let all: Vec<Resource> =
        Resource::all(store).into_iter().filter(|found| found.api_version == api_version).collect();
    if all.is_empty() {
        return None;
    }
    let listed = all.iter().flat_map(|resource| {
        let verbs: &[&str] = if resource.name.ends_with("reviews") { &["create"] } else { &VERBS };
        let own = json!({
            "name": resource.name, "singularName": resource.kind.to_ascii_lowercase(), "namespaced": resource.namespaced,
            "kind": resource.kind, "verbs": verbs, "shortNames": resource.short,
        });
        let part = |name: &str, verbs: &[&str]| {
            json!({
                "name": format!("{}/{name}", resource.name), "singularName": "", "namespaced": resource.namespaced,
                "kind": resource.kind, "verbs": verbs,
            })
        };
        [own, part("status", &["get", "patch", "update"])]
    });
    Some(json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": api_version, "resources": listed.collect::<Vec<_>>(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &Value) -> Vec<&str> {
        list["resources"].as_array().unwrap().iter().map(|resource| resource["name"].as_str().unwrap()).collect()
    }

    #[test]
    fn groups_versions_and_resources_are_listed() {
        let store = Store::default();
        let groups = respond(&store, "/apis").unwrap();
        let apps = groups["groups"].as_array().unwrap().iter().find(|group| group["name"] == "apps").unwrap();
        assert_eq!(apps["preferredVersion"]["groupVersion"], "apps/v1");
        assert!(names(&respond(&store, "/api/v1").unwrap()).contains(&"pods/status"));
        assert!(names(&respond(&store, "/apis/apps/v1/").unwrap()).contains(&"deployments"));
        assert_eq!(respond(&store, "/apis/networking.istio.io/v1"), None);
    }

    #[test]
    fn custom_resource_definition_adds_its_resources() {
        let mut store = Store::default();
        store.put(
            "customresourcedefinitions",
            json!({
                "metadata": {"name": "proxyconfigs.networking.istio.io"},
                "spec": {
                    "group": "networking.istio.io", "scope": "Namespaced",
                    "names": {"plural": "proxyconfigs", "kind": "ProxyConfig"},
                    "versions": [{"name": "v1beta1", "served": true}, {"name": "v1alpha1", "served": false}],
                },
            }),
        );
        let list = respond(&store, "/apis/networking.istio.io/v1beta1").unwrap();
        assert_eq!(names(&list), ["proxyconfigs", "proxyconfigs/status"]);
        assert_eq!(respond(&store, "/apis/networking.istio.io/v1alpha1"), None);
        assert_eq!(Resource::find(&store, "networking.istio.io/v1beta1", "proxyconfigs").unwrap().kind, "ProxyConfig");
    }
}
