//! Role-based access control: what the stored roles and bindings allow.

use serde_json::Value;

use super::auth::RequestAttributes;
use super::store::Store;

/// Returns whether a role that is bound to the user allows the request. `system:masters` may do everything.
pub(super) fn is_allowed(store: &Store, access: &RequestAttributes) -> bool {
    let of_cluster = store.list("clusterrolebindings");
    let of_namespace = store.list("rolebindings").filter(|binding| {
        !access.namespace.is_empty() && binding["metadata"]["namespace"] == access.namespace.as_str()
    });
    access.user.groups.iter().any(|group| group == "system:masters")
        || of_cluster.chain(of_namespace).filter(|binding| binds(binding, access)).any(|binding| {
            let role = &binding["roleRef"];
            let name = role["name"].as_str().unwrap_or_default();
            let found = if role["kind"] == "ClusterRole" {
                store.get("clusterroles", "", name)
            } else {
                store.get("roles", &access.namespace, name)
            };
            let rules = found.and_then(|role| role["rules"].as_array()).into_iter().flatten();
            rules.into_iter().any(|rule| rule_allows(rule, access))
        })
}

fn binds(binding: &Value, access: &RequestAttributes) -> bool {
    let subjects = binding["subjects"].as_array().into_iter().flatten();
    subjects.into_iter().any(|subject| {
        let name = subject["name"].as_str().unwrap_or_default();
        match subject["kind"].as_str() {
            Some("Group") => access.user.groups.iter().any(|group| group == name),
            Some("ServiceAccount") => {
                let own = binding["metadata"]["namespace"].as_str();
                let namespace = subject["namespace"].as_str().or(own).unwrap_or_default();
                access.user.name == format!("system:serviceaccount:{namespace}:{name}")
            }
            _ => access.user.name == name,
        }
    })
}

fn rule_allows(rule: &Value, access: &RequestAttributes) -> bool {
    let lists = |field: &str, value: &str| {
        rule[field].as_array().into_iter().flatten().any(|item| item == "*" || item == value)
    };
    let resource = match access.subresource.as_str() {
        "" => lists("resources", &access.resource),
        part => lists("resources", &format!("{}/{part}", access.resource)) || lists("resources", &format!("*/{part}")),
    };
    let named = match rule["resourceNames"].as_array() {
        Some(names) if !names.is_empty() => names.iter().any(|name| name == access.name.as_str()),
        _ => true,
    };
    resource && named && lists("verbs", &access.verb) && lists("apiGroups", &access.group)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::auth::User;
    use super::*;

    #[test]
    fn binding_grants_exactly_the_rights_of_its_role() {
        let mut store = Store::default();
        let rules = json!([
            {"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["ca"], "verbs": ["get", "patch"]},
            {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list"]},
        ]);
        store.put("roles", json!({"metadata": {"name": "r", "namespace": "weir"}, "rules": rules}));
        let subject = json!({"kind": "ServiceAccount", "name": "w", "namespace": "weir"});
        let role = json!({"kind": "Role", "name": "r"});
        store.put(
            "rolebindings",
            json!({"metadata": {"name": "b", "namespace": "weir"}, "roleRef": role, "subjects": [subject]}),
        );
        let access = |verb: &str, resource: &str, namespace: &str, name: &str| RequestAttributes {
            user: User::service_account("weir", "w"),
            verb: verb.to_owned(),
            group: String::new(),
            resource: resource.to_owned(),
            subresource: String::new(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        assert!(is_allowed(&store, &access("get", "secrets", "weir", "ca")));
        assert!(is_allowed(&store, &access("list", "configmaps", "weir", "")));
        for (verb, resource, namespace, name) in [
            ("get", "secrets", "weir", "other"),
            ("list", "secrets", "weir", ""),
            ("get", "secrets", "shop", "ca"),
            ("list", "configmaps", "", ""),
            ("delete", "secrets", "weir", "ca"),
        ] {
            assert!(
                !is_allowed(&store, &access(verb, resource, namespace, name)),
                "{verb} {resource} {namespace} {name}"
            );
        }
        let mut status = access("get", "secrets", "weir", "ca");
        status.subresource = "status".to_owned();
        assert!(!is_allowed(&store, &status));
        let admin = RequestAttributes { user: User::admin(), ..access("delete", "nodes", "", "n") };
        assert!(is_allowed(&store, &admin));
        assert_eq!(
            access("delete", "secrets", "weir", "ca").forbidden().message,
            "secrets \"ca\" is forbidden: User \"system:serviceaccount:weir:w\" cannot delete resource \"secrets\" in API group \"\" \
             in the namespace \"weir\""
        );
    }
}
