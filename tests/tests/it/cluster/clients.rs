//! Field ownership, roles and kubectl work with the fake API server as with the real one: these tests run with both.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use weir_apiserver::tls::Authority;
use weir_tests::wait_until;

use super::api_server::{Cluster, on_both};
use super::kubectl::Kubectl;
use super::server::{CONFIGURATIONS, configuration, entry};

on_both!(apply_owns_exactly_the_applied_fields, roles_limit_service_accounts, kubectl_works,);

fn apply_owns_exactly_the_applied_fields(cluster: &Cluster) {
    let path = format!("{CONFIGURATIONS}/a");
    let bundle = |text: &str| STANDARD.encode(Authority::new(text).unwrap().cert());
    let (theirs, ours) = (bundle("theirs"), bundle("ours"));
    let entries = ["one", "two"].map(|name| entry(name, "", &json!({})));
    cluster.post(&format!("{CONFIGURATIONS}?fieldManager=kubectl-create"), &configuration("a", &entries)).expect_ok();
    let only = |bundle: &str| {
        let mut object = configuration("a", &[]);
        object["webhooks"] = json!([{"name": "two.test.dev", "clientConfig": {"caBundle": bundle}}]);
        object
    };
    let bundles = |object: &Value| {
        let hooks = object["webhooks"].as_array().unwrap().iter();
        hooks.map(|hook| hook["clientConfig"]["caBundle"].as_str().unwrap_or_default().to_owned()).collect::<Vec<_>>()
    };
    let managers = |object: &Value| {
        let entries = object["metadata"]["managedFields"].as_array().unwrap().iter();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        entries.map(|entry| (text(&entry["manager"]), text(&entry["operation"]))).collect::<Vec<_>>()
    };
    // The empty bundle of the first object is a missing field, which nobody owns.
    let done = cluster.apply(&path, "fieldManager=weir-webhook", &only(&ours)).expect_ok();
    assert_eq!(bundles(&done), [String::new(), ours.clone()]);
    assert_eq!(done["webhooks"][1]["clientConfig"]["service"]["name"], "two");
    let owners =
        [("kubectl-create", "Update"), ("weir-webhook", "Apply")].map(|(name, how)| (name.to_owned(), how.to_owned()));
    let mut found = managers(&done);
    found.sort();
    assert_eq!(found, owners);
    let again = cluster.apply(&path, "fieldManager=weir-webhook", &only(&ours)).expect_ok();
    assert_eq!(
        again["metadata"]["resourceVersion"], done["metadata"]["resourceVersion"],
        "an apply without changes is no write"
    );
    // An update with another value takes the field over.
    let mut object = again;
    object["webhooks"][1]["clientConfig"]["caBundle"] = theirs.as_str().into();
    cluster.put(&format!("{path}?fieldManager=gitops"), &object).expect_ok();
    let conflict = cluster.apply(&path, "fieldManager=weir-webhook", &only(&ours));
    let start = "Apply failed with 1 conflict: conflict with \"gitops\" using admissionregistration.k8s.io/v1";
    let end = ": .webhooks[name=\"two.test.dev\"].clientConfig.caBundle";
    let message = conflict.message();
    assert!(conflict.code == 409 && message.starts_with(start) && message.ends_with(end), "{message}");
    let done = cluster.apply(&path, "fieldManager=weir-webhook&force=true", &only(&ours)).expect_ok();
    assert_eq!(bundles(&done)[1], ours);
    // A field is removed when its last owner no longer applies it.
    let labelled = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": "a", "labels": {"team": "mesh"}},
    });
    let with = cluster.apply(&path, "fieldManager=labels", &labelled).expect_ok();
    assert_eq!(with["metadata"]["labels"]["team"], "mesh");
    let mut without = labelled;
    without["metadata"]["labels"] = json!({});
    let gone = cluster.apply(&path, "fieldManager=labels", &without).expect_ok();
    assert_eq!(gone["metadata"]["labels"]["team"], Value::Null);
    let mut stale = only(&ours);
    stale["metadata"]["resourceVersion"] = "1".into();
    assert_eq!(cluster.apply(&path, "fieldManager=weir-webhook&force=true", &stale).code, 409);
    assert_eq!(cluster.apply(&path, "force=true", &only(&ours)).code, 422, "fieldManager is required");
}

fn roles_limit_service_accounts(cluster: &Cluster) {
    cluster.create_namespace("shop", &json!({}));
    cluster.create_service_account("shop", "robot");
    let granted =
        json!([{"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["ca"], "verbs": ["get", "patch"]}]);
    let role = json!({"metadata": {"name": "r"}, "rules": granted});
    let roles = "/apis/rbac.authorization.k8s.io/v1/namespaces/shop";
    cluster.post(&format!("{roles}/roles"), &role).expect_ok();
    let binding = json!({
        "metadata": {"name": "b"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"},
        "subjects": [{"kind": "ServiceAccount", "name": "robot", "namespace": "shop"}],
    });
    cluster.post(&format!("{roles}/rolebindings"), &binding).expect_ok();
    let Some(kubectl) =
        Kubectl::new_or_skip(&cluster.kubeconfig_with("robot", &cluster.service_account_token("shop", "robot")))
    else {
        return;
    };
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "ca", "namespace": "shop"}, "stringData": {"a": "b"}});
    let created = kubectl.fails(&["create", "--validate=false", "-f", "-"], &secret.to_string());
    let who = "User \"system:serviceaccount:shop:robot\" cannot";
    let what =
        format!("secrets is forbidden: {who} create resource \"secrets\" in API group \"\" in the namespace \"shop\"");
    assert!(created.contains(&what), "{created}");
    let listed = kubectl.fails(&["get", "nodes"], "");
    let what = format!("nodes is forbidden: {who} list resource \"nodes\" in API group \"\" at the cluster scope");
    assert!(listed.contains(&what), "{listed}");
    wait_until("the binding takes effect", || {
        let output = kubectl.run(&["get", "-n", "shop", "secret", "ca"], "");
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        if error.contains("secrets \"ca\" not found") { Ok(()) } else { Err(error) }
    });
    let other = kubectl.fails(&["get", "-n", "shop", "secret", "other"], "");
    let what = format!(
        "secrets \"other\" is forbidden: {who} get resource \"secrets\" in API group \"\" in the namespace \"shop\""
    );
    assert!(other.contains(&what), "{other}");
}

fn kubectl_works(cluster: &Cluster) {
    let Some(kubectl) = Kubectl::new_or_skip(cluster.kubeconfig()) else { return };
    // `create namespace` would send protobuf, which the fake server does not support.
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}});
    kubectl.ok(&["create", "--validate=false", "-f", "-"], &namespace.to_string());
    kubectl.ok(&["label", "namespace", "shop", "istio-injection=enabled"], "");
    let labels = kubectl.ok(&["get", "ns", "shop", "-o", "jsonpath={.metadata.labels}"], "");
    let labels: Value = serde_json::from_str(&labels).unwrap();
    assert_eq!(labels, json!({"kubernetes.io/metadata.name": "shop", "istio-injection": "enabled"}));

    let deployment = |image: &str| {
        let template =
            json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "app", "image": image}]}});
        let spec = json!({"replicas": 2, "selector": {"matchLabels": {"app": "web"}}, "template": template});
        let metadata = json!({"name": "web", "namespace": "shop"});
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec}).to_string()
    };
    let apply = ["apply", "--server-side", "--validate=false", "-f", "-"];
    assert!(kubectl.ok(&apply, &deployment("a")).contains("deployment.apps/web serverside-applied"));
    kubectl.ok(&apply, &deployment("b"));
    let other = ["apply", "--server-side", "--validate=false", "--field-manager=other", "-f", "-"];
    let conflict = kubectl.fails(&other, &deployment("c"));
    let field = ".spec.template.spec.containers[name=\"app\"].image";
    assert!(conflict.contains("conflict with \"kubectl\"") && conflict.contains(field), "{conflict}");
    let stored = cluster.get("/apis/apps/v1/namespaces/shop/deployments/web").expect_ok();
    assert_eq!(stored["metadata"]["generation"], 2);
    let status = json!({"status": {
        "observedGeneration": 2, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2, "readyReplicas": 2,
    }});
    cluster.merge_patch("/apis/apps/v1/namespaces/shop/deployments/web/status", &status).expect_ok();
    let rolled = kubectl.ok(&["rollout", "status", "-n", "shop", "deployment/web", "--timeout=60s"], "");
    assert!(rolled.contains("successfully rolled out"), "{rolled}");
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "namespace": "shop"}, "data": {"a": "1"}});
    assert!(kubectl.ok(&["apply", "--validate=false", "-f", "-"], &map.to_string()).contains("created"));
    assert!(kubectl.ok(&["get", "deployments,cm", "-A"], "").contains("deployment.apps/web"));
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {"verb": "get", "resource": "pods"}},
    });
    let args = ["create", "--validate=false", "-f", "-", "-o", "jsonpath={.status.allowed}"];
    assert_eq!(kubectl.ok(&args, &review.to_string()), "true");
    kubectl.ok(&["delete", "-n", "shop", "deployment/web", "--wait=true"], "");
    assert_eq!(cluster.get("/apis/apps/v1/namespaces/shop/deployments/web").code, 404);
    assert!(kubectl.fails(&["get", "pods", "-n", "shop", "web"], "").contains("pods \"web\" not found"));
    assert!(
        kubectl
            .fails(&["get", "pods", "-n", "shop", "--as=system:nobody"], "")
            .contains("User \"system:nobody\" cannot list")
    );
}
