//! Pods that two injectors take, or would take.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};
use weir_injector::inject::selection::{Installation, Labels, REVISION, namespace_labels};

use super::entries::{combinations, words};
use super::view::{CONFIGURATION, View};
use crate::check::fault;
use crate::check::finding::{Findings, Object};

pub(super) fn judge(view: &View<'_>, findings: &mut Findings) {
    let revisions = revisions(view);
    let revisions: Vec<Option<&str>> =
        std::iter::once(None).chain(revisions.iter().map(|name| Some(name.as_str()))).collect();
    // Pairs of objects, and the first pod that both take.
    let mut pairs: BTreeMap<(String, String), String> = BTreeMap::new();
    let coming = view
        .snapshot
        .before
        .as_ref()
        .map(|revision| Installation { revision: revision.clone(), ..Installation::default() }.entries());
    combinations(&revisions, |namespace, pod| {
        let ours = namespace_labels("any", namespace.clone());
        let labels = Labels { namespace: &ours, pod };
        let takers = view.sent_to(labels);
        let mut names: Vec<&str> = takers.iter().map(|injector| injector.name()).collect();
        if let Some(entries) = &coming {
            // What is there of ours is replaced by what comes.
            names =
                takers.iter().filter(|injector| injector.revision.is_none()).map(|injector| injector.name()).collect();
            if entries.iter().any(|entry| entry.matches(labels) == Ok(true)) {
                names.push("the one to be installed");
            }
        }
        for (at, first) in names.iter().enumerate() {
            for second in &names[at + 1..] {
                let pair = ((*first).to_owned(), (*second).to_owned());
                pairs.entry(pair).or_insert_with(|| words(namespace, pod));
            }
        }
    });
    for ((first, second), pods) in pairs {
        let text = format!("it and {second} both take {pods}{}", affected(view, &first, &second));
        findings.add(&fault::DOUBLE_INJECTION, Object::global(CONFIGURATION, &first), text);
    }
}

/// Namespaces that are there whose pods without labels both take.
fn affected(view: &View<'_>, first: &str, second: &str) -> String {
    let both = |namespace: &Map<String, Value>| {
        let takers = view.sent_to(Labels { namespace, pod: &Map::new() });
        [first, second].iter().all(|name| takers.iter().any(|injector| injector.name() == *name))
    };
    let names: Vec<&str> = view.namespaces.iter().filter(|(_, labels)| both(labels)).map(|(name, _)| *name).collect();
    match names.as_slice() {
        [] => String::new(),
        names => format!("; of the namespaces that are there: {}", super::workloads::some(names)),
    }
}

/// Every revision and tag that somebody names.
fn revisions(view: &View<'_>) -> BTreeSet<String> {
    fn in_selectors(value: &Value, found: &mut BTreeSet<String>) {
        let terms = value["matchExpressions"].as_array().into_iter().flatten();
        for term in terms.filter(|term| term["key"] == REVISION) {
            found.extend(term["values"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned));
        }
        found.extend(value["matchLabels"][REVISION].as_str().map(str::to_owned));
    }
    let mut found = BTreeSet::new();
    for injector in &view.injectors {
        for entry in injector.object["webhooks"].as_array().into_iter().flatten() {
            in_selectors(&entry["namespaceSelector"], &mut found);
            in_selectors(&entry["objectSelector"], &mut found);
        }
    }
    found.extend(view.snapshot.before.clone());
    found
}
