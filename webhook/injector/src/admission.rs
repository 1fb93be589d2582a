//! The wire form of `admission.k8s.io`: what the API server sends and what it gets back.
//!
//! ```text
//! body ──Review::decode──▶ Review { api_version, request { uid, object, … } }
//!                                         │
//! body ◀──Reply::to_json── Reply { api_version, uid, Verdict } ◀── server/review.rs
//! ```
//!
//! `v1` and `v1beta1` have the same fields for our purposes (`warnings` and `auditAnnotations` are in both since Kubernetes 1.19), so there
//! is one set of types and the reply repeats the `apiVersion` of the request. The pod stays raw JSON: a typed pod would drop fields
//! that are newer than its library. Source: Kubernetes `k8s.io/api/admission/v1/types.go`.

mod address;

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use address::Address;

/// `apiVersion` of admission.k8s.io/v1.
pub const V1: &str = "admission.k8s.io/v1";
/// `apiVersion` of admission.k8s.io/v1beta1, removed from Kubernetes 1.22 as a default but still sent where it is asked for.
pub const V1BETA1: &str = "admission.k8s.io/v1beta1";
/// `kind` of every message in both directions.
pub const KIND: &str = "AdmissionReview";

/// The API server cuts a single warning at 256 characters (`staging/src/k8s.io/apiserver/pkg/endpoints/filters/warning.go`); we cut at a
/// word's distance before, in bytes, and mark the cut.
const WARNING_BYTES: usize = 250;
/// All warnings of a reply together; the API server drops what is beyond 4096 characters.
const WARNINGS_BYTES: usize = 4000;

/// Why a body is not a review that can be answered normally.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// No body at all.
    #[error("the body is empty; an AdmissionReview in JSON is expected")]
    Empty,
    /// Not JSON.
    #[error("the body is not JSON: {0}")]
    Syntax(String),
    /// JSON of another shape.
    #[error("the body is not an AdmissionReview: {path}: {reason}")]
    Shape {
        /// Where.
        path: String,
        /// What is wrong there.
        reason: String,
    },
    /// Another `apiVersion` or `kind`.
    #[error("the body is {kind:?} of {api_version:?}; \"AdmissionReview\" of \"{V1}\" or \"{V1BETA1}\" is expected")]
    Type {
        /// What the body says.
        api_version: String,
        /// What the body says.
        kind: String,
    },
    /// A review that is no request, as the API server never sends it.
    #[error("the AdmissionReview has no request")]
    NoRequest,
    /// Without a uid no answer would be accepted.
    #[error("the AdmissionReview has no request.uid")]
    NoUid,
}

/// A decoded review with its request.
#[derive(Debug, Clone)]
pub struct Review {
    /// To be repeated in the reply: [`V1`] or [`V1BETA1`].
    pub api_version: &'static str,
    /// What is asked.
    pub request: Request,
}

/// The part of an AdmissionRequest that matters here. Other fields are passed over.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    /// To be repeated in the reply.
    #[serde(default, deserialize_with = "null_as_default")]
    pub uid: String,
    /// Group, version and kind of `object`.
    #[serde(default, deserialize_with = "null_as_default")]
    pub kind: GroupVersionKind,
    /// Subresource the request is for, empty for the object itself.
    #[serde(default, deserialize_with = "null_as_default")]
    pub sub_resource: String,
    /// Namespace of the request.
    #[serde(default, deserialize_with = "null_as_default")]
    pub namespace: String,
    /// `CREATE`, `UPDATE`, `DELETE` or `CONNECT`.
    #[serde(default, deserialize_with = "null_as_default")]
    pub operation: String,
    /// The object as it will be persisted. `null` where the operation has none.
    #[serde(default)]
    pub object: Value,
    /// Nothing will be persisted. Deciding has no side effects, so this only goes to the log.
    #[serde(default, deserialize_with = "null_as_default")]
    pub dry_run: bool,
}

/// What kind of object a request is about.
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

/// Go's decoder takes `null` for the zero value of every field; clients written in Go rely on it.
fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl Review {
    /// Reads a review of either version.
    ///
    /// # Errors
    /// Whatever keeps the body from being answered; the text names the position or the path.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        if body.is_empty() {
            return Err(DecodeError::Empty);
        }
        let envelope: Envelope = serde_json::from_slice(body).map_err(|error| explain(body, &error))?;
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

/// The path of an ill-typed field is worth a second pass over the body, which only bad bodies pay.
fn explain(body: &[u8], error: &serde_json::Error) -> DecodeError {
    if !error.is_data() {
        return DecodeError::Syntax(error.to_string());
    }
    let deserializer = &mut serde_json::Deserializer::from_slice(body);
    match serde_path_to_error::deserialize::<_, Envelope>(deserializer) {
        Ok(_) => DecodeError::Syntax(error.to_string()),
        Err(found) => DecodeError::Shape { path: found.path().to_string(), reason: found.inner().to_string() },
    }
}

/// What a reply says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Let it pass, changed by an RFC 6902 document (`None`: as it is).
    Allowed {
        /// JSON text of the patch.
        patch: Option<Vec<u8>>,
    },
    /// Refuse it.
    Denied {
        /// HTTP status that the API server hands to its client.
        code: u16,
        /// Machine-readable word for `code` (`metav1.StatusReason`).
        reason: &'static str,
        /// What the user reads.
        message: String,
    },
}

/// An answer to a review.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// As in the review.
    pub api_version: &'static str,
    /// As in the request; empty where the body had none.
    pub uid: String,
    /// Yes or no.
    pub verdict: Verdict,
    /// What `kubectl` prints as `Warning:`.
    pub warnings: Vec<String>,
    /// For the audit log; the API server puts the name of the webhook in front of each key.
    pub audit: BTreeMap<&'static str, String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ReplyEnvelope<'a> {
    api_version: &'a str,
    kind: &'a str,
    response: Response<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Response<'a> {
    uid: &'a str,
    allowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch_type: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Status<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    audit_annotations: &'a BTreeMap<&'static str, String>,
}

#[derive(Serialize)]
struct Status<'a> {
    #[serde(rename = "status")]
    outcome: &'a str,
    message: &'a str,
    reason: &'a str,
    code: u16,
}

impl Reply {
    /// A refusal.
    pub fn denied(api_version: &'static str, uid: &str, code: u16, reason: &'static str, message: String) -> Self {
        Self {
            api_version,
            uid: uid.to_owned(),
            verdict: Verdict::Denied { code, reason, message },
            warnings: Vec::new(),
            audit: BTreeMap::new(),
        }
    }

    /// The reply as the body of the HTTP answer.
    pub fn to_json(&self) -> Vec<u8> {
        let mut response = Response {
            uid: &self.uid,
            allowed: false,
            patch: None,
            patch_type: None,
            status: None,
            warnings: printable_warnings(&self.warnings),
            audit_annotations: &self.audit,
        };
        match &self.verdict {
            Verdict::Allowed { patch } => {
                response.allowed = true;
                response.patch = patch.as_ref().map(|bytes| STANDARD.encode(bytes));
                response.patch_type = patch.as_ref().map(|_| "JSONPatch");
            }
            Verdict::Denied { code, reason, message } => {
                response.status = Some(Status { outcome: "Failure", message, reason, code: *code });
            }
        }
        let envelope = ReplyEnvelope { api_version: self.api_version, kind: KIND, response };
        // Strings, numbers and string keys: nothing in here can fail to serialize.
        serde_json::to_vec(&envelope).unwrap_or_default()
    }
}

/// Warnings go into an HTTP header (RFC 7234 `Warning`): one line each, and bounded, so that the last ones are not lost silently.
fn printable_warnings(warnings: &[String]) -> Vec<String> {
    let mut left = WARNINGS_BYTES;
    let mut kept = Vec::with_capacity(warnings.len());
    for warning in warnings {
        let line = one_line(warning, WARNING_BYTES);
        let Some(rest) = left.checked_sub(line.len()) else { break };
        left = rest;
        kept.push(line);
    }
    if kept.len() < warnings.len() {
        kept.push(format!("{} more warnings are left out", warnings.len() - kept.len()));
    }
    kept
}

fn one_line(text: &str, limit: usize) -> String {
    let mut line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if line.len() > limit {
        let cut = line.floor_char_boundary(limit - "...".len());
        line.truncate(cut);
        line.push_str("...");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(verdict: Verdict) -> Reply {
        Reply { api_version: V1, uid: "u-1".to_owned(), verdict, warnings: Vec::new(), audit: BTreeMap::new() }
    }

    #[test]
    fn decodes_what_a_real_api_server_sends() {
        let body = br#"{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{"uid":"705ab4f5","kind":{"group":"","version":"v1","kind":"Pod"},
            "resource":{"group":"","version":"v1","resource":"pods"},"requestKind":{"group":"","version":"v1","kind":"Pod"},"namespace":"default",
            "operation":"CREATE","userInfo":{"username":"admin","groups":["a"]},"object":{"kind":"Pod","spec":{"brandNew":{"x":[1]}}},"oldObject":null,
            "dryRun":false,"options":{"kind":"CreateOptions"}}}"#;
        let review = Review::decode(body).unwrap();
        assert_eq!(review.api_version, V1);
        assert_eq!(review.request.uid, "705ab4f5");
        assert_eq!(review.request.kind.kind, "Pod");
        assert_eq!(review.request.namespace, "default");
        assert_eq!(review.request.object["spec"]["brandNew"]["x"][0], 1);
    }

    #[test]
    fn takes_null_for_the_zero_value_as_go_does() {
        let body = br#"{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1beta1",
            "request":{"uid":"u","kind":null,"namespace":null,"dryRun":null,"object":null,"subResource":null,"operation":null}}"#;
        let review = Review::decode(body).unwrap();
        assert_eq!(review.api_version, V1BETA1);
        assert_eq!(review.request.kind, GroupVersionKind::default());
        assert!(review.request.object.is_null());
    }

    #[test]
    fn refuses_bodies_naming_what_is_wrong() {
        let cases: &[(&[u8], &str)] = &[
            (b"", "the body is empty"),
            (b"{\"kind\": }", "line 1 column 10"),
            (b"{\"kind\":\"AdmissionReview\"", "EOF"),
            (b"\xff\xfe", "not JSON"),
            (b"[]", "\"AdmissionReview\" of"),
            (b"7", "not an AdmissionReview"),
            (br#"{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{"uid":7}}"#, "request.uid"),
            (br#"{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v2","request":{}}"#, "admission.k8s.io/v2"),
            (br#"{"kind":"Pod","apiVersion":"v1"}"#, "\"Pod\" of \"v1\""),
            (br#"{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1"}"#, "no request"),
            (br#"{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":null}"#, "no request"),
            (br#"{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{}}"#, "no request.uid"),
        ];
        for (body, expected) in cases {
            let text = Review::decode(body).unwrap_err().to_string();
            assert!(text.contains(expected), "{text:?} should contain {expected:?}");
        }
    }

    #[test]
    fn writes_the_patch_as_base64_with_its_type() {
        let json: Value =
            serde_json::from_slice(&reply(Verdict::Allowed { patch: Some(b"[]".to_vec()) }).to_json()).unwrap();
        assert_eq!(
            json,
            serde_json::json!({"apiVersion": V1, "kind": KIND,
            "response": {"uid": "u-1", "allowed": true, "patch": "W10=", "patchType": "JSONPatch"}})
        );
    }

    #[test]
    fn writes_neither_patch_nor_patch_type_where_nothing_changes() {
        let json: Value = serde_json::from_slice(&reply(Verdict::Allowed { patch: None }).to_json()).unwrap();
        assert_eq!(json["response"], serde_json::json!({"uid": "u-1", "allowed": true}));
    }

    #[test]
    fn writes_a_denial_with_status() {
        let denied = Reply::denied(V1BETA1, "u-2", 422, "Invalid", "no".to_owned());
        let json: Value = serde_json::from_slice(&denied.to_json()).unwrap();
        assert_eq!(json["apiVersion"], V1BETA1);
        assert_eq!(
            json["response"],
            serde_json::json!({"uid": "u-2", "allowed": false,
                "status": {"status": "Failure", "message": "no", "reason": "Invalid", "code": 422}})
        );
    }

    #[test]
    fn keeps_warnings_to_one_bounded_line_each() {
        let long = "ü".repeat(300);
        let kept = printable_warnings(&["a\nb".to_owned(), long]);
        assert_eq!(kept[0], "a b");
        assert!(kept[1].len() <= WARNING_BYTES, "{} bytes", kept[1].len());
        assert!(kept[1].ends_with("..."));
    }

    #[test]
    fn says_how_many_warnings_are_left_out() {
        let many = vec!["w".repeat(200); 30];
        let kept = printable_warnings(&many);
        assert_eq!(kept.len(), 21);
        assert_eq!(kept[20], "10 more warnings are left out");
    }

    proptest::proptest! {
        #[test]
        fn decoding_never_panics(body in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let _ = Review::decode(&body);
        }
    }
}
