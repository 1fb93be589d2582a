//! The real admission webhook, and what its answer makes of a pod.

use anyhow::{Context as _, ensure};
use base64::Engine as _;
use serde_json::Value;
use weir_lab::webhook::{Webhook as Process, review_of};

/// Annotations of a pod, as a kubelet passes them to the runtime.
pub fn annotations(pod: &Value) -> Vec<(String, String)> {
    let annotations = pod["metadata"]["annotations"].as_object().into_iter().flatten();
    annotations.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

/// A running webhook with a folder for its files.
#[derive(Debug)]
pub struct Webhook {
    process: Process,
    _dir: tempfile::TempDir,
}

impl Webhook {
    /// Starts the project's webhook with its built-in settings.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn start() -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        Ok(Self { process: Process::start(&crate::bin("weir-webhook"), dir.path(), &[])?, _dir: dir })
    }

    /// The pod as it is stored after admission.
    ///
    /// # Errors
    /// When it is denied, or the answer is not what an API server takes.
    pub fn admit(&self, pod: &Value) -> anyhow::Result<Value> {
        let review = review_of(pod);
        let answer = self.process.review(&review)?;
        let response = &answer["response"];
        ensure!(response["uid"] == review["request"]["uid"], "another uid in {answer}");
        ensure!(response["allowed"] == true, "denied: {}", response["status"]["message"]);
        let mut pod = pod.clone();
        if let Some(patch) = response["patch"].as_str() {
            ensure!(response["patchType"] == "JSONPatch", "patchType in {answer}");
            let patch = base64::engine::general_purpose::STANDARD.decode(patch).context("patch")?;
            json_patch::patch(&mut pod, &serde_json::from_slice::<json_patch::Patch>(&patch)?)?;
        }
        Ok(pod)
    }
}
