//! Restores the pod as its user wrote it from an injected pod.
//!
//! ```text
//! inject:    reconstruct(injected) ──difference to the original pod──▶ annotation weir.dev/original
//! uninject:  reconstruct(injected) ──that difference applied──▶ exactly the original pod
//! ```
//!
//! Most of the original can be reconstructed: `sidecar.istio.io/status` lists what was added, variables of the proxy hold the
//! application's probes and metrics, and `proxy.istio.io/overrides` holds what the user declared for the proxy. The annotation
//! records only the rest, so that of a typical pod has no more than a version and a fingerprint. A pod of Istio's own injector has no
//! such annotation; what cannot be restored is reported.
//!
//! Everything is addressed by name, so changes of the pod after its injection are kept. The records prove nothing, because the
//! author of a pod can write them: `limit` bounds what they may change.

mod delta;
pub(crate) mod limit;
mod reconstruct;
mod record;
pub(crate) mod third_party;

use iptables_rules::text::truncate;
use serde_json::{Map, Value};

use crate::annotations::{ORIGINAL, STATUS, StringMap};
use crate::finish::status::InjectionStatus;
use crate::overrides::StoredOverrides;
use delta::Delta;
use reconstruct::reconstruct;
pub(crate) use record::build_original_record;

/// Limit on the annotation `weir.dev/original` in bytes; Kubernetes limits all annotations of an object to 256 KiB. Only custom
/// templates that rewrite much of the application exceed it.
pub const RECORD_MAX_BYTES: usize = 32 * 1024;

/// Version of the record, and of the reconstruction that it is based on.
const VERSION: u64 = 1;

/// A pod without its injection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uninjected {
    /// The restored pod.
    pub pod: Value,
    /// Parts that could not be restored, one clause each; empty if the injection recorded everything.
    pub unrecoverable: Vec<String>,
    /// Paths that the records changed, but that an injection with the built-in templates does not write: a custom template or the
    /// settings wrote them, or somebody forged the records. An injection restores them only if its own templates write them, see
    /// [`inject`](crate::inject()).
    pub unverified: Vec<String>,
}

/// Error returned when the records of an injection are invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UninjectError {
    /// Annotation `sidecar.istio.io/status` is invalid.
    #[error("invalid value '{}' for annotation '{STATUS}': is not a JSON object", truncate(.0))]
    Status(String),
    /// Annotation `proxy.istio.io/overrides` is invalid.
    #[error("{0}")]
    Overrides(String),
    /// Annotation `weir.dev/original` is invalid.
    #[error("invalid value '{}' for annotation '{ORIGINAL}': {reason}", truncate(.text))]
    Record {
        /// Value of the annotation.
        text: String,
        /// Description of the fault.
        reason: String,
    },
}

/// The records that an injection left in a pod.
pub(crate) struct InjectionRecord {
    status: InjectionStatus,
    stored: StoredOverrides,
}

impl InjectionRecord {
    /// Reads the records of a pod; `None` if it is not injected.
    pub(crate) fn of(pod: &Value) -> Result<Option<Self>, UninjectError> {
        let Some(empty) = Self::with_overrides(pod, StoredOverrides::default())? else { return Ok(None) };
        let stored = StoredOverrides::read(StringMap::of(pod, "annotations")).map_err(UninjectError::Overrides)?;
        Ok(Some(Self { stored, ..empty }))
    }

    /// Reads the status of a pod whose overrides are known; `None` if it is not injected.
    pub(crate) fn with_overrides(pod: &Value, stored: StoredOverrides) -> Result<Option<Self>, UninjectError> {
        let Some(status) = StringMap::of(pod, "annotations").get(STATUS) else { return Ok(None) };
        let status = InjectionStatus::parse(status).ok_or_else(|| UninjectError::Status(status.to_owned()))?;
        Ok(Some(Self { status, stored }))
    }
}

/// Returns the pod without its injection; `None` if it is not injected.
///
/// # Errors
/// The records of the injection are invalid.
pub fn uninject(pod: &Value) -> Result<Option<Uninjected>, UninjectError> {
    let Some(mut restored) = restore(pod)? else { return Ok(None) };
    restored.unverified = limit::limit(pod, restored.pod.clone(), limit::CurrentInjection::default()).refused;
    Ok(Some(restored))
}

/// As [`uninject`], without the list of what is unverified.
pub(crate) fn restore(pod: &Value) -> Result<Option<Uninjected>, UninjectError> {
    let Some(injection) = InjectionRecord::of(pod)? else { return Ok(None) };
    let original = StringMap::of(pod, "annotations").get(ORIGINAL).map(parse_original_record).transpose()?;
    let (mut pod, mut unrecoverable) = reconstruct(pod, &injection);
    if let Some(original) = original {
        unrecoverable = match original.get("partial") {
            Some(_) => vec![format!("changes beyond the size limit of annotation '{ORIGINAL}'")],
            None => Vec::new(),
        };
        delta::apply(&original, &mut pod);
    }
    Ok(Some(Uninjected { pod, unrecoverable, unverified: Vec::new() }))
}

fn parse_original_record(text: &str) -> Result<Delta, UninjectError> {
    let invalid = |reason: String| UninjectError::Record { text: text.to_owned(), reason };
    let record: Map<String, Value> = serde_json::from_str(text).map_err(|error| invalid(error.to_string()))?;
    match record.get("v").and_then(Value::as_u64) {
        Some(VERSION) => Ok(record),
        _ => Err(invalid(format!("only version {VERSION} is supported"))),
    }
}
