//! The wire format of `admission.k8s.io`: AdmissionReviews of the API server and the responses to them.
//!
//! ```text
//! body ──Review::decode──▶ Review { api_version, request { uid, object, … } }
//! body ◀──ReviewResponse::to_json── ReviewResponse { api_version, uid, AdmissionResult }
//! ```
//!
//! `v1` and `v1beta1` have the same fields here, so there is one set of types, and a response repeats the `apiVersion` of the
//! request. The pod stays raw JSON: a typed pod would drop fields that are newer than its library.
//! Source: Kubernetes `k8s.io/api/admission/v1/types.go`.

mod review_id;

use std::collections::BTreeMap;

use base64::display::Base64Display;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

pub use review_id::ReviewId;

use crate::compact;

/// `apiVersion` of admission.k8s.io/v1.
pub const V1: &str = "admission.k8s.io/v1";
/// `apiVersion` of admission.k8s.io/v1beta1, which API servers send if a webhook configuration requests only that.
pub const V1BETA1: &str = "admission.k8s.io/v1beta1";
/// `kind` of requests and responses.
pub const KIND: &str = "AdmissionReview";

/// Limit of one warning in bytes. The API server truncates at 256 characters
/// (`staging/src/k8s.io/apiserver/pkg/endpoints/filters/warning.go`), without a mark.
const WARNING_BYTES: usize = 250;
/// Limit of all warnings of a response in bytes. The API server drops what exceeds 4096 characters.
const WARNINGS_BYTES: usize = 4000;

/// Error returned when a body is not an AdmissionReview with a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The body is empty.
    #[error("the body is empty, expected an AdmissionReview in JSON")]
    Empty,
    /// The body is not JSON.
    #[error("the body is not JSON: {0}")]
    Syntax(String),
    /// A field is missing or ill-typed.
    #[error("the body is not an AdmissionReview: {path}: {reason}")]
    Shape {
        /// Path of the field.
        path: String,
        /// Description of the fault.
        reason: String,
    },
    /// The body has another `apiVersion` or `kind`.
    #[error("the body is {kind:?} of {api_version:?}, expected \"AdmissionReview\" of \"{V1}\" or \"{V1BETA1}\"")]
    Type {
        /// `apiVersion` of the body.
        api_version: String,
        /// `kind` of the body.
        kind: String,
    },
    /// The review is not a request.
    #[error("the AdmissionReview has no request")]
    NoRequest,
    /// The request has no `uid`, without which the API server accepts no response.
    #[error("the AdmissionReview has no request.uid")]
    NoUid,
}

/// A decoded AdmissionReview with its request.
#[derive(Debug, Clone)]
pub struct Review {
    /// [`V1`] or [`V1BETA1`].
    pub api_version: &'static str,
    /// `request`.
    pub request: Request,
}

/// The fields of an AdmissionRequest that the injector reads.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    /// Identifies the request; the response repeats it.
    #[serde(default, deserialize_with = "null_as_default")]
    pub uid: String,
    /// Group, version and kind of `object`.
    #[serde(default, deserialize_with = "null_as_default")]
    pub kind: GroupVersionKind,
    /// Subresource of the request; empty for the object itself.
    #[serde(default, deserialize_with = "null_as_default")]
    pub sub_resource: String,
    /// Namespace of the request.
    #[serde(default, deserialize_with = "null_as_default")]
    pub namespace: String,
    /// `CREATE`, `UPDATE`, `DELETE` or `CONNECT`.
    #[serde(default, deserialize_with = "null_as_default")]
    pub operation: String,
    /// The object to be persisted; `null` for operations without one.
    #[serde(default, deserialize_with = "compact::deserialize")]
    pub object: Value,
    /// Whether nothing is persisted. Injection has no side effects, so this is only logged and counted.
    #[serde(default, deserialize_with = "null_as_default")]
    pub dry_run: bool,
}

/// Type of an object.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct GroupVersionKind {
    /// Empty for the core group.
    #[serde(default, deserialize_with = "null_as_default")]
    pub group: String,
    /// `v1`.
    #[serde(default, deserialize_with = "null_as_default")]
    pub version: String,
    /// `Pod`.
    #[serde(default, deserialize_with = "null_as_default")]
    pub kind: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    #[serde(default, deserialize_with = "null_as_default")]
    api_version: String,
    #[serde(default, deserialize_with = "null_as_default")]
    kind: String,
    #[serde(default)]
    request: Option<Request>,
}

/// Decodes `null` as the zero value, as Go's decoder does; clients written in Go rely on it.
fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl Review {
    /// Decodes a review of either version.
    ///
    /// # Errors
    /// The body is not a review with a request; the error has the position or the path.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        if body.is_empty() {
            return Err(DecodeError::Empty);
        }
        let envelope: Envelope = serde_json::from_slice(body).map_err(|error| decode_error(body, &error))?;
        let api_version = match (envelope.api_version.as_str(), envelope.kind.as_str()) {
            (V1, KIND) => V1,
            (V1BETA1, KIND) => V1BETA1,
            _ => return Err(DecodeError::Type { api_version: envelope.api_version, kind: envelope.kind }),
        };
        let request = envelope.request.ok_or(DecodeError::NoRequest)?;
        if request.uid.is_empty() {
            return Err(DecodeError::NoUid);
        }
        Ok(Self { api_version, request })
    }
}

/// Returns the error with the path of the field, for which it decodes the body again.
fn decode_error(body: &[u8], error: &serde_json::Error) -> DecodeError {
    if !error.is_data() {
        return DecodeError::Syntax(error.to_string());
    }
    let deserializer = &mut serde_json::Deserializer::from_slice(body);
    match serde_path_to_error::deserialize::<_, Envelope>(deserializer) {
        Ok(_) => DecodeError::Syntax(error.to_string()),
        Err(found) => DecodeError::Shape { path: found.path().to_string(), reason: found.inner().to_string() },
    }
}

/// Whether an object is admitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdmissionResult {
    /// The object is admitted.
    Allowed {
        /// JSON text of an RFC 6902 patch; `None` leaves the object unchanged.
        patch: Option<Vec<u8>>,
    },
    /// The object is rejected.
    Denied {
        /// HTTP status that the API server returns to its client.
        code: u16,
        /// `metav1.StatusReason` of the status.
        reason: &'static str,
        /// Message for the user.
        message: String,
    },
}

/// The response to a review.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReviewResponse {
    /// `apiVersion` of the review.
    pub api_version: &'static str,
    /// `uid` of the request; empty if the body has none.
    pub uid: String,
    /// Whether the object is admitted.
    pub result: AdmissionResult,
    /// Warnings that `kubectl` prints.
    pub warnings: Vec<String>,
    /// Annotations of the audit event; the API server prefixes the keys with the webhook's name.
    pub audit_annotations: BTreeMap<&'static str, String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ResponseEnvelope<'a> {
    api_version: &'a str,
    kind: &'a str,
    response: ResponseBody<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ResponseBody<'a> {
    uid: &'a str,
    allowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch: Option<Base64<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch_type: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Status<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    audit_annotations: &'a BTreeMap<&'static str, String>,
}

/// Bytes that are written as base64, without a copy of the text: a patch may have megabytes.
struct Base64<'a>(&'a [u8]);

impl Serialize for Base64<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&Base64Display::new(self.0, &STANDARD))
    }
}

#[derive(Serialize)]
struct Status<'a> {
    #[serde(rename = "status")]
    outcome: &'a str,
    message: &'a str,
    reason: &'a str,
    code: u16,
}

impl ReviewResponse {
    /// Returns a response that rejects the object.
    pub fn denied(api_version: &'static str, uid: &str, code: u16, reason: &'static str, message: String) -> Self {
        Self {
            api_version,
            uid: uid.to_owned(),
            result: AdmissionResult::Denied { code, reason, message },
            warnings: Vec::new(),
            audit_annotations: BTreeMap::new(),
        }
    }

    /// Encodes the response as an AdmissionReview.
    pub fn to_json(&self) -> Vec<u8> {
        // Of everything but the patch, or about that.
        let mut length = 1024;
        let mut response = ResponseBody {
            uid: &self.uid,
            allowed: false,
            patch: None,
            patch_type: None,
            status: None,
            warnings: printable_warnings(&self.warnings),
            audit_annotations: &self.audit_annotations,
        };
        match &self.result {
            AdmissionResult::Allowed { patch } => {
                response.allowed = true;
                response.patch = patch.as_deref().map(Base64);
                response.patch_type = patch.as_ref().map(|_| "JSONPatch");
                length += patch.as_ref().map_or(0, |bytes| bytes.len().div_ceil(3) * 4);
            }
            AdmissionResult::Denied { code, reason, message } => {
                response.status = Some(Status { outcome: "Failure", message, reason, code: *code });
            }
        }
        let envelope = ResponseEnvelope { api_version: self.api_version, kind: KIND, response };
        let mut json = Vec::with_capacity(length);
        // Strings, numbers and string keys always serialize.
        if serde_json::to_writer(&mut json, &envelope).is_err() {
            json.clear();
        }
        json
    }
}

/// Limits warnings to one line each and to what the API server keeps. It sends them as HTTP headers `Warning` (RFC 7234).
fn printable_warnings(warnings: &[String]) -> Vec<String> {
    let mut left = WARNINGS_BYTES;
    let mut kept = Vec::with_capacity(warnings.len());
    for warning in warnings {
        let line = single_line(warning, WARNING_BYTES);
        let Some(rest) = left.checked_sub(line.len()) else { break };
        left = rest;
        kept.push(line);
    }
    if kept.len() < warnings.len() {
        kept.push(format!("{} more warnings omitted", warnings.len() - kept.len()));
    }
    kept
}

fn single_line(text: &str, limit: usize) -> String {
    let mut line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if line.len() > limit {
        let cut = line.floor_char_boundary(limit - "...".len());
        line.truncate(cut);
        line.push_str("...");
    }
    line
}

#[cfg(test)]
mod tests;
