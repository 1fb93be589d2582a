//! Derives the objects of a tag from the installed webhook configuration of its revision.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use weir_injector::selection::InjectorRevision;
use weir_injector::selection::configurations::{AGENT_NAMESPACE, OWNER_REVISION_LABEL, WebhookOptions};

use crate::chart::{Release, defaults};
use crate::failure::Failure;

/// Returns whether a configuration selects namespaces without labels.
pub(super) fn enables_namespaces_by_default(configuration: &Value) -> bool {
    let entries = configuration["webhooks"].as_array().into_iter().flatten();
    entries.filter_map(|entry| entry["name"].as_str()).any(|name| name.starts_with("auto."))
}

/// Returns the chart's values for a revision with one tag.
pub(super) fn values(revision: &str, tag: &str) -> Result<Value, Failure> {
    let mut values = defaults()?;
    values["revision"] = revision.into();
    values["revisionTags"] = json!([tag]);
    Ok(values)
}

/// Returns a release whose tag has the same endpoint and options as the configuration of its revision.
///
/// # Errors
/// The configuration was not installed by weir.
pub(super) fn release_for_tag(own: &Value, tag: &str, by_default: bool) -> Result<Release, Failure> {
    let name = own["metadata"]["name"].as_str().unwrap_or_default();
    let not_ours = |why: &str| {
        Failure::findings(vec![format!("webhook configuration {name} {why}; it was not installed by weir")])
    };
    let revision =
        own["metadata"]["labels"][OWNER_REVISION_LABEL].as_str().ok_or_else(|| not_ours("has no revision"))?;
    let entry = own.pointer("/webhooks/0").ok_or_else(|| not_ours("has no webhooks"))?;
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
            // The webhook's own namespace is listed before the agent's.
            let before = excluded.iter().position(|found| *found == AGENT_NAMESPACE).and_then(|at| at.checked_sub(1));
            before
                .and_then(|at| excluded.get(at))
                .map_or_else(|| WebhookOptions::default().namespace, |&name| name.to_owned())
        }
        (None, None) => return Err(not_ours("has neither service nor URL")),
    };
    // Every configuration excludes these anyway.
    let plain = InjectorRevision::default()
        .webhook_configurations(&WebhookOptions { namespace: namespace.clone(), ..WebhookOptions::default() });
    let known = plain.first().and_then(|plain| plain.pointer("/webhooks/0")).map(self::excluded).unwrap_or_default();
    webhook["excludedNamespaces"] =
        excluded.iter().filter(|name| !known.contains(name)).copied().collect::<Vec<_>>().into();
    Release::new(namespace, values)
}

/// Returns the namespaces that an entry excludes by name.
fn excluded(entry: &Value) -> Vec<&str> {
    let terms = entry.pointer("/namespaceSelector/matchExpressions").and_then(Value::as_array).into_iter().flatten();
    let names = terms.filter(|term| term["key"] == "kubernetes.io/metadata.name" && term["operator"] == "NotIn");
    names.filter_map(|term| term["values"].as_array()).flatten().filter_map(Value::as_str).collect()
}

/// Joins the CA bundles of configurations; `None` without any.
pub(super) fn joined_ca_bundle(configurations: &[&Value]) -> Option<String> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chart::ChartArgs;

    #[test]
    fn tag_has_the_endpoint_and_options_of_its_revision() {
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
                let mut args = ChartArgs::of(&[&with_tag]);
                args.namespace = "elsewhere".to_owned();
                let of_tag = |release: Release| -> Vec<Value> {
                    let objects = release.objects().unwrap().into_iter();
                    objects.filter(|object| object["metadata"]["labels"]["weir.dev/tag"] == tag).collect()
                };
                let all = args.release().unwrap().objects().unwrap();
                let own = all.iter().find(|object| object["metadata"]["name"] == "weir-sidecar-injector-r1").unwrap();
                assert_eq!(
                    of_tag(release_for_tag(own, tag, by_default).unwrap()),
                    of_tag(args.release().unwrap()),
                    "{set}"
                );
            }
        }
    }

    #[test]
    fn joined_ca_bundle_has_each_certificate_once() {
        let configuration = |pem: &str| json!({"webhooks": [{"clientConfig": {"caBundle": STANDARD.encode(pem)}}]});
        let (old, new, none) =
            (configuration("OLD"), configuration("NEW\n"), json!({"webhooks": [{"clientConfig": {}}]}));
        let decoded = |from: &[&Value]| {
            joined_ca_bundle(from).map(|text| String::from_utf8(STANDARD.decode(text).unwrap()).unwrap())
        };
        assert_eq!(decoded(&[&old, &new]).unwrap(), "OLD\nNEW\n");
        assert_eq!(decoded(&[&new, &new, &none]).unwrap(), "NEW\n");
        assert_eq!(decoded(&[&none]), None);
    }
}
