//! What somebody may do: our service accounts by the Roles that are bound to them, the user by asking.

use futures_util::future::join_all;
use serde_json::{Value, json};

use super::read::{Ask, Reader};
use crate::check::snapshot::{Places, Right};

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

/// The rules that hold for the service accounts of our two namespaces.
pub(super) async fn of_our_accounts<A: Ask>(reader: &Reader<'_, A>, places: &Places) -> Option<Vec<Right>> {
    let mut bindings = Vec::new();
    let path = format!("{RBAC}/clusterrolebindings");
    let mut look = |binding: Value| bindings.extend(bound(&binding, places));
    let mut complete = reader.pages("ClusterRoleBindings", &path, &mut look).await;
    for namespace in [&places.weir, &places.node, &places.istio] {
        let path = format!("{RBAC}/namespaces/{namespace}/rolebindings");
        complete &= reader.pages(&format!("RoleBindings of {namespace}"), &path, &mut look).await;
    }
    let rules = bindings.iter().map(async |binding| {
        let (path, what) = match &binding.role_namespace {
            Some(namespace) => (format!("{RBAC}/namespaces/{namespace}/roles/{}", binding.role), "Roles"),
            None => (format!("{RBAC}/clusterroles/{}", binding.role), "ClusterRoles"),
        };
        // A role that is not there gives no right, and that is known.
        let role = reader.ask("GET", &path, None).await;
        match role {
            Ok(answer) if answer.code == 404 => Some(Vec::new()),
            Ok(answer) if answer.code == 200 => {
                let role: Value = serde_json::from_str(&answer.text).ok()?;
                Some(role["rules"].as_array().cloned().unwrap_or_default())
            }
            Ok(answer) => {
                reader.note(what, format!("{}: {}", answer.code, answer.text.chars().take(200).collect::<String>()));
                None
            }
            Err(why) => {
                reader.note(what, why);
                None
            }
        }
    });
    let rules: Option<Vec<Vec<Value>>> = join_all(rules).await.into_iter().collect();
    let mut rights = Vec::new();
    for (binding, rules) in bindings.iter().zip(rules?) {
        for account in &binding.accounts {
            let right = |rule: &Value| Right {
                account: account.clone(),
                namespace: binding.namespace.clone(),
                rule: rule.clone(),
            };
            rights.extend(rules.iter().map(right));
        }
    }
    complete.then_some(rights)
}

/// A binding that gives something to an account of ours.
struct Bound {
    /// `NAMESPACE/NAME`; `*` for all.
    accounts: Vec<String>,
    /// Where the rights hold.
    namespace: Option<String>,
    role: String,
    role_namespace: Option<String>,
}

fn bound(binding: &Value, places: &Places) -> Option<Bound> {
    let namespace = binding["metadata"]["namespace"].as_str().map(str::to_owned);
    let ours = |name: &str| name == places.weir || name == places.node;
    let account = |subject: &Value| {
        let name = subject["name"].as_str()?;
        match subject["kind"].as_str()? {
            "ServiceAccount" => {
                let home = subject["namespace"].as_str().or(namespace.as_deref())?;
                ours(home).then(|| format!("{home}/{name}"))
            }
            "Group" if ["system:serviceaccounts", "system:authenticated"].contains(&name) => Some("*/*".to_owned()),
            "Group" => {
                let home = name.strip_prefix("system:serviceaccounts:")?;
                ours(home).then(|| format!("{home}/*"))
            }
            _ => None,
        }
    };
    let subjects = binding["subjects"].as_array().map_or(&[][..], Vec::as_slice);
    let accounts: Vec<String> = subjects.iter().filter_map(account).collect();
    let role = binding["roleRef"]["name"].as_str()?.to_owned();
    let role_namespace = if binding["roleRef"]["kind"] == "Role" { namespace.clone() } else { None };
    (!accounts.is_empty()).then_some(Bound { accounts, namespace, role, role_namespace })
}

/// What `weir install` creates and changes: group, resource, and whether it is in a namespace.
const INSTALLED: [(&str, &str, bool); 14] = [
    ("", "namespaces", false),
    ("", "serviceaccounts", true),
    ("", "services", true),
    ("", "configmaps", true),
    ("apps", "deployments", true),
    ("apps", "daemonsets", true),
    ("policy", "poddisruptionbudgets", true),
    ("networking.k8s.io", "networkpolicies", true),
    ("rbac.authorization.k8s.io", "roles", true),
    ("rbac.authorization.k8s.io", "rolebindings", true),
    ("rbac.authorization.k8s.io", "clusterroles", false),
    ("rbac.authorization.k8s.io", "clusterrolebindings", false),
    ("admissionregistration.k8s.io", "mutatingwebhookconfigurations", false),
    ("coordination.k8s.io", "leases", true),
];

/// What of an installation the user may not do.
pub(super) async fn denied<A: Ask>(reader: &Reader<'_, A>, places: &Places) -> Vec<String> {
    let asked = INSTALLED.iter().flat_map(|(group, resource, namespaced)| {
        let namespace = match (*namespaced, *resource) {
            (false, _) => "",
            (true, "daemonsets") => places.node.as_str(),
            (true, _) => places.weir.as_str(),
        };
        ["create", "patch"].map(|verb| (*group, *resource, namespace, verb))
    });
    let answers = asked.map(async |(group, resource, namespace, verb)| {
        let attributes = json!({"group": group, "resource": resource, "namespace": namespace, "verb": verb});
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        });
        let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
        let answer = reader.ask("POST", path, Some(&review)).await;
        let status = match answer {
            Ok(answer) if (200..300).contains(&answer.code) => serde_json::from_str::<Value>(&answer.text).ok(),
            Ok(answer) => {
                reader.note("your own rights", format!("{}: {}", answer.code, answer.text.trim()));
                None
            }
            Err(why) => {
                reader.note("your own rights", why);
                None
            }
        };
        let place = if namespace.is_empty() { String::new() } else { format!(" in {namespace}") };
        let group = if group.is_empty() { String::new() } else { format!(".{group}") };
        (status?["status"]["allowed"] != true).then(|| format!("{verb} {resource}{group}{place}"))
    });
    join_all(answers).await.into_iter().flatten().collect()
}
