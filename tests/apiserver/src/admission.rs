//! Mutating admission of what is created, as kube-apiserver does it.
//!
//! ```text
//! object ─▶ plugins ─▶ webhook, webhook, ... ─▶ changed by a later one? ─▶ plugins, webhooks that want to be asked again ─▶ object
//!                      (configurations by name, entries in order; select.rs says which, call.rs asks them)
//! ```
//!
//! Only CREATE is asked about: nothing here has a webhook for another operation. Facts: Kubernetes documentation "Dynamic Admission
//! Control", and the texts of kube-apiserver's errors.

mod call;
pub(super) mod cel;
mod plugins;
mod review;
mod select;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

pub(super) use self::call::Caller;
use super::auth::User;
use super::resources::qualified;
use super::store::Refusal;
use super::target::Target;
use super::{ApiServer, Shared};

/// So many audit records are kept.
const RECORDS: usize = 20_000;

/// What the audit log says about one request that was admitted or refused.
#[derive(Debug, Clone, Default)]
pub struct Audit {
    /// `NAMESPACE/NAME` of what was to be created; the name is empty where the server makes it.
    pub object: String,
    /// Annotations: of webhooks as `WEBHOOK/KEY`, of the server as kube-apiserver has them.
    pub annotations: BTreeMap<String, String>,
}

/// A create, as far as admission looks at it.
#[derive(Debug)]
pub(super) struct Create<'a> {
    pub(super) target: &'a Target,
    pub(super) kind: String,
    pub(super) user: &'a User,
    pub(super) dry_run: bool,
    /// `CreateOptions`, or `PatchOptions` of an apply.
    pub(super) options: Value,
}

/// An entry of a MutatingWebhookConfiguration.
#[derive(Debug, Clone)]
struct Hook {
    configuration: String,
    index: usize,
    entry: Value,
}

impl Hook {
    fn name(&self) -> &str {
        self.entry["name"].as_str().unwrap_or_default()
    }

    fn ignores_failure(&self) -> bool {
        self.entry["failurePolicy"] == "Ignore"
    }

    fn again(&self) -> bool {
        self.entry["reinvocationPolicy"] == "IfNeeded"
    }

    fn timeout(&self) -> Duration {
        Duration::from_secs(self.entry["timeoutSeconds"].as_u64().unwrap_or(10))
    }
}

/// What came out of asking.
#[derive(Debug, Default)]
struct Course {
    object: Value,
    warnings: Vec<String>,
    annotations: BTreeMap<String, String>,
}

/// The object as it is to be stored, with the warnings for the client.
pub(super) async fn admit(
    shared: &Arc<Shared>,
    create: &Create<'_>,
    object: Value,
) -> Result<(Value, Vec<String>), Refusal> {
    let mut course = Course { object, ..Course::default() };
    let done = run(shared, create, &mut course).await;
    let name = course.object["metadata"]["name"].as_str().unwrap_or_default();
    let record = Audit { object: format!("{}/{name}", create.target.namespace), annotations: course.annotations };
    {
        let mut state = shared.state();
        if state.audit.len() == RECORDS {
            state.audit.pop_front();
        }
        state.audit.push_back(record);
    }
    done.map(|()| (course.object, course.warnings))
}

async fn run(shared: &Arc<Shared>, create: &Create<'_>, course: &mut Course) -> Result<(), Refusal> {
    plugins::admit(shared, create, &mut course.object)?;
    let (hooks, namespace) = {
        let state = shared.state();
        let configurations = state.store.list("mutatingwebhookconfigurations");
        let hooks: Vec<Hook> = configurations.flat_map(hooks).collect();
        (hooks, select::namespace_labels(&state.store, create.target, &course.object))
    };
    // Indices of hooks: those asked so far that want to be asked again, and those that will be.
    let (mut asked, mut due): (Vec<usize>, Vec<usize>) = (Vec::new(), Vec::new());
    for (index, hook) in hooks.iter().enumerate() {
        if !select::meant(hook, create, &course.object, namespace.as_ref())? {
            continue;
        }
        if ask(shared, create, hook, 0, course).await? {
            due.append(&mut asked);
        }
        if hook.again() {
            asked.push(index);
        }
    }
    let before = course.object.clone();
    plugins::admit(shared, create, &mut course.object)?;
    if before != course.object {
        due.append(&mut asked);
    }
    due.sort_unstable();
    for index in due {
        if select::meant(&hooks[index], create, &course.object, namespace.as_ref())? {
            ask(shared, create, &hooks[index], 1, course).await?;
        }
    }
    Ok(())
}

fn hooks(configuration: &Value) -> impl Iterator<Item = Hook> {
    let name = configuration["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let entries = configuration["webhooks"].as_array().into_iter().flatten().enumerate();
    entries.map(move |(index, entry)| Hook { configuration: name.clone(), index, entry: entry.clone() })
}

/// Asks one webhook; whether it changed the object.
async fn ask(
    shared: &Arc<Shared>,
    create: &Create<'_>,
    hook: &Hook,
    round: u8,
    course: &mut Course,
) -> Result<bool, Refusal> {
    let name = hook.name();
    if create.dry_run && !matches!(hook.entry["sideEffects"].as_str(), Some("None" | "NoneOnDryRun")) {
        return Err(Refusal::new(400, "BadRequest", format!("admission webhook \"{name}\" does not support dry run")));
    }
    let (uid, review) = review::request(create, &course.object);
    let answer = call::ask(shared, hook, &review).await.and_then(|answer| review::check(answer, &uid));
    let place = format!("round_{round}_index_{}", hook.index);
    let mutated =
        |mutated: bool| json!({ "configuration": hook.configuration, "webhook": name, "mutated": mutated }).to_string();
    let response = match answer {
        Ok(response) => response,
        Err(_) if hook.ignores_failure() => {
            let key = format!("failed-open.mutation.webhook.admission.k8s.io/{place}");
            course.annotations.insert(key, name.to_owned());
            return Ok(false);
        }
        Err(error) => {
            let message = format!("Internal error occurred: failed calling webhook \"{name}\": {error}");
            return Err(Refusal::new(500, "InternalError", message));
        }
    };
    for (key, value) in response["auditAnnotations"].as_object().into_iter().flatten() {
        course.annotations.insert(format!("{name}/{key}"), value.as_str().unwrap_or_default().to_owned());
    }
    let warnings = response["warnings"].as_array().into_iter().flatten();
    course.warnings.extend(warnings.filter_map(|warning| Some(warning.as_str()?.to_owned())));
    if response["allowed"] != true {
        return Err(review::denial(name, &response["status"]));
    }
    let patched = review::patched(&response, &course.object)
        .map_err(|error| Refusal::new(500, "InternalError", format!("Internal error occurred: {error}")))?;
    let changed = patched.as_ref().is_some_and(|patched| *patched != course.object);
    if let Some(patched) = patched {
        course.object = patched;
    }
    course.annotations.insert(format!("mutation.webhook.admission.k8s.io/{place}"), mutated(changed));
    Ok(changed)
}

/// `pods "web" is forbidden: WHY`
fn forbidden(create: &Create<'_>, object: &Value, why: &str) -> Refusal {
    let Target { api_version, resource, .. } = create.target;
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    Refusal::new(403, "Forbidden", format!("{} \"{name}\" is forbidden: {why}", qualified(api_version, resource)))
}

impl ApiServer {
    /// Where the replicas behind a port of a Service are, as its endpoints would say; an empty list for none that is ready.
    pub fn route(&self, namespace: &str, service: &str, port: u16, replicas: &[std::net::SocketAddr]) {
        self.shared.caller.route(namespace, service, port, replicas);
    }

    /// The client certificate that the server shows to webhooks from now on (`--admission-control-config-file` of the real one).
    pub fn identify(&self, pair: Option<super::tls::Pair>) {
        self.shared.caller.identify(pair);
    }

    /// What the audit log says about the latest requests that went through admission.
    pub fn audit(&self) -> Vec<Audit> {
        self.shared.state().audit.iter().cloned().collect()
    }
}
