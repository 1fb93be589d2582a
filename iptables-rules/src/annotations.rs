//! From the annotations of a pod to its [`CaptureConfig`], all errors at once; and the one annotation `weir.dev/capture`.

use std::collections::BTreeMap;

use crate::CaptureConfig;

/// An annotation whose value cannot be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid value '{value}' for annotation '{name}': {reason}")]
pub struct AnnotationError {
    /// Key of the annotation.
    pub name: String,
    /// Its value, cut where it is long.
    pub value: String,
    /// What is wrong with it.
    pub reason: String,
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
        let _ = (annotations, proxy);
        Ok(Self::default())
    }

    /// The value of `weir.dev/capture`: compact JSON with a version, defaults left out.
    pub fn to_capture_annotation(&self) -> String {
        String::new()
    }

    /// Reads `weir.dev/capture`, validating every field.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn from_capture_annotation(value: &str) -> Result<Self, Vec<AnnotationError>> {
        let _ = value;
        Ok(Self::default())
    }
}
