//! The AdmissionReview sent to a webhook, and the one it returns.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::Create;
use crate::store::StatusError;

/// Returns the `request` of a review without the object, as conditions see it.
pub(super) fn attributes(create: &Create<'_>, object: &Value) -> Value {
    let target = create.target;
    let (group, version) = target.api_version.split_once('/').unwrap_or(("", &target.api_version));
    let kind = json!({ "group": group, "version": version, "kind": create.kind });
    let resource = json!({ "group": group, "version": version, "resource": target.resource });
    let mut request = json!({
        "kind": kind, "resource": resource, "requestKind": kind, "requestResource": resource,
        "operation": "CREATE", "userInfo": create.user.info(), "dryRun": create.dry_run, "options": create.options,
    });
    for (key, value) in [("name", object["metadata"]["name"].as_str()), ("namespace", Some(target.namespace.as_str()))]
    {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            request[key] = value.into();
        }
    }
    request
}

/// Returns a review and its `uid`.
pub(super) fn request(create: &Create<'_>, object: &Value) -> (String, Value) {
    let uid = uid();
    let mut request = attributes(create, object);
    request["uid"] = uid.as_str().into();
    request["object"] = object.clone();
    request["oldObject"] = Value::Null;
    (uid, json!({ "kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "request": request }))
}

/// A random UUID, version 4.
fn uid() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let random = RandomState::new();
    let [high, low] = [random.hash_one((count, 0)), random.hash_one((count, 1))];
    format!(
        "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
        high >> 32,
        (high >> 16) & 0xffff,
        high & 0xfff,
        0x8000 | ((low >> 48) & 0x3fff),
        low & 0xffff_ffff_ffff
    )
}

/// Validates the AdmissionReview of a webhook and returns its `response`.
pub(super) fn parse_response(mut answer: Value, uid: &str) -> Result<Value, String> {
    let invalid = |why: String| Err(format!("received invalid webhook response: {why}"));
    let (version, kind) = (&answer["apiVersion"], &answer["kind"]);
    if version != "admission.k8s.io/v1" || kind != "AdmissionReview" {
        let [version, kind] = [version, kind].map(|text| text.as_str().unwrap_or_default().to_owned());
        return invalid(format!(
            "expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got {version}, Kind={kind}"
        ));
    }
    let response = answer["response"].take();
    if response.is_null() {
        return Err("webhook response was absent".to_owned());
    }
    if response["uid"] != uid {
        return invalid(format!("expected response.uid=\"{uid}\", got {}", response["uid"]));
    }
    let (patch, patch_type) = (!response["patch"].is_null(), response["patchType"].as_str());
    match (patch, patch_type) {
        (true, None) => invalid("webhook returned response.patch but not response.patchType".to_owned()),
        (false, Some(_)) => invalid("webhook returned response.patchType but not response.patch".to_owned()),
        (true, Some(other)) if other != "JSONPatch" => {
            invalid(format!("webhook returned invalid response.patchType of \"{other}\""))
        }
        _ => Ok(response),
    }
}

/// Returns the error that the client gets for a denial.
pub(super) fn denial(webhook: &str, status: &Value) -> StatusError {
    let code = status["code"].as_u64().and_then(|code| u16::try_from(code).ok()).filter(|code| *code >= 400);
    let by = format!("admission webhook \"{webhook}\" denied the request");
    let text = |key: &str| status[key].as_str().filter(|text| !text.is_empty());
    let message = text("message")
        .or(text("reason"))
        .map_or_else(|| format!("{by} without explanation"), |why| format!("{by}: {why}"));
    let mut error = StatusError::new(code.unwrap_or(400), "", message);
    error.details = status.get("details").cloned().map(Box::new);
    if let Some(reason) = text("reason") {
        error.reason = reason.to_owned().into();
    }
    error
}

/// Applies the patch of a response to the object; `None` without a patch.
pub(super) fn apply_patch(response: &Value, object: &Value) -> Result<Option<Value>, String> {
    let Some(patch) = response["patch"].as_str() else { return Ok(None) };
    let patch = STANDARD.decode(patch).map_err(|error| error.to_string())?;
    let patch: json_patch::Patch = serde_json::from_slice(&patch).map_err(|error| error.to_string())?;
    let mut object = object.clone();
    json_patch::patch(&mut object, &patch).map_err(|error| error.to_string())?;
    Ok(Some(object))
}
