//! Reads of one object, and every write: create with admission, update, patches, server-side apply, delete.

use std::collections::HashMap;
use std::sync::Arc;

use axum::http::{Method, StatusCode};
use serde_json::{Value, json};

use super::admission::{self, Create};
use super::apply::{self, Writer};
use super::auth::{Access, User};
use super::resources::qualified;
use super::store::{Refusal, Store, merge};
use super::target::Target;
use super::{Shared, auth, validate};

const APPLY: &str = "application/apply-patch+yaml";
const JSON_PATCH: &str = "application/json-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";

/// A request for one object, or for a new one.
#[derive(Debug)]
pub(super) struct Wish<'a> {
    pub(super) method: &'a Method,
    pub(super) target: &'a Target,
    pub(super) query: &'a HashMap<String, String>,
    pub(super) content: &'a str,
    pub(super) agent: &'a str,
    pub(super) user: &'a User,
    pub(super) body: &'a [u8],
}

/// An answer.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) code: StatusCode,
    pub(super) object: Value,
    pub(super) warnings: Vec<String>,
}

impl Done {
    fn ok(object: Value) -> Self {
        Self { code: StatusCode::OK, object, warnings: Vec::new() }
    }
}

impl Wish<'_> {
    fn read(&self) -> Result<Value, Refusal> {
        if self.body.is_empty() {
            return Ok(Value::Null);
        }
        if self.content.starts_with("application/vnd.kubernetes.protobuf") {
            let message =
                "the body of the request was in an unknown format - accepted media types include: application/json";
            return Err(Refusal::new(415, "UnsupportedMediaType", message));
        }
        let bad = |error: String| Refusal::new(400, "BadRequest", error);
        match serde_json::from_slice(self.body) {
            Ok(value) => Ok(value),
            Err(_) if self.content == APPLY => {
                serde_saphyr::from_slice(self.body).map_err(|error| bad(error.to_string()))
            }
            Err(error) => Err(bad(error.to_string())),
        }
    }

    fn dry_run(&self) -> bool {
        self.query.get("dryRun").is_some_and(|value| value == "All")
    }

    fn writer(&self) -> Writer {
        let agent = self.agent.split('/').next().filter(|name| !name.is_empty()).unwrap_or("unknown");
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

    fn missing(&self) -> Refusal {
        let Target { api_version, resource, name, .. } = self.target;
        Refusal::new(404, "NotFound", format!("{} \"{name}\" not found", qualified(api_version, resource)))
    }
}

pub(super) async fn carry_out(shared: &Arc<Shared>, wish: &Wish<'_>) -> Result<Done, Refusal> {
    let Target { resource, namespace, name, .. } = wish.target;
    let found = || shared.state().store.get(resource, namespace, name).cloned();
    match *wish.method {
        Method::GET => found().map(Done::ok).ok_or_else(|| wish.missing()),
        Method::POST if resource.ends_with("accessreviews") => {
            let review = wish.read()?;
            let object = auth::review(&shared.state(), wish.user, review);
            Ok(Done { code: StatusCode::CREATED, ..Done::ok(object) })
        }
        Method::POST => create(shared, wish, wish.read()?, "CreateOptions").await,
        Method::DELETE if name.is_empty() => Ok(Done::ok(delete_all(shared, wish))),
        Method::DELETE => {
            let (options, old) = (wish.read()?, found().ok_or_else(|| wish.missing())?);
            if wish.dry_run() {
                return Ok(Done::ok(old));
            }
            shared.change(|store| store.delete(resource, &old, &options)).map(Done::ok)
        }
        Method::PATCH if wish.content == APPLY => {
            let config = wish.read()?;
            if let Some(done) = change(shared, wish, |old| applied(wish, old, &config))? {
                return Ok(done);
            }
            create(shared, wish, applied(wish, &Value::Null, &config)?, "PatchOptions").await
        }
        Method::PUT | Method::PATCH => {
            let body = wish.read()?;
            let new = |old: &Value| patched(wish, old, &body).map(|new| apply::updated(old, new, &wish.writer()));
            change(shared, wish, new)?.ok_or_else(|| wish.missing())
        }
        _ => Err(Refusal::new(
            405,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        )),
    }
}

/// What a PUT or a patch makes of an object, within the bounds of its part.
fn patched(wish: &Wish<'_>, old: &Value, body: &Value) -> Result<Value, Refusal> {
    let mut new = old.clone();
    match (wish.method, wish.content) {
        (&Method::PUT, _) => new.clone_from(body),
        (_, JSON_PATCH) => {
            let invalid = |message: String| Refusal::new(422, "Invalid", message);
            let patch: json_patch::Patch =
                serde_json::from_value(body.clone()).map_err(|error| invalid(error.to_string()))?;
            json_patch::patch(&mut new, &patch).map_err(|error| invalid(error.to_string()))?;
        }
        (_, STRATEGIC) => apply::strategic(&mut new, body),
        _ => merge(&mut new, body),
    }
    Store::bounded(&wish.target.resource, old, new, wish.target.subresource == "status")
}

/// What an apply makes of an object; of null, a new one.
fn applied(wish: &Wish<'_>, old: &Value, config: &Value) -> Result<Value, Refusal> {
    let Target { api_version, resource, name, .. } = wish.target;
    if wish.query.get("fieldManager").is_none_or(String::is_empty) {
        let message =
            "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch";
        return Err(Refusal::new(422, "Invalid", message));
    }
    let metadata = &config["metadata"];
    if !metadata["managedFields"].is_null() {
        return Err(Refusal::new(400, "BadRequest", "metadata.managedFields must be nil"));
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
            return Err(Refusal::new(409, "Conflict", message));
        }
    }
    let force = wish.query.get("force").is_some_and(|value| value == "true");
    let mut new = apply::applied(old, config, &wish.writer(), force)?;
    if old.is_null() {
        new["metadata"]["name"] = name.as_str().into();
        return Ok(new);
    }
    new["metadata"]["resourceVersion"] = Value::Null;
    Store::bounded(resource, old, new, wish.target.subresource == "status")
}

/// Changes an object that is there; `None` where there is none.
fn change(
    shared: &Shared,
    wish: &Wish<'_>,
    new: impl Fn(&Value) -> Result<Value, Refusal>,
) -> Result<Option<Done>, Refusal> {
    let Target { resource, namespace, name, .. } = wish.target;
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
            if !wish.dry_run() {
                object = store.put(resource, object);
            }
        }
        Ok(Some(Done::ok(object)))
    })
}

async fn create(shared: &Arc<Shared>, wish: &Wish<'_>, mut object: Value, options: &str) -> Result<Done, Refusal> {
    let target = wish.target;
    if !object.is_object() {
        return Err(Refusal::new(400, "BadRequest", "an object is expected"));
    }
    if !object["metadata"].is_object() {
        object["metadata"] = json!({});
    }
    if !target.namespace.is_empty() {
        object["metadata"]["namespace"] = target.namespace.as_str().into();
    }
    if options == "PatchOptions" {
        let access = Access::of(wish.user.clone(), &Method::POST, false, target, None);
        let state = shared.state();
        if !state.auth.allows(&state.store, &access) {
            return Err(access.refusal());
        }
    }
    let resource = target.resource.as_str();
    if resource == "namespaces" {
        object["metadata"]["labels"]["kubernetes.io/metadata.name"] = object["metadata"]["name"].clone();
    }
    validate::default(resource, &mut object);
    let kind = target.kind(&shared.state().store);
    let asked = Create { target, kind, user: wish.user, dry_run: wish.dry_run(), options: wish.options(options) };
    let (mut object, warnings) = admission::admit(shared, &asked, object).await?;
    validate::check(resource, &object)?;
    if options == "CreateOptions" {
        object = apply::updated(&Value::Null, object, &wish.writer());
    }
    if object["spec"].is_object() || object["webhooks"].is_array() {
        object["metadata"]["generation"] = 1.into();
    }
    let object = shared
        .change(|store| store.create(&target.api_version, resource, &target.namespace, object, wish.dry_run()))?;
    Ok(Done { code: StatusCode::CREATED, object, warnings })
}

/// Deletes a collection, as far as the selectors reach.
fn delete_all(shared: &Shared, wish: &Wish<'_>) -> Value {
    let text = |key: &str| wish.query.get(key).map_or("", String::as_str);
    shared.change(|store| {
        let meant = |object: &&Value| {
            super::store::selected(object, &wish.target.namespace, text("fieldSelector"), text("labelSelector"))
        };
        let items: Vec<Value> = store.list(&wish.target.resource).filter(meant).cloned().collect();
        if !wish.dry_run() {
            for item in &items {
                let key = |key: &str| item["metadata"][key].as_str().unwrap_or_default();
                store.remove(&wish.target.resource, key("namespace"), key("name"));
            }
        }
        json!({ "apiVersion": wish.target.api_version, "kind": "List", "metadata": {}, "items": items })
    })
}
