//! Answers an AdmissionReview: from the bytes of a request to those of its response. Pure computation, on a thread of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};

use serde_json::Value;
use weir_injector::admission::{AdmissionResult, DecodeError, Request, Review, ReviewId, ReviewResponse, V1};
use weir_injector::assertions::{Action, Breach, Surroundings, judge};
use weir_injector::pod_capture::chooses_proxy_ids;
use weir_injector::settings::{Platform, Settings};
use weir_injector::{InjectError, InjectOutcome, InjectRequest, SkipReason, patch};

use super::json_size::{JsonSize, MAX_SEPARATORS};
use crate::metrics::ReviewFailure;

/// Injects a pod: [`weir_injector::inject`], or a stand-in in tests.
pub type InjectFn = fn(&InjectRequest, &Settings) -> Result<InjectOutcome, InjectError>;

/// A response, and what to report about it.
#[derive(Debug, Clone)]
pub struct ReviewResult {
    /// HTTP status. Anything but 200 makes the API server apply the webhook's failure policy.
    pub status: u16,
    /// The review to send back.
    pub response: ReviewResponse,
    /// For metrics and the log.
    pub outcome: ReviewOutcome,
    /// For the log.
    pub subject: ReviewSubject,
    /// For metrics: the capture assertions that the pod breaks.
    pub breached: BTreeSet<BreachedAssertion>,
}

/// A capture assertion that a pod breaks.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct BreachedAssertion {
    /// Its name; written by the administrator.
    pub name: String,
    /// What follows for the pod.
    pub action: Action,
}

/// Result of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReviewOutcome {
    /// The pod was patched, unless it was injected before.
    Injected {
        /// Templates used, comma separated.
        templates: String,
        /// Size of the patch; 0 for none.
        patch_bytes: usize,
    },
    /// The pod is not to be injected.
    Skipped(SkipReason),
    /// The review is not about the creation of a pod.
    NotAPodCreate,
    /// The request was not allowed.
    Failed(ReviewFailure),
}

/// The pod of a request, as far as it could be read. Written by users: for the log only.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReviewSubject {
    /// Namespace of the request, else of the pod.
    pub namespace: String,
    /// Name of the pod, else its `generateName`.
    pub pod: String,
    /// Whether the pod will not be created.
    pub dry_run: bool,
}

impl ReviewSubject {
    fn from_request(request: &Request) -> Self {
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

impl ReviewOutcome {
    /// Returns a short name for the log and the audit annotation.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Injected { .. } => "injected",
            Self::Skipped(_) => "skipped",
            Self::NotAPodCreate => "not_a_pod",
            Self::Failed(ReviewFailure::Denied) => "denied",
            Self::Failed(_) => "failed",
        }
    }

    /// Returns the reason; empty for an injection.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Injected { .. } | Self::NotAPodCreate => "",
            Self::Skipped(reason) => reason.name(),
            Self::Failed(failure) => failure.name(),
        }
    }
}

/// Answers the body of a request.
pub fn handle(body: &[u8], url_env: BTreeMap<String, String>, settings: &Settings, inject: InjectFn) -> ReviewResult {
    if JsonSize::scan(body).is_excessive() {
        return excessive_result(body);
    }
    let Review { api_version, request } = match Review::decode(body) {
        Ok(review) => review,
        Err(error) => return decode_error_result(body, &error),
    };
    let subject = ReviewSubject::from_request(&request);
    let uid = request.uid.clone();
    // A bug in injection costs one request, not the server. No shared state is changed in there.
    let mut breached = BTreeSet::new();
    let review = || review_pod(api_version, request, url_env, settings, inject, &mut breached);
    let reviewed = catch_unwind(AssertUnwindSafe(review));
    if let Ok((mut response, outcome)) = reviewed {
        if !breached.is_empty() {
            let names: Vec<&str> = breached.iter().map(|assertion| assertion.name.as_str()).collect();
            response.audit_annotations.insert("breached-assertions", names.join(","));
        }
        return ReviewResult { status: 200, response, outcome, subject, breached };
    }
    let message = "internal error while injecting this pod; see the webhook's log".to_owned();
    let response = ReviewResponse::denied(api_version, &uid, 500, "InternalError", message);
    let outcome = ReviewOutcome::Failed(ReviewFailure::Internal);
    ReviewResult { status: 500, response, outcome, subject, breached }
}

/// Denies a review that would take too much memory to parse.
fn excessive_result(body: &[u8]) -> ReviewResult {
    let ReviewId { api_version, uid } = ReviewId::extract(body);
    let message = format!("weir: the review has too many values (limit: {MAX_SEPARATORS} commas and opening brackets)");
    let response = ReviewResponse::denied(api_version, &uid, 422, "Invalid", message);
    let (outcome, subject) = (ReviewOutcome::Failed(ReviewFailure::Denied), ReviewSubject::default());
    ReviewResult { status: 200, response, outcome, subject, breached: BTreeSet::new() }
}

/// Returns the result for a request that is not a review; its body has the shape of a review all the same.
pub fn error_result(status: u16, failure: ReviewFailure, message: String) -> ReviewResult {
    ReviewResult {
        status,
        response: ReviewResponse::denied(V1, "", status, "BadRequest", message),
        outcome: ReviewOutcome::Failed(failure),
        subject: ReviewSubject::default(),
        breached: BTreeSet::new(),
    }
}

/// Repeats uid and version if they can be found in what is not a review.
fn decode_error_result(body: &[u8], error: &DecodeError) -> ReviewResult {
    let mut result = error_result(400, ReviewFailure::BadRequest, error.to_string());
    let ReviewId { api_version, uid } = ReviewId::extract(body);
    result.response.api_version = api_version;
    result.response.uid = uid;
    result
}

fn review_pod(
    api_version: &'static str,
    request: Request,
    url_env: BTreeMap<String, String>,
    settings: &Settings,
    inject: InjectFn,
    breached: &mut BTreeSet<BreachedAssertion>,
) -> (ReviewResponse, ReviewOutcome) {
    let denied = |uid: &str, code, reason, message: String| {
        let response = ReviewResponse::denied(api_version, uid, code, reason, message);
        (response, ReviewOutcome::Failed(ReviewFailure::Denied))
    };
    if !is_pod_create(&request) {
        return allow(api_version, &request.uid, None, Vec::new(), ReviewOutcome::NotAPodCreate);
    }
    if !request.object.is_object() {
        return denied(&request.uid, 400, "BadRequest", "request.object must be a pod object".to_owned());
    }
    let Request { uid, namespace, object, .. } = request;
    let request = InjectRequest {
        pod: object,
        namespace_annotations: settings.namespaces.annotations(&namespace),
        namespace: Some(namespace).filter(|namespace| !namespace.is_empty()),
        url_env,
        ..InjectRequest::default()
    };
    let mut judge = |pod: &Value, has_authors_proxy: bool| {
        let surroundings = Surroundings {
            namespace_labels: request.namespace.as_deref().and_then(|name| settings.namespaces.labels(name)),
            is_dual_stack: settings.nodes.is_dual_stack(),
            has_authors_proxy,
        };
        let found = judge(pod, surroundings, &settings.assertions);
        breached.extend(found.iter().map(BreachedAssertion::of));
        Judgement::of(found)
    };
    match inject(&request, settings) {
        Ok(InjectOutcome::Injected { pod, templates, mut warnings }) => {
            // On OpenShift, the injector chooses other ids than Istio's, and they come back with a second review.
            let chooses_ids = settings.platform != Platform::OpenShift && chooses_proxy_ids(&request.pod);
            match judge(&pod, chooses_ids) {
                Judgement::Denied(reasons) => return denied(&uid, 403, "Forbidden", reasons),
                Judgement::Allowed { warnings: more } => warnings.extend(more),
            }
            allow_patched(api_version, &uid, [&request.pod, &pod], &templates, warnings)
        }
        Ok(InjectOutcome::Skipped { reason, mut warnings }) => {
            // Authors of `sidecar.istio.io/inject: "false"` know; others may wonder why their pod has no sidecar.
            if reason != SkipReason::OptedOut {
                warnings.insert(0, format!("weir: sidecar not injected: {}", reason.message()));
            }
            match judge(&request.pod, true) {
                Judgement::Denied(reasons) => return denied(&uid, 403, "Forbidden", reasons),
                Judgement::Allowed { warnings: more } => warnings.extend(more),
            }
            allow(api_version, &uid, None, warnings, ReviewOutcome::Skipped(reason))
        }
        Err(error) => denied(&uid, 422, "Invalid", format!("weir: {error}")),
    }
}

impl BreachedAssertion {
    fn of(breach: &Breach) -> Self {
        Self { name: breach.assertion.clone(), action: breach.action }
    }
}

/// Allows an injected pod, with the patch that makes the second of the pods from the first.
fn allow_patched(
    api_version: &'static str,
    uid: &str,
    [before, after]: [&Value; 2],
    templates: &[String],
    warnings: Vec<String>,
) -> (ReviewResponse, ReviewOutcome) {
    let operations = patch::diff(before, after);
    let patch = match (!operations.is_empty()).then(|| patch::to_json(&operations)).transpose() {
        Ok(patch) => patch,
        // Allowed without its patch, the pod would run outside the mesh.
        Err(error) => {
            let message = format!("weir: cannot write the patch: {error}");
            let response = ReviewResponse::denied(api_version, uid, 500, "InternalError", message);
            return (response, ReviewOutcome::Failed(ReviewFailure::Internal));
        }
    };
    let patch_bytes = patch.as_ref().map_or(0, Vec::len);
    let outcome = ReviewOutcome::Injected { templates: templates.join(","), patch_bytes };
    allow(api_version, uid, patch, warnings, outcome)
}

/// What follows from the capture assertions for a pod.
enum Judgement {
    Allowed { warnings: Vec<String> },
    Denied(String),
}

impl Judgement {
    fn of(breaches: Vec<Breach>) -> Self {
        let (denials, warnings): (Vec<_>, Vec<_>) =
            breaches.into_iter().partition(|breach| breach.action == Action::Deny);
        let text = |breach: Breach| format!("weir: {}", breach.text);
        if denials.is_empty() {
            return Self::Allowed { warnings: warnings.into_iter().map(text).collect() };
        }
        Self::Denied(denials.into_iter().map(text).collect::<Vec<_>>().join("; "))
    }
}

/// Returns whether a review is about the creation of a pod. Absent fields count as such, because hand-made reviews often hold only the object.
fn is_pod_create(request: &Request) -> bool {
    let pod = if request.kind.kind.is_empty() {
        request.object["kind"].as_str().is_none_or(|kind| kind == "Pod")
    } else {
        request.kind.group.is_empty() && request.kind.kind == "Pod"
    };
    pod && request.sub_resource.is_empty() && matches!(request.operation.as_str(), "" | "CREATE")
}

fn allow(
    api_version: &'static str,
    uid: &str,
    patch: Option<Vec<u8>>,
    warnings: Vec<String>,
    outcome: ReviewOutcome,
) -> (ReviewResponse, ReviewOutcome) {
    let mut audit_annotations = BTreeMap::new();
    if outcome != ReviewOutcome::NotAPodCreate {
        audit_annotations.insert("decision", outcome.name().to_owned());
    }
    if !outcome.reason().is_empty() {
        audit_annotations.insert("reason", outcome.reason().to_owned());
    }
    let result = AdmissionResult::Allowed { patch };
    (ReviewResponse { api_version, uid: uid.to_owned(), result, warnings, audit_annotations }, outcome)
}
