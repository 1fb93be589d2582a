//! The inverse of an injection: the pod as its user wrote it.
//!
//! ```text
//! inject:    original ─▶ injected        guess(injected) ──difference to the original──▶ annotation weir.dev/original
//! uninject:  injected ─▶ guess(injected) ──that difference──▶ original, to the letter
//! ```
//!
//! Most of what an injection does can be told from its result (`uninject/guess.rs`): the record `sidecar.istio.io/status` names
//! what was added, the proxy knows the application's probes and metrics, `proxy.istio.io/overrides` what the user wrote about the
//! proxy. Only what cannot be told is written down, so the record of a typical pod is `{"v":1}`. A pod that Istio's own injector
//! made has no such record; it is taken back as far as it tells, and what it does not tell is said.
//!
//! All is addressed by names, so that what happened to the pod after its injection stays.

mod delta;
pub(super) mod foreign;
mod guess;

use serde_json::{Map, Value, json};

use super::annotations::{ORIGINAL, STATUS, Texts};
use super::finish::status::InjectionStatus;
use super::overrides::Stored;
use delta::Delta;
use guess::guess;

/// Longest record that is written, in bytes. Annotations of an object have 256 KiB together; a record of this length says
/// that a template of the user rewrites much of the application's containers.
pub const RECORD_MAX_BYTES: usize = 32 * 1024;

/// Version of the record, and of the guess that it is based on.
const VERSION: u64 = 1;

/// A pod without what was injected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uninjected {
    /// The pod as it was.
    pub pod: Value,
    /// What could not be known, one clause each; empty where the injection recorded all of it.
    pub unknown: Vec<String>,
}

/// Why an injection cannot be taken back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UninjectError {
    /// The record of what was added cannot be read.
    #[error("invalid value '{}' for annotation '{STATUS}': it is no JSON object, so what was injected is not known", cut(.0))]
    Status(String),
    /// The stored containers cannot be read.
    #[error("{0}")]
    Overrides(String),
    /// The record of what cannot be told cannot be read.
    #[error("invalid value '{}' for annotation '{ORIGINAL}': {reason}", cut(.text))]
    Record {
        /// The annotation.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
}

fn cut(text: &str) -> String {
    text.chars().take(80).collect()
}

/// What an injection left in a pod.
pub(super) struct Injection {
    status: InjectionStatus,
    stored: Stored,
}

impl Injection {
    /// `None` where the pod was never injected.
    pub(super) fn of(pod: &Value) -> Result<Option<Self>, UninjectError> {
        let annotations = Texts::of(pod, "annotations");
        let Some(status) = annotations.get(STATUS) else { return Ok(None) };
        let status = InjectionStatus::parse(status).ok_or_else(|| UninjectError::Status(status.to_owned()))?;
        let stored = Stored::read(annotations).map_err(UninjectError::Overrides)?;
        Ok(Some(Self { status, stored }))
    }
}

/// The pod without what was injected; `None` where nothing was.
///
/// # Errors
/// An injection took place, but its records cannot be read.
pub fn uninject(pod: &Value) -> Result<Option<Uninjected>, UninjectError> {
    let Some(injection) = Injection::of(pod)? else { return Ok(None) };
    let record = Texts::of(pod, "annotations").get(ORIGINAL).map(read_record).transpose()?;
    let (mut pod, mut unknown) = guess(pod, &injection);
    if let Some(record) = record {
        unknown = match record.get("partial") {
            Some(_) => vec!["what was rewritten beyond the size of the record".to_owned()],
            None => Vec::new(),
        };
        delta::apply(&record, &mut pod);
    }
    Ok(Some(Uninjected { pod, unknown }))
}

fn read_record(text: &str) -> Result<Delta, UninjectError> {
    let refused = |reason: String| UninjectError::Record { text: text.to_owned(), reason };
    let record: Map<String, Value> = serde_json::from_str(text).map_err(|error| refused(error.to_string()))?;
    match record.get("v").and_then(Value::as_u64) {
        Some(VERSION) => Ok(record),
        _ => Err(refused(format!("this version reads records of version {VERSION}"))),
    }
}

/// The record that leads from an injected pod (with what `injection` left in it) back to the original one. `variables` are
/// further names for the reader of a second injection ([`foreign`]).
///
/// A record that would be too long leaves the difference out and says so.
pub(super) fn record(
    injected: &Value,
    injection: Option<&Injection>,
    original: &Value,
    variables: &[String],
) -> String {
    let mut record = Map::new();
    record.insert("v".to_owned(), VERSION.into());
    if !variables.is_empty() {
        record.insert(foreign::VARIABLES.to_owned(), json!(variables));
    }
    if let Some(injection) = injection {
        let (guessed, _) = guess(injected, injection);
        record.append(&mut delta::between(&guessed, original));
    }
    let text = Value::Object(record).to_string();
    if text.len() > RECORD_MAX_BYTES { json!({"v": VERSION, "partial": true}).to_string() } else { text }
}
