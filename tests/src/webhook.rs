//! The project's admission webhook, and the pod after its patch.

use anyhow::{Context as _, ensure};
use base64::Engine as _;
use serde_json::Value;
use weir_lab::webhook::{Webhook as Process, admission_review};

/// Returns the annotations of a pod, as a kubelet passes them to the runtime.
pub fn annotations(pod: &Value) -> Vec<(String, String)> {
    let annotations = pod["metadata"]["annotations"].as_object().into_iter().flatten();
    annotations.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

/// A running webhook. Stops when dropped.
#[derive(Debug)]
pub struct Webhook {
    process: Process,
    _dir: tempfile::TempDir,
}

impl Webhook {
    /// Starts the webhook with its built-in settings.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn start() -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        Ok(Self { process: Process::start(&crate::bin("weir-webhook"), dir.path(), &[])?, _dir: dir })
    }

    /// Returns the pod as it is stored after admission.
    ///
    /// # Errors
    /// When it is denied, or an API server would not accept the response.
    pub fn admit(&self, pod: &Value) -> anyhow::Result<Value> {
        let review = admission_review(pod);
        let answer = self.process.review(&review)?;
        let response = &answer["response"];
        ensure!(response["uid"] == review["request"]["uid"], "response has another uid: {answer}");
        ensure!(response["allowed"] == true, "denied: {}", response["status"]["message"]);
        let mut pod = pod.clone();
        if let Some(patch) = response["patch"].as_str() {
            ensure!(response["patchType"] == "JSONPatch", "unexpected patchType: {answer}");
            let patch = base64::engine::general_purpose::STANDARD.decode(patch).context("patch")?;
            json_patch::patch(&mut pod, &serde_json::from_slice::<json_patch::Patch>(&patch)?)?;
        }
        Ok(pod)
    }
}
