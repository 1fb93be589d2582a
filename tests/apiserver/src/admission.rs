//! Mutating admission of creations, as kube-apiserver does it.
//!
//! ```text
//! object ─▶ plugins ─▶ webhook, webhook, ... ─▶ changed by a later one? ─▶ plugins, webhooks with reinvocationPolicy IfNeeded ─▶ object
//!                      (configurations by name, entries in order; select.rs selects them, call.rs calls them)
//! ```
//!
//! Webhooks are called for CREATE only. Sources: Kubernetes' documentation "Dynamic Admission Control" and kube-apiserver's error texts.

mod call;
pub(super) mod cel;
mod plugins;
mod review;
mod select;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

pub(super) use self::call::WebhookClient;
use super::auth::User;
use super::resources::qualified;
use super::store::StatusError;
use super::target::Target;
use super::{ApiServer, Shared};

/// Audit records that are kept.
const AUDIT_RECORDS: usize = 20_000;

/// An audit record of one request that went through admission.
#[derive(Debug, Clone, Default)]
pub struct Audit {
    /// `NAMESPACE/NAME` of the object; the name is empty where the server generates it.
    pub object: String,
    /// Those of webhooks under `WEBHOOK/KEY`, and those that kube-apiserver itself adds.
    pub annotations: BTreeMap<String, String>,
}

/// A creation to admit.
#[derive(Debug)]
pub(super) struct Create<'a> {
    pub(super) target: &'a Target,
    pub(super) kind: String,
    pub(super) user: &'a User,
    pub(super) dry_run: bool,
    /// `CreateOptions`, or `PatchOptions` of a server-side apply.
    pub(super) options: Value,
}

/// An entry of a MutatingWebhookConfiguration.
#[derive(Debug, Clone)]
struct WebhookEntry {
    configuration: String,
    index: usize,
    entry: Value,
}

impl WebhookEntry {
    fn name(&self) -> &str {
        self.entry["name"].as_str().unwrap_or_default()
    }

    fn ignores_failure(&self) -> bool {
        self.entry["failurePolicy"] == "Ignore"
    }

    fn wants_reinvocation(&self) -> bool {
        self.entry["reinvocationPolicy"] == "IfNeeded"
    }

    fn timeout(&self) -> Duration {
        Duration::from_secs(self.entry["timeoutSeconds"].as_u64().unwrap_or(10))
    }
}

/// The object as changed so far, and what webhooks have said about it.
#[derive(Debug, Default)]
struct AdmissionState {
    object: Value,
    warnings: Vec<String>,
    annotations: BTreeMap<String, String>,
}

/// Returns the object to store and the warnings for the client.
pub(super) async fn admit(
    shared: &Arc<Shared>,
    create: &Create<'_>,
    object: Value,
) -> Result<(Value, Vec<String>), StatusError> {
    let mut admission = AdmissionState { object, ..AdmissionState::default() };
    let result = run(shared, create, &mut admission).await;
    let name = admission.object["metadata"]["name"].as_str().unwrap_or_default();
    let record = Audit { object: format!("{}/{name}", create.target.namespace), annotations: admission.annotations };
    {
        let mut state = shared.state();
        if state.audit.len() == AUDIT_RECORDS {
            state.audit.pop_front();
        }
        state.audit.push_back(record);
    }
    result.map(|()| (admission.object, admission.warnings))
}

async fn run(shared: &Arc<Shared>, create: &Create<'_>, admission: &mut AdmissionState) -> Result<(), StatusError> {
    plugins::admit(shared, create, &mut admission.object)?;
    let (hooks, namespace) = {
        let state = shared.state();
        let configurations = state.store.list("mutatingwebhookconfigurations");
        let hooks: Vec<WebhookEntry> = configurations.flat_map(hooks).collect();
        (hooks, select::namespace_labels(&state.store, create.target, &admission.object))
    };
    // Indices of hooks: called ones that want reinvocation, and those of them to reinvoke because a later one changed the object.
    let (mut called, mut due): (Vec<usize>, Vec<usize>) = (Vec::new(), Vec::new());
    for (index, hook) in hooks.iter().enumerate() {
        if !select::matches(hook, create, &admission.object, namespace.as_ref())? {
            continue;
        }
        if call(shared, create, hook, 0, admission).await? {
            due.append(&mut called);
        }
        if hook.wants_reinvocation() {
            called.push(index);
        }
    }
    let before = admission.object.clone();
    plugins::admit(shared, create, &mut admission.object)?;
    if before != admission.object {
        due.append(&mut called);
    }
    due.sort_unstable();
    for index in due {
        if select::matches(&hooks[index], create, &admission.object, namespace.as_ref())? {
            call(shared, create, &hooks[index], 1, admission).await?;
        }
    }
    Ok(())
}

fn hooks(configuration: &Value) -> impl Iterator<Item = WebhookEntry> {
    let name = configuration["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let entries = configuration["webhooks"].as_array().into_iter().flatten().enumerate();
    entries.map(move |(index, entry)| WebhookEntry { configuration: name.clone(), index, entry: entry.clone() })
}

/// Calls one webhook and returns whether it changed the object.
async fn call(
    shared: &Arc<Shared>,
    create: &Create<'_>,
    hook: &WebhookEntry,
    round: u8,
    admission: &mut AdmissionState,
) -> Result<bool, StatusError> {
    let name = hook.name();
    if create.dry_run && !matches!(hook.entry["sideEffects"].as_str(), Some("None" | "NoneOnDryRun")) {
        return Err(StatusError::new(
            400,
            "BadRequest",
            format!("admission webhook \"{name}\" does not support dry run"),
        ));
    }
    let (uid, review) = review::request(create, &admission.object);
    let answer = call::post_review(shared, hook, &review).await.and_then(|answer| review::parse_response(answer, &uid));
    let place = format!("round_{round}_index_{}", hook.index);
    let mutated =
        |mutated: bool| json!({ "configuration": hook.configuration, "webhook": name, "mutated": mutated }).to_string();
    let response = match answer {
        Ok(response) => response,
        Err(_) if hook.ignores_failure() => {
            let key = format!("failed-open.mutation.webhook.admission.k8s.io/{place}");
            admission.annotations.insert(key, name.to_owned());
            return Ok(false);
        }
        Err(error) => {
            let message = format!("Internal error occurred: failed calling webhook \"{name}\": {error}");
            return Err(StatusError::new(500, "InternalError", message));
        }
    };
    for (key, value) in response["auditAnnotations"].as_object().into_iter().flatten() {
        admission.annotations.insert(format!("{name}/{key}"), value.as_str().unwrap_or_default().to_owned());
    }
    let warnings = response["warnings"].as_array().into_iter().flatten();
    admission.warnings.extend(warnings.filter_map(|warning| Some(warning.as_str()?.to_owned())));
    if response["allowed"] != true {
        return Err(review::denial(name, &response["status"]));
    }
    let patched = review::apply_patch(&response, &admission.object)
        .map_err(|error| StatusError::new(500, "InternalError", format!("Internal error occurred: {error}")))?;
    let changed = patched.as_ref().is_some_and(|patched| *patched != admission.object);
    if let Some(patched) = patched {
        admission.object = patched;
    }
    admission.annotations.insert(format!("mutation.webhook.admission.k8s.io/{place}"), mutated(changed));
    Ok(changed)
}

/// `pods "web" is forbidden: WHY`
fn forbidden(create: &Create<'_>, object: &Value, why: &str) -> StatusError {
    let Target { api_version, resource, .. } = create.target;
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    StatusError::new(403, "Forbidden", format!("{} \"{name}\" is forbidden: {why}", qualified(api_version, resource)))
}

impl ApiServer {
    /// Sets the addresses of the ready replicas behind a port of a Service, as its EndpointSlices would.
    pub fn set_endpoints(&self, namespace: &str, service: &str, port: u16, replicas: &[std::net::SocketAddr]) {
        self.shared.webhooks.set_endpoints(namespace, service, port, replicas);
    }

    /// Sets the client certificate for calls of webhooks (`--admission-control-config-file` of kube-apiserver).
    pub fn set_client_certificate(&self, pair: Option<super::tls::Pair>) {
        self.shared.webhooks.set_client_certificate(pair);
    }

    /// Returns the latest audit records.
    pub fn audit(&self) -> Vec<Audit> {
        self.shared.state().audit.iter().cloned().collect()
    }
}
