//! Pods that two injectors select, or would select.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Map;
use weir_injector::selection::{InjectorRevision, Labels, REVISION_LABEL, namespace_labels};

use super::selection::{describe_pods, for_each_combination};
use super::view::ClusterView;
use crate::fault;
use crate::finding::{FindingObject, Findings, first_names};
use crate::snapshot::object::StringMap;

pub(super) fn analyze(view: &ClusterView<'_>, findings: &mut Findings) {
    let revisions = known_revisions(view);
    let revisions: Vec<Option<&str>> = std::iter::once(None).chain(revisions.iter().copied().map(Some)).collect();
    let planned = view.snapshot.pre_install_revision.as_ref().map(|revision| {
        InjectorRevision { revision: revision.clone(), ..InjectorRevision::default() }.webhook_entries()
    });
    // Pairs of injectors, with the first pods that both select.
    let mut pairs: BTreeMap<(String, String), String> = BTreeMap::new();
    for_each_combination(&revisions, |namespace, pod| {
        let any_namespace = namespace_labels("any", namespace.clone());
        let labels = Labels { namespace: &any_namespace, pod };
        let mut injectors = view.injectors_for(labels);
        if planned.is_some() {
            // The installation replaces what there is of Weir.
            injectors.retain(|injector| injector.revision().is_none());
        }
        let mut names: Vec<&str> = injectors.iter().map(|injector| injector.name()).collect();
        if planned.iter().flatten().any(|entry| entry.matches(labels) == Ok(true)) {
            names.push("the one to be installed");
        }
        for (at, first) in names.iter().enumerate() {
            for second in &names[at + 1..] {
                let pair = ((*first).to_owned(), (*second).to_owned());
                pairs.entry(pair).or_insert_with(|| describe_pods(namespace, pod));
            }
        }
    });
    for ((first, second), pods) in pairs {
        let text = format!("it and {second} both select {pods}{}", affected_namespaces(view, &first, &second));
        findings.add(
            &fault::DOUBLE_INJECTION,
            FindingObject::cluster_scoped("MutatingWebhookConfiguration", &first),
            text,
        );
    }
}

/// Returns the existing namespaces whose unlabelled pods both injectors select.
fn affected_namespaces(view: &ClusterView<'_>, first: &str, second: &str) -> String {
    let is_affected = |namespace: &StringMap| {
        let injectors = view.injectors_for(Labels { namespace, pod: &Map::new() });
        [first, second].iter().all(|name| injectors.iter().any(|injector| injector.name() == *name))
    };
    let affected = view.namespaces.iter().filter(|(_, labels)| is_affected(labels));
    let names: Vec<&str> = affected.map(|(name, _)| *name).collect();
    if names.is_empty() { String::new() } else { format!("; existing namespaces: {}", first_names(&names)) }
}

/// Returns every revision and tag that a selector or the installation names.
fn known_revisions<'a>(view: &ClusterView<'a>) -> BTreeSet<&'a str> {
    let entries = view.injectors.iter().flat_map(|injector| &injector.configuration.webhooks);
    let selectors = entries.flat_map(|entry| [&entry.namespace_selector, &entry.object_selector]);
    let named = selectors.flat_map(|selector| selector.values_of(REVISION_LABEL));
    named.chain(view.snapshot.pre_install_revision.as_deref()).collect()
}
