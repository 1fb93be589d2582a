//! Reads of one object, and every write: create with admission, update, patches, server-side apply, delete.

use std::collections::HashMap;
use std::sync::Arc;

use axum::http::{Method, StatusCode};
use serde_json::{Value, json};

use super::admission::{self, Create};
use super::apply::{self, Writer};
use super::auth::{RequestAttributes, User};
use super::resources::qualified;
use super::store::{StatusError, Store, merge};
use super::target::Target;
use super::{Shared, auth, validate};

const APPLY: &str = "application/apply-patch+yaml";
const JSON_PATCH: &str = "application/json-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";

/// A request that reads or writes one object, creates one, or deletes a collection.
#[derive(Debug)]
pub(super) struct WriteRequest<'a> {
    pub(super) method: &'a Method,
    pub(super) target: &'a Target,
    pub(super) query: &'a HashMap<String, String>,
    pub(super) content_type: &'a str,
    pub(super) user_agent: &'a str,
    pub(super) user: &'a User,
    pub(super) body: &'a [u8],
}

#[derive(Debug)]
pub(super) struct WriteResponse {
    pub(super) code: StatusCode,
    pub(super) object: Value,
    pub(super) warnings: Vec<String>,
}

impl WriteResponse {
    fn ok(object: Value) -> Self {
        Self { code: StatusCode::OK, object, warnings: Vec::new() }
    }
}

impl WriteRequest<'_> {
    fn parse_body(&self) -> Result<Value, StatusError> {
        if self.body.is_empty() {
            return Ok(Value::Null);
        }
        if self.content_type.starts_with("application/vnd.kubernetes.protobuf") {
            let message =
                "the body of the request was in an unknown format - accepted media types include: application/json";
            return Err(StatusError::new(415, "UnsupportedMediaType", message));
        }
        let bad = |error: String| StatusError::new(400, "BadRequest", error);
        match serde_json::from_slice(self.body) {
            Ok(value) => Ok(value),
            Err(_) if self.content_type == APPLY => {
                serde_saphyr::from_slice(self.body).map_err(|error| bad(error.to_string()))
            }
            Err(error) => Err(bad(error.to_string())),
        }
    }

    fn dry_run(&self) -> bool {
        self.query.get("dryRun").is_some_and(|value| value == "All")
    }

    fn writer(&self) -> Writer {
        let agent = self.user_agent.split('/').next().filter(|name| !name.is_empty()).unwrap_or("unknown");
        let manager = self.query.get("fieldManager").map_or(agent, String::as_str).to_owned();
        Writer { manager, api_version: self.target.api_version.clone(), subresource: self.target.subresource.clone() }
    }

    fn options(&self, kind: &str) -> Value {
        let mut options = json!({ "kind": kind, "apiVersion": "meta.k8s.io/v1" });
        if let Some(manager) = self.query.get("fieldManager") {
            options["fieldManager"] = manager.as_str().into();
        }
        if self.dry_run() {
            options["dryRun"] = json!(["All"]);
        }
        options
    }

    fn not_found(&self) -> StatusError {
        let Target { api_version, resource, name, .. } = self.target;
        StatusError::new(404, "NotFound", format!("{} \"{name}\" not found", qualified(api_version, resource)))
    }
}

pub(super) async fn handle(shared: &Arc<Shared>, request: &WriteRequest<'_>) -> Result<WriteResponse, StatusError> {
    let Target { resource, namespace, name, .. } = request.target;
    let found = || shared.state().store.get(resource, namespace, name).cloned();
    match *request.method {
        Method::GET => found().map(WriteResponse::ok).ok_or_else(|| request.not_found()),
        Method::POST if resource.ends_with("accessreviews") => {
            let review = request.parse_body()?;
            let object = auth::review(&shared.state(), request.user, review);
            Ok(WriteResponse { code: StatusCode::CREATED, ..WriteResponse::ok(object) })
        }
        Method::POST => create(shared, request, request.parse_body()?, "CreateOptions").await,
        Method::DELETE if name.is_empty() => Ok(WriteResponse::ok(delete_collection(shared, request))),
        Method::DELETE => {
            let (options, old) = (request.parse_body()?, found().ok_or_else(|| request.not_found())?);
            if request.dry_run() {
                return Ok(WriteResponse::ok(old));
            }
            shared.change(|store| store.delete(resource, &old, &options)).map(WriteResponse::ok)
        }
        Method::PATCH if request.content_type == APPLY => {
            let config = request.parse_body()?;
            if let Some(done) = change(shared, request, |old| applied(request, old, &config))? {
                return Ok(done);
            }
            create(shared, request, applied(request, &Value::Null, &config)?, "PatchOptions").await
        }
        Method::PUT | Method::PATCH => {
            let body = request.parse_body()?;
            let new = |old: &Value| patched(request, old, &body).map(|new| apply::updated(old, new, &request.writer()));
            change(shared, request, new)?.ok_or_else(|| request.not_found())
        }
        _ => Err(StatusError::new(
            405,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        )),
    }
}

/// Result of a PUT or a patch for an object, within the bounds of its part.
fn patched(request: &WriteRequest<'_>, old: &Value, body: &Value) -> Result<Value, StatusError> {
    let mut new = old.clone();
    match (request.method, request.content_type) {
        (&Method::PUT, _) => new.clone_from(body),
        (_, JSON_PATCH) => {
            let invalid = |message: String| StatusError::new(422, "Invalid", message);
            let patch: json_patch::Patch =
                serde_json::from_value(body.clone()).map_err(|error| invalid(error.to_string()))?;
            json_patch::patch(&mut new, &patch).map_err(|error| invalid(error.to_string()))?;
        }
        (_, STRATEGIC) => apply::strategic_merge(&mut new, body),
        _ => merge(&mut new, body),
    }
    Store::restrict_to_subresource(&request.target.resource, old, new, request.target.subresource == "status")
}

/// Result of an apply for an object; for null, a new one.
fn applied(request: &WriteRequest<'_>, old: &Value, config: &Value) -> Result<Value, StatusError> {
    let Target { api_version, resource, name, .. } = request.target;
    if request.query.get("fieldManager").is_none_or(String::is_empty) {
        let message =
            "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch";
        return Err(StatusError::new(422, "Invalid", message));
    }
    let metadata = &config["metadata"];
    if !metadata["managedFields"].is_null() {
        return Err(StatusError::new(400, "BadRequest", "metadata.managedFields must be nil"));
    }
    for key in ["uid", "resourceVersion"] {
        let given = &metadata[key];
        if !given.is_null() && *given != old["metadata"][key] {
            let what = qualified(api_version, resource);
            let why = match (old.is_null(), key) {
                (true, _) => format!(
                    "{key} mismatch: the provided object specified {key} {given}, and no existing object was found"
                ),
                (false, "uid") => format!(
                    "Precondition failed: UID in precondition: {given}, UID in object meta: {}",
                    old["metadata"]["uid"]
                ),
                _ => "the object has been modified; please apply your changes to the latest version and try again"
                    .to_owned(),
            };
            let message = format!("Operation cannot be fulfilled on {what} \"{name}\": {why}");
            return Err(StatusError::new(409, "Conflict", message));
        }
    }
    let force = request.query.get("force").is_some_and(|value| value == "true");
    let mut new = apply::applied(old, config, &request.writer(), force)?;
    if old.is_null() {
        new["metadata"]["name"] = name.as_str().into();
        return Ok(new);
    }
    new["metadata"]["resourceVersion"] = Value::Null;
    Store::restrict_to_subresource(resource, old, new, request.target.subresource == "status")
}

/// Changes an existing object; `None` where there is none.
fn change(
    shared: &Shared,
    request: &WriteRequest<'_>,
    new: impl Fn(&Value) -> Result<Value, StatusError>,
) -> Result<Option<WriteResponse>, StatusError> {
    let Target { resource, namespace, name, .. } = request.target;
    shared.change(|store| {
        let Some(old) = store.get(resource, namespace, name).cloned() else { return Ok(None) };
        let mut object = new(&old)?;
        validate::default(resource, &mut object);
        validate::check(resource, &object)?;
        if object != old {
            if object["spec"] != old["spec"] || object["webhooks"] != old["webhooks"] {
                let generation = old["metadata"]["generation"].as_u64().unwrap_or(0);
                object["metadata"]["generation"] = (generation + 1).into();
            }
            if !request.dry_run() {
                object = store.put(resource, object);
            }
        }
        Ok(Some(WriteResponse::ok(object)))
    })
}

async fn create(
    shared: &Arc<Shared>,
    request: &WriteRequest<'_>,
    mut object: Value,
    options: &str,
) -> Result<WriteResponse, StatusError> {
    let target = request.target;
    if !object.is_object() {
        return Err(StatusError::new(400, "BadRequest", "an object is expected"));
    }
    if !object["metadata"].is_object() {
        object["metadata"] = json!({});
    }
    if !target.namespace.is_empty() {
        object["metadata"]["namespace"] = target.namespace.as_str().into();
    }
    if options == "PatchOptions" {
        let access = RequestAttributes::of(request.user.clone(), &Method::POST, false, target, None);
        let state = shared.state();
        if !state.auth.is_allowed(&state.store, &access) {
            return Err(access.forbidden());
        }
    }
    let resource = target.resource.as_str();
    if resource == "namespaces" {
        object["metadata"]["labels"]["kubernetes.io/metadata.name"] = object["metadata"]["name"].clone();
    }
    validate::default(resource, &mut object);
    let kind = target.kind(&shared.state().store);
    let create =
        Create { target, kind, user: request.user, dry_run: request.dry_run(), options: request.options(options) };
    let (mut object, warnings) = admission::admit(shared, &create, object).await?;
    validate::check(resource, &object)?;
    if options == "CreateOptions" {
        object = apply::updated(&Value::Null, object, &request.writer());
    }
    if object["spec"].is_object() || object["webhooks"].is_array() {
        object["metadata"]["generation"] = 1.into();
    }
    let object = shared
        .change(|store| store.create(&target.api_version, resource, &target.namespace, object, request.dry_run()))?;
    Ok(WriteResponse { code: StatusCode::CREATED, object, warnings })
}

/// Deletes the objects of a collection that match the selectors.
fn delete_collection(shared: &Shared, request: &WriteRequest<'_>) -> Value {
    let text = |key: &str| request.query.get(key).map_or("", String::as_str);
    shared.change(|store| {
        let matches = |object: &&Value| {
            super::store::matches_selectors(
                object,
                &request.target.namespace,
                text("fieldSelector"),
                text("labelSelector"),
            )
        };
        let items: Vec<Value> = store.list(&request.target.resource).filter(matches).cloned().collect();
        if !request.dry_run() {
            for item in &items {
                let key = |key: &str| item["metadata"][key].as_str().unwrap_or_default();
                store.remove(&request.target.resource, key("namespace"), key("name"));
            }
        }
        json!({ "apiVersion": request.target.api_version, "kind": "List", "metadata": {}, "items": items })
    })
}
