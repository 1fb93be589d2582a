//! From the annotations of a pod, and what its spec says about the proxy, to a [`CaptureConfig`]: all errors at once.
//!
//! [`SETTINGS`] is the one list of what is read, with defaults and meaning. The annotation `weir.dev/capture`, which
//! carries a finished configuration from the webhook to the plugin, is in [`capture_annotation`](CaptureConfig::to_capture_annotation).

use std::collections::BTreeMap;

use crate::CaptureConfig;
use crate::config::OwnerGroups;
use crate::names::{self, annotation, variable};

mod settings;

pub use crate::capture_annotation::CAPTURE_MAX_BYTES;
pub use settings::{SETTINGS, Setting};

/// A value that cannot be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid value '{value}' for {source_kind} '{name}': {reason}")]
pub struct AnnotationError {
    /// Where the value stands.
    pub source_kind: Source,
    /// Key of the annotation, or name of the variable.
    pub name: String,
    /// Its value, cut where it is long.
    pub value: String,
    /// What is wrong with it.
    pub reason: String,
}

/// Where a value stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// Annotation of the pod.
    Annotation,
    /// Environment variable of the proxy container.
    Variable,
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Annotation => "annotation",
            Self::Variable => "variable",
        })
    }
}

impl AnnotationError {
    /// An error about an annotation; a long value is cut.
    pub fn annotation(name: &str, value: &str, reason: impl Into<String>) -> Self {
        Self::new(Source::Annotation, name, value, reason)
    }

    /// An error about an environment variable; a long value is cut.
    pub fn variable(name: &str, value: &str, reason: impl Into<String>) -> Self {
        Self::new(Source::Variable, name, value, reason)
    }

    fn new(source_kind: Source, name: &str, value: &str, reason: impl Into<String>) -> Self {
        Self { source_kind, name: name.to_owned(), value: shorten(value), reason: reason.into() }
    }
}

/// What the pod spec says beyond annotations: read by those who see the spec (webhook, CLI, agent), defaults for others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProxySpec {
    /// `runAsUser` of the proxy container; `None` or 0 mean 1337.
    pub uid: Option<u32>,
    /// `runAsGroup` of the proxy container; `None` or 0 mean 1337.
    pub gid: Option<u32>,
    /// Literal environment of the proxy container: `ISTIO_META_DNS_CAPTURE`, `INVALID_DROP`, owner groups ...
    pub env: BTreeMap<String, String>,
}

impl CaptureConfig {
    /// Configuration from Istio's annotations, with the defaults of Istio's CNI plugin.
    ///
    /// # Errors
    /// Every annotation or variable that cannot be taken.
    pub fn from_annotations(
        annotations: &BTreeMap<String, String>,
        proxy: &ProxySpec,
    ) -> Result<Self, Vec<AnnotationError>> {
        let mut config = Self { proxy_uids: vec![id(proxy.uid)], proxy_gids: vec![id(proxy.gid)], ..Self::default() };
        let mut errors = Vec::new();
        for setting in SETTINGS {
            let given = match setting.source {
                Source::Annotation => annotations.get(setting.name),
                Source::Variable => proxy.env.get(setting.name),
            };
            let Some(value) = given else { continue };
            if setting.name == annotation::KUBEVIRT_INTERFACES
                && annotations.contains_key(annotation::REROUTE_VIRTUAL_INTERFACES)
            {
                continue; // the deprecated twin counts only alone
            }
            if let Err(faults) = (setting.read)(&mut config, value) {
                errors.push(AnnotationError::new(setting.source, setting.name, value, in_one_line(&faults)));
            }
        }
        errors.extend(combine_owner_groups(&mut config, &proxy.env));
        if errors.is_empty() { Ok(config) } else { Err(errors) }
    }
}

/// An id of the proxy: 0 counts as unset, as the proxy never runs as root on purpose.
fn id(given: Option<u32>) -> u32 {
    given.filter(|&id| id != 0).unwrap_or(names::PROXY_ID)
}

/// The exclusion list means something only next to `*`. Beside a list of groups it may repeat what holds anyway, but not contradict it.
fn combine_owner_groups(config: &mut CaptureConfig, env: &BTreeMap<String, String>) -> Option<AnnotationError> {
    let excluded = env.get(variable::OWNER_GROUPS_EXCLUDE)?;
    let groups = settings::groups(excluded).ok()?; // reported with its own setting
    match &mut config.owner_groups {
        OwnerGroups::AllBut(all_but) => {
            *all_but = groups;
            None
        }
        OwnerGroups::Only(only) => {
            let both = groups.iter().find(|group| only.contains(group))?;
            let reason = format!("'{both}' is also in {}", variable::OWNER_GROUPS);
            Some(AnnotationError::variable(variable::OWNER_GROUPS_EXCLUDE, excluded, reason))
        }
    }
}

/// How many bytes of a value an error text repeats.
const SHOWN_BYTES: usize = 64;
/// How many faults of one value an error text names.
const SHOWN_FAULTS: usize = 5;

/// The beginning of a value, for an error text.
pub(crate) fn shorten(value: &str) -> String {
    if value.len() <= SHOWN_BYTES {
        return value.to_owned();
    }
    format!("{}...", &value[..value.floor_char_boundary(SHOWN_BYTES)])
}

fn in_one_line(faults: &[String]) -> String {
    let shown = faults.iter().take(SHOWN_FAULTS).map(String::as_str).collect::<Vec<_>>().join(", ");
    match faults.len().saturating_sub(SHOWN_FAULTS) {
        0 => shown,
        more => format!("{shown}, and {more} more"),
    }
}
