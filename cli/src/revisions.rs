//! Webhook configurations of revisions and tags in a cluster, and which revision is the default.
//!
//! The revision that the tag `default` points to is the default injector. The revision that is called `default`, which needs no tag, is
//! deactivated meanwhile.

use serde_json::{Map, Value, json};
use weir_injector::selection::configurations::{OWNER_REVISION_LABEL, OWNER_TAG_LABEL, with_deactivated};

use crate::chart::Release;
use crate::cluster::Cluster;
use crate::console::print_line;
use crate::failure::Failure;
use crate::objects::{ApplyOptions, CONFIGURATION, ObjectRef};

/// The default tag, and the name of the revision that needs none.
pub(crate) const DEFAULT: &str = "default";

/// Lists all webhook configurations of Weir.
///
/// # Errors
/// The cluster rejects the request.
pub(crate) async fn configurations(cluster: &Cluster) -> Result<Vec<Value>, Failure> {
    cluster.objects(CONFIGURATION, "", OWNER_REVISION_LABEL).await
}

/// Returns the value of a label.
pub(crate) fn label<'a>(object: &'a Value, name: &str) -> Option<&'a str> {
    object["metadata"]["labels"][name].as_str()
}

/// Finds the configuration of a revision itself.
pub(crate) fn of_revision<'a>(configurations: &'a [Value], revision: &str) -> Option<&'a Value> {
    configurations.iter().find(|object| {
        label(object, OWNER_TAG_LABEL).is_none() && label(object, OWNER_REVISION_LABEL) == Some(revision)
    })
}

/// Finds the configuration of a tag.
pub(crate) fn of_tag<'a>(configurations: &'a [Value], tag: &str) -> Option<&'a Value> {
    configurations.iter().find(|object| label(object, OWNER_TAG_LABEL) == Some(tag))
}

/// Returns the revision that the tag `default` points to, unless that is the revision of this name.
fn other_default(configurations: &[Value]) -> Option<&str> {
    let revision = label(of_tag(configurations, DEFAULT)?, OWNER_REVISION_LABEL)?;
    (revision != DEFAULT).then_some(revision)
}

/// Deactivates the revision of a release if another revision has become the default.
///
/// # Errors
/// The cluster rejects the request.
pub(crate) async fn preserve_default(cluster: &Cluster, release: Release) -> Result<Release, Failure> {
    if release.revision() != DEFAULT {
        return Ok(release);
    }
    let found = configurations(cluster).await?;
    let Some(revision) = other_default(&found) else { return Ok(release) };
    print_line(&format!("revision {revision} is the default (tag default); this revision is installed but inactive"))?;
    Ok(release.with_value("/webhook/deactivated", true))
}

/// Deactivates the revision `default` if the tag `default` points to another one, and activates it if not.
///
/// # Errors
/// The cluster rejects a request.
pub(crate) async fn reconcile_default(cluster: &Cluster) -> Result<(), Failure> {
    let found = configurations(cluster).await?;
    let deactivated = other_default(&found).is_some();
    let changed = of_revision(&found, DEFAULT).and_then(|own| with_deactivated(own, deactivated));
    let Some(changed) = changed else { return Ok(()) };
    let what = ObjectRef::new(CONFIGURATION, "", changed["metadata"]["name"].as_str().unwrap_or_default());
    let options = ApplyOptions { dry_run: false, force: true };
    let result = cluster.apply(&what, &own_fields(&changed), options).await?;
    let state =
        if deactivated { "deactivated: another revision is the default" } else { "active again as the default" };
    print_line(&format!("{what} {result}, {state}"))
}

/// Returns the fields of a configuration that weir applies: without those that the API server writes, and without caBundle.
fn own_fields(configuration: &Value) -> Value {
    let metadata = &configuration["metadata"];
    let kept = ["name", "labels", "annotations"]
        .into_iter()
        .filter_map(|key| Some((key.to_owned(), metadata.get(key)?.clone())));
    let mut fields = json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": kept.collect::<Map<_, _>>(),
        "webhooks": configuration["webhooks"],
    });
    for entry in fields["webhooks"].as_array_mut().into_iter().flatten() {
        if let Some(client) = entry["clientConfig"].as_object_mut() {
            client.remove("caBundle");
        }
    }
    if let Some(annotations) = fields["metadata"]["annotations"].as_object_mut() {
        annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_fields_leave_out_what_others_write() {
        let configuration = json!({
            "metadata": {"name": "n", "uid": "u", "resourceVersion": "1", "managedFields": [], "labels": {"a": "b"},
                "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}", "c": "d"}},
            "webhooks": [{"name": "x", "clientConfig": {"caBundle": "Q0E=", "url": "https://h"}}],
        });
        let fields = own_fields(&configuration);
        assert_eq!(fields["metadata"], json!({"name": "n", "labels": {"a": "b"}, "annotations": {"c": "d"}}));
        assert_eq!(fields["webhooks"][0]["clientConfig"], json!({"url": "https://h"}));
    }
}
