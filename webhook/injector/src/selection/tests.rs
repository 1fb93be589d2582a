use super::*;

const VALUES: [&[Option<&str>]; 4] = [
    &[None, Some("enabled"), Some("disabled"), Some("")],
    &[None, Some("default"), Some("r1"), Some("canary")],
    &[None, Some("true"), Some("false"), Some("yes"), Some("")],
    &[None, Some("default"), Some("r1"), Some("canary")],
];

/// Calls `visit` for all combinations of the four labels, in system namespaces and others.
pub(super) fn combinations(mut visit: impl FnMut(&str, Labels<'_>)) {
    for name in ["shop", "kube-system", "weir-system", "weir-node"] {
        for injection in VALUES[0] {
            for namespace_revision in VALUES[1] {
                for inject in VALUES[2] {
                    for revision in VALUES[3] {
                        let map = |pairs: [(&str, Option<&str>); 2]| -> Map<String, Value> {
                            let set = pairs
                                .into_iter()
                                .filter_map(|(key, value)| Some((key.to_owned(), Value::from(value?))));
                            set.collect()
                        };
                        let namespace = map([(INJECTION_LABEL, *injection), (REVISION_LABEL, *namespace_revision)]);
                        let pod = map([(INJECT_LABEL, *inject), (REVISION_LABEL, *revision)]);
                        let namespace = namespace_labels(name, namespace);
                        visit(name, Labels { namespace: &namespace, pod: &pod });
                    }
                }
            }
        }
    }
}

pub(super) fn revisions() -> Vec<InjectorRevision> {
    let mut all = Vec::new();
    for revision in ["", "r1"] {
        for tags in [&[][..], &["canary"], &["canary", "default"]] {
            for enable_namespaces_by_default in [false, true] {
                for deactivated in [false, true] {
                    let tags = tags.iter().map(|tag| (*tag).to_owned()).collect();
                    all.push(InjectorRevision {
                        revision: revision.to_owned(),
                        tags,
                        enable_namespaces_by_default,
                        deactivated,
                    });
                }
            }
        }
    }
    all
}

#[test]
fn entries_match_exactly_the_selected_labels() {
    let mut compared = 0;
    for revision in revisions() {
        let entries = revision.webhook_entries();
        combinations(|name, labels| {
            let matching: Vec<&str> = entries
                .iter()
                .filter(|entry| entry.matches(labels).unwrap())
                .map(|entry| entry.name.as_str())
                .collect();
            let selected = revision.select(labels, name) == Selection::Selected;
            assert_eq!(!matching.is_empty(), selected, "{revision:?} {name} {labels:?}: {matching:?}");
            assert!(matching.len() <= 1, "selected twice: {matching:?}");
            compared += 1;
        });
    }
    assert_eq!(compared, 24 * 4 * 4 * 4 * 5 * 4);
}

#[test]
fn an_unselected_pod_gets_reason_and_remedy() {
    let namespace = namespace_labels("shop", Map::from_iter([(REVISION_LABEL.to_owned(), "old".into())]));
    let revision =
        InjectorRevision { revision: "r1".to_owned(), tags: vec!["stable".to_owned()], ..InjectorRevision::default() };
    let selection = revision.select(Labels { namespace: &namespace, pod: &Map::new() }, "shop");
    let Selection::NotSelected { reason, remedy } = selection else { panic!("selected") };
    assert_eq!(
        reason,
        "label istio.io/rev=old of the namespace requests another injector; this one is 'r1' or 'stable'"
    );
    assert_eq!(remedy, "set label istio.io/rev of the namespace to 'r1' or 'stable'");
}
