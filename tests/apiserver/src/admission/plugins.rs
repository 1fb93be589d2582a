//! The admission plugins `NamespaceLifecycle` and `ServiceAccount`, as far as they concern creations. They are active in
//! [`ApiServer::cluster`](crate::ApiServer::cluster) only.

use std::hash::{BuildHasher as _, RandomState};

use serde_json::{Value, json};

use super::{Create, forbidden};
use crate::Shared;
use crate::store::StatusError;

/// Directory at which the service account token is mounted in every container.
const MOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Runs the plugins. Idempotent: a second run completes what webhooks have added.
pub(super) fn admit(shared: &Shared, create: &Create<'_>, object: &mut Value) -> Result<(), StatusError> {
    let target = create.target;
    if !shared.cluster || target.namespace.is_empty() {
        return Ok(());
    }
    let state = shared.state();
    if state.store.get("namespaces", "", &target.namespace).is_none() {
        return Err(StatusError::new(404, "NotFound", format!("namespaces \"{}\" not found", target.namespace)));
    }
    if target.resource != "pods" || !target.subresource.is_empty() {
        return Ok(());
    }
    let spec = &mut object["spec"];
    let account = spec["serviceAccountName"].as_str().filter(|name| !name.is_empty()).unwrap_or("default").to_owned();
    let stored = state.store.get("serviceaccounts", &target.namespace, &account).cloned();
    if stored.is_none() && account != "default" {
        let why = format!(
            "error looking up service account {}/{account}: serviceaccount \"{account}\" not found",
            target.namespace
        );
        return Err(forbidden(create, object, &why));
    }
    spec["serviceAccountName"] = account.as_str().into();
    spec["serviceAccount"] = account.as_str().into();
    let requested = &spec["automountServiceAccountToken"];
    let of_account = stored.map(|account| account["automountServiceAccountToken"].clone()).unwrap_or_default();
    if *requested == false || (requested.is_null() && of_account == false) {
        return Ok(());
    }
    mount_token(spec);
    Ok(())
}

/// Mounts the projected token into every container that mounts nothing there.
fn mount_token(spec: &mut Value) {
    let volumes = spec["volumes"].as_array().into_iter().flatten();
    let mut names = volumes.filter_map(|volume| volume["name"].as_str());
    let there = names.find(|name| name.starts_with("kube-api-access-")).map(str::to_owned);
    let name = there.clone().unwrap_or_else(|| {
        let random = RandomState::new().hash_one(0);
        format!("kube-api-access-{:05x}", random & 0xf_ffff)
    });
    let mut used = false;
    for list in ["initContainers", "containers"] {
        for container in spec[list].as_array_mut().into_iter().flatten().filter(|container| container.is_object()) {
            if container["volumeMounts"].is_null() {
                container["volumeMounts"] = json!([]);
            }
            let Some(mounts) = container["volumeMounts"].as_array_mut() else { continue };
            if mounts.iter().all(|mount| mount["mountPath"] != MOUNT) {
                mounts.push(json!({ "name": name, "readOnly": true, "mountPath": MOUNT }));
                used = true;
            }
        }
    }
    if there.is_some() || !used {
        return;
    }
    let volume = json!({
        "name": name,
        "projected": { "defaultMode": 420, "sources": [
            { "serviceAccountToken": { "expirationSeconds": 3607, "path": "token" } },
            { "configMap": { "name": "kube-root-ca.crt", "items": [{ "key": "ca.crt", "path": "ca.crt" }] } },
            { "downwardAPI": { "items": [{ "path": "namespace", "fieldRef": { "apiVersion": "v1", "fieldPath": "metadata.namespace" } }] } },
        ] },
    });
    match spec["volumes"].as_array_mut() {
        Some(volumes) => volumes.push(volume),
        None => spec["volumes"] = json!([volume]),
    }
}
