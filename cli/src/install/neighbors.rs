//! Istio's own injector and CNI plugin, which do the same work as Weir.

use serde_json::Value;
use weir_injector::selection::REVISION_LABEL;

use crate::cluster::Cluster;
use crate::console::print_line;
use crate::failure::Failure;
use crate::objects::{CONFIGURATION, DAEMON_SET};
use crate::revisions::DEFAULT;

/// Label of istio-cni's DaemonSet.
const ISTIO_CNI: &str = "k8s-app=istio-cni-node";
/// Path at which injectors serve.
const INJECT_PATH: &str = "/inject";
/// Label key of a selector that matches nothing, in a deactivated configuration of Istio.
const ISTIO_DEACTIVATED: &str = "istio.io/deactivated";

/// Warns of an active Istio injector of the same revision, and of istio-cni.
///
/// # Errors
/// The output cannot be written. What may not be listed is left out.
pub(super) async fn warn(cluster: &Cluster, revision: &str) -> Result<(), Failure> {
    let configurations = cluster.objects(CONFIGURATION, "", "").await.unwrap_or_default();
    for configuration in configurations.iter().filter(|configuration| is_istio_injector(configuration, revision)) {
        let name = configuration["metadata"]["name"].as_str().unwrap_or_default();
        print_line(&format!(
            "warning: Istio's own injector is active for revision {revision} (mutatingwebhookconfiguration {name}): both would inject the \
             same pods; turn it off (manifests/README.md, \"Migrate from Istio's injector and istio-cni\"), or install Weir beside it \
             with --revision NAME"
        ))?;
    }
    for plugin in cluster.objects(DAEMON_SET, "", ISTIO_CNI).await.unwrap_or_default() {
        let text = |key: &str| plugin["metadata"][key].as_str().unwrap_or_default().to_owned();
        print_line(&format!(
            "warning: istio-cni is installed (daemonset {}/{}): both plugins would capture the same pods; remove it when Weir's agent runs \
             (manifests/README.md, \"Migrate from Istio's injector and istio-cni\"), unless it serves ambient mode",
            text("namespace"),
            text("name")
        ))?;
    }
    Ok(())
}

/// Returns whether a configuration sends pods of a revision to istiod.
fn is_istio_injector(configuration: &Value, revision: &str) -> bool {
    let labels = &configuration["metadata"]["labels"];
    let of = labels[REVISION_LABEL].as_str().unwrap_or(DEFAULT);
    let tag = labels["istio.io/tag"].as_str();
    let entries = configuration["webhooks"].as_array().map_or(&[][..], Vec::as_slice);
    let calls_istiod = |entry: &Value| {
        let service = &entry["clientConfig"]["service"];
        service["name"].as_str().is_some_and(|name| name.starts_with("istiod"))
            && service["path"].as_str().is_some_and(|path| path.starts_with(INJECT_PATH))
            && !entry["namespaceSelector"].to_string().contains(ISTIO_DEACTIVATED)
    };
    (of == revision || tag == Some(revision)) && entries.iter().any(calls_istiod)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn active_injector_of_the_same_revision_is_found() {
        let configuration = |revision: &str, key: &str| {
            json!({
                "metadata": {"name": "istio-sidecar-injector", "labels": {"istio.io/rev": revision}},
                "webhooks": [{
                    "clientConfig": {"service": {"name": "istiod", "path": "/inject"}},
                    "namespaceSelector": {"matchExpressions": [{"key": key, "operator": "Exists"}]},
                }],
            })
        };
        assert!(is_istio_injector(&configuration("default", "istio-injection"), "default"));
        assert!(!is_istio_injector(&configuration("default", "istio.io/deactivated"), "default"));
        assert!(!is_istio_injector(&configuration("1-28", "istio-injection"), "default"));
    }
}
