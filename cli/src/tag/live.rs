//! What the webhook configuration of a revision in a cluster says about how it was installed.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use weir_injector::inject::selection::Installation;
use weir_injector::inject::selection::objects::{NODE_NAMESPACE, REVISION_LABEL, Serving};

use crate::chart::{Release, defaults};
use crate::failure::Failure;

/// Whether namespaces without a label are selected.
pub(super) fn by_default(configuration: &Value) -> bool {
    let entries = configuration["webhooks"].as_array().into_iter().flatten();
    entries.filter_map(|entry| entry["name"].as_str()).any(|name| name.starts_with("auto."))
}

/// The values of the chart for a revision with one tag.
pub(super) fn values(revision: &str, tag: &str) -> Result<Value, Failure> {
    let mut values = defaults()?;
    values["revision"] = revision.into();
    values["revisionTags"] = json!([tag]);
    Ok(values)
}

/// Settings with which the chart makes a tag that is served as its revision is.
///
/// # Errors
/// The configuration is none of ours.
pub(super) fn release(own: &Value, tag: &str, by_default: bool) -> Result<Release, Failure> {
    let name = own["metadata"]["name"].as_str().unwrap_or_default();
    let refuse =
        |what: &str| Failure::refused(vec![format!("webhook configuration {name} {what}: weir did not make it")]);
    let revision = own["metadata"]["labels"][REVISION_LABEL].as_str().ok_or_else(|| refuse("has no revision"))?;
    let entry = own.pointer("/webhooks/0").ok_or_else(|| refuse("has no entries"))?;
    let client = &entry["clientConfig"];
    let mut values = values(revision, tag)?;
    let webhook = &mut values["webhook"];
    webhook["enableNamespacesByDefault"] = by_default.into();

    let conditions = entry["matchConditions"].as_array().map_or(&[][..], Vec::as_slice);
    webhook["matchConditions"] = (!conditions.is_empty()).into();
    webhook["skipHostNetwork"] = conditions.iter().any(|condition| condition["name"] == "no-host-network").into();
    if own.pointer("/metadata/annotations/cert-manager.io~1inject-ca-from").is_some() {
        webhook["certificates"] = "cert-manager".into();
    }
    let excluded = excluded(entry);
    let namespace = match (client["service"]["namespace"].as_str(), client["url"].as_str()) {
        (Some(namespace), _) => namespace.to_owned(),
        (None, Some(url)) => {
            webhook["url"] = url.into();
            webhook["caBundle"] = client["caBundle"].clone();
            // The webhook's own, in front of the agent's.
            let before = excluded.iter().position(|found| *found == NODE_NAMESPACE).and_then(|at| at.checked_sub(1));
            before.and_then(|at| excluded.get(at)).map_or_else(|| Serving::default().namespace, |&name| name.to_owned())
        }
        (None, None) => return Err(refuse("leads nowhere")),
    };
    // What every configuration excludes is there anyway.
    let plain = Installation::default().configurations(&Serving { namespace: namespace.clone(), ..Serving::default() });
    let known = plain.first().and_then(|plain| plain.pointer("/webhooks/0")).map(self::excluded).unwrap_or_default();
    webhook["excludedNamespaces"] =
        excluded.iter().filter(|name| !known.contains(name)).copied().collect::<Vec<_>>().into();
    Release::new(namespace, values)
}

/// The namespaces that an entry excludes by name.
fn excluded(entry: &Value) -> Vec<&str> {
    let terms = entry.pointer("/namespaceSelector/matchExpressions").and_then(Value::as_array).into_iter().flatten();
    let names = terms.filter(|term| term["key"] == "kubernetes.io/metadata.name" && term["operator"] == "NotIn");
    names.filter_map(|term| term["values"].as_array()).flatten().filter_map(Value::as_str).collect()
}

/// The CA bundles of configurations, in one; `None` where there is none.
pub(super) fn bundle(configurations: &[&Value]) -> Option<String> {
    let mut all: Vec<u8> = Vec::new();
    for configuration in configurations {
        let bundle = configuration.pointer("/webhooks/0/clientConfig/caBundle").and_then(Value::as_str);
        let Some(bundle) = bundle.and_then(|bundle| STANDARD.decode(bundle).ok()) else { continue };
        if bundle.is_empty() || all.windows(bundle.len()).any(|part| part == bundle) {
            continue;
        }
        if all.last().is_some_and(|last| *last != b'\n') {
            all.push(b'\n');
        }
        all.extend(bundle);
    }
    (!all.is_empty()).then(|| STANDARD.encode(all))
}

/// The fields of a configuration that are ours to apply: all but what the server writes, and the bundle.
pub(super) fn fields(configuration: &Value) -> Value {
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
    use crate::chart::SettingsArgs;

    #[test]
    fn a_tag_is_served_as_its_revision_is_however_that_was_installed() {
        for set in [
            "webhook.matchConditions=true",
            "webhook.matchConditions=false",
            "webhook.skipHostNetwork=true,webhook.excludedNamespaces={legacy,old}",
            "webhook.certificates=cert-manager",
            r"webhook.url=https://host/inject,webhook.caBundle=Q0E\=",
        ] {
            for (tag, by_default) in [("prod", false), ("default", true)] {
                let with_tag =
                    format!("revision=r1,revisionTags={{{tag}}},webhook.enableNamespacesByDefault={by_default},{set}");
                let mut args = SettingsArgs::of(&[&with_tag]);
                args.namespace = "elsewhere".to_owned();
                let of_tag = |release: Release| -> Vec<Value> {
                    let objects = release.objects().unwrap().into_iter();
                    objects.filter(|object| object["metadata"]["labels"]["weir.dev/tag"] == tag).collect()
                };
                let all = args.release().unwrap().objects().unwrap();
                let own = all.iter().find(|object| object["metadata"]["name"] == "weir-sidecar-injector-r1").unwrap();
                assert_eq!(of_tag(release(own, tag, by_default).unwrap()), of_tag(args.release().unwrap()), "{set}");
            }
        }
    }

    #[test]
    fn a_bundle_of_two_has_both_and_one_that_both_have_once() {
        let configuration = |pem: &str| json!({"webhooks": [{"clientConfig": {"caBundle": STANDARD.encode(pem)}}]});
        let (old, new, none) =
            (configuration("OLD"), configuration("NEW\n"), json!({"webhooks": [{"clientConfig": {}}]}));
        let decoded =
            |from: &[&Value]| bundle(from).map(|text| String::from_utf8(STANDARD.decode(text).unwrap()).unwrap());
        assert_eq!(decoded(&[&old, &new]).unwrap(), "OLD\nNEW\n");
        assert_eq!(decoded(&[&new, &new, &none]).unwrap(), "NEW\n");
        assert_eq!(decoded(&[&none]), None);
    }

    #[test]
    fn only_what_is_ours_is_applied_to_an_object_that_is_there() {
        let live = json!({
            "metadata": {"name": "n", "uid": "u", "resourceVersion": "1", "managedFields": [], "labels": {"a": "b"},
                "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}", "c": "d"}},
            "webhooks": [{"name": "x", "clientConfig": {"caBundle": "Q0E=", "url": "https://h"}}],
        });
        let fields = fields(&live);
        assert_eq!(fields["metadata"], json!({"name": "n", "labels": {"a": "b"}, "annotations": {"c": "d"}}));
        assert_eq!(fields["webhooks"][0]["clientConfig"], json!({"url": "https://h"}));
    }
}
