//! From the bytes of a request to the bytes of its answer: a pure function, run inline because it only computes, and briefly.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::metrics::Failure;
use weir_injector::admission::{Address, DecodeError, Reply, Request, Review, V1, Verdict};
use weir_injector::inject::{InjectError, InjectRequest, Outcome, SkipReason, patch};
use weir_injector::settings::Settings;

/// Who decides about pods: [`weir_injector::inject::inject`], and something else in tests of what surrounds it.
pub type Decide = fn(&InjectRequest, &Settings) -> Result<Outcome, InjectError>;

/// An answer and what to tell about it.
#[derive(Debug, Clone)]
pub struct Answer {
    /// HTTP status. Anything but 200 makes the API server apply the webhook's failure policy.
    pub status: u16,
    /// The review that goes back.
    pub reply: Reply,
    /// For metrics and the log.
    pub decision: Decision,
    /// For the log.
    pub subject: Subject,
}

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// The pod got a patch, unless it had all of it already.
    Injected {
        /// Templates used, comma separated.
        templates: String,
        /// Length of the patch, 0 for none.
        patch_bytes: usize,
    },
    /// Left alone on purpose.
    Skipped(SkipReason),
    /// Not the creation of a pod: none of our business.
    NotAPod,
    /// Not allowed.
    Failed(Failure),
}

/// Whom a request is about, as far as it could be read. Written by users: for the log only.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Subject {
    /// Of the request, else of the pod.
    pub namespace: String,
    /// Name of the pod, else its `generateName`.
    pub pod: String,
    /// Nothing will be created.
    pub dry_run: bool,
}

impl Subject {
    fn of(request: &Request) -> Self {
        let metadata = &request.object["metadata"];
        let text = |key: &str| metadata[key].as_str().filter(|text| !text.is_empty());
        Self {
            namespace: if request.namespace.is_empty() {
                text("namespace").unwrap_or_default().to_owned()
            } else {
                request.namespace.clone()
            },
            pod: text("name").or_else(|| text("generateName")).unwrap_or_default().to_owned(),
            dry_run: request.dry_run,
        }
    }
}

impl Decision {
    /// Short name for the log and the audit annotation.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Injected { .. } => "injected",
            Self::Skipped(_) => "skipped",
            Self::NotAPod => "not_a_pod",
            Self::Failed(Failure::Denied) => "denied",
            Self::Failed(_) => "failed",
        }
    }

    /// Why, where there is a reason.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Injected { .. } | Self::NotAPod => "",
            Self::Skipped(reason) => reason.name(),
            Self::Failed(failure) => failure.name(),
        }
    }
}

/// Answers a body.
pub fn answer(body: &[u8], url_env: BTreeMap<String, String>, settings: &Settings, decide: Decide) -> Answer {
    let Review { api_version, request } = match Review::decode(body) {
        Ok(review) => review,
        Err(error) => return undecodable(body, &error),
    };
    let subject = Subject::of(&request);
    let uid = request.uid.clone();
    // A defect in the decision costs one request, not the server. Nothing that is shared is changed in there.
    let decided = catch_unwind(AssertUnwindSafe(|| decide_about(api_version, request, url_env, settings, decide)));
    if let Ok((reply, decision)) = decided {
        return Answer { status: 200, reply, decision, subject };
    }
    let message = "the injector failed on this pod; its log tells where".to_owned();
    let reply = Reply::denied(api_version, &uid, 500, "InternalError", message);
    Answer { status: 500, reply, decision: Decision::Failed(Failure::Internal), subject }
}

/// An answer for what was never a review: status and text, in the shape of a review all the same.
pub fn refusal(status: u16, failure: Failure, message: String) -> Answer {
    Answer {
        status,
        reply: Reply::denied(V1, "", status, "BadRequest", message),
        decision: Decision::Failed(failure),
        subject: Subject::default(),
    }
}

/// The uid and the version are repeated where they can be found in what is not a review.
fn undecodable(body: &[u8], error: &DecodeError) -> Answer {
    let mut answer = refusal(400, Failure::BadRequest, error.to_string());
    let Address { api_version, uid } = Address::find(body);
    answer.reply.api_version = api_version;
    answer.reply.uid = uid;
    answer
}

fn decide_about(
    api_version: &'static str,
    request: Request,
    url_env: BTreeMap<String, String>,
    settings: &Settings,
    decide: Decide,
) -> (Reply, Decision) {
    let denied = |code, reason, message: String| {
        (Reply::denied(api_version, &request.uid, code, reason, message), Decision::Failed(Failure::Denied))
    };
    if !is_new_pod(&request) {
        return (allowed(api_version, &request.uid, None, Vec::new(), &Decision::NotAPod), Decision::NotAPod);
    }
    if !request.object.is_object() {
        return denied(
            400,
            "BadRequest",
            "request.object is missing or not an object; the pod is expected there".to_owned(),
        );
    }
    let Request { uid, namespace, object, .. } = request;
    let asked = InjectRequest {
        pod: object,
        namespace_annotations: settings.namespaces.annotations(&namespace),
        namespace: Some(namespace).filter(|namespace| !namespace.is_empty()),
        url_env,
        ..InjectRequest::default()
    };
    match decide(&asked, settings) {
        Ok(Outcome::Injected { pod, templates, warnings }) => {
            let operations = patch::diff(&asked.pod, &pod);
            let text = if operations.is_empty() { Ok(None) } else { patch::to_json(&operations).map(Some) };
            let patch = match text {
                Ok(patch) => patch,
                // Allowed without its patch, the pod would run outside the mesh.
                Err(error) => {
                    let message = format!("weir: cannot write the patch: {error}");
                    let reply = Reply::denied(api_version, &uid, 500, "InternalError", message);
                    return (reply, Decision::Failed(Failure::Internal));
                }
            };
            let decision =
                Decision::Injected { templates: templates.join(","), patch_bytes: patch.as_ref().map_or(0, Vec::len) };
            (allowed(api_version, &uid, patch, warnings, &decision), decision)
        }
        Ok(Outcome::Skipped { reason, mut warnings }) => {
            if needs_warning(reason) {
                warnings.insert(0, format!("weir: no sidecar is injected: {}", reason.explain()));
            }
            let decision = Decision::Skipped(reason);
            (allowed(api_version, &uid, None, warnings, &decision), decision)
        }
        Err(error) => {
            let reply = Reply::denied(api_version, &uid, 422, "Invalid", format!("weir: {error}"));
            (reply, Decision::Failed(Failure::Denied))
        }
    }
}

/// Who wrote `sidecar.istio.io/inject: "false"` knows; all others may wonder why their pod has no sidecar.
fn needs_warning(reason: SkipReason) -> bool {
    reason != SkipReason::ExplicitlyOff
}

/// What is absent counts as the creation of a pod: hand-made reviews often say no more than the object.
fn is_new_pod(request: &Request) -> bool {
    let pod = if request.kind.kind.is_empty() {
        request.object["kind"].as_str().is_none_or(|kind| kind == "Pod")
    } else {
        request.kind.group.is_empty() && request.kind.kind == "Pod"
    };
    pod && request.sub_resource.is_empty() && matches!(request.operation.as_str(), "" | "CREATE")
}

fn allowed(
    api_version: &'static str,
    uid: &str,
    patch: Option<Vec<u8>>,
    warnings: Vec<String>,
    decision: &Decision,
) -> Reply {
    let mut audit = BTreeMap::new();
    if *decision != Decision::NotAPod {
        audit.insert("decision", decision.name().to_owned());
    }
    if !decision.reason().is_empty() {
        audit.insert("reason", decision.reason().to_owned());
    }
    Reply { api_version, uid: uid.to_owned(), verdict: Verdict::Allowed { patch }, warnings, audit }
}
