//! `weir explain --pod`: prints what the node's agent reports about the rules of a pod, and what to do.

use std::fmt::Write as _;

use weir_check::agent::{AgentPod, AgentPods};

/// Splits `NAMESPACE/NAME`, `pod/NAME` or `NAME` into the namespace, or the default one, and the name.
pub(crate) fn parse_name<'a>(pod: &'a str, default: &'a str) -> (&'a str, &'a str) {
    match pod.split_once('/') {
        Some(("pod" | "pods", name)) => (default, name),
        Some(both) => both,
        None => (default, pod),
    }
}

/// Finds the pod `NAMESPACE/NAME` in an agent's list.
///
/// # Errors
/// The agent does not list the pod; the message says why.
pub(crate) fn find<'a>(listing: &'a AgentPods, wanted: &str) -> Result<&'a AgentPod, String> {
    let is_it = |pod: &&AgentPod| {
        wanted.strip_prefix(&pod.namespace).and_then(|rest| rest.strip_prefix('/')) == Some(&pod.name)
    };
    listing.pods.iter().find(is_it).ok_or_else(|| match (&listing.last_error, listing.synced) {
        (Some(trouble), _) => format!("pod {wanted}: the agent's pod cache is not synced: {trouble}"),
        (None, false) => format!("pod {wanted}: the agent's pod cache is not synced yet"),
        (None, true) => format!(
            "pod {wanted} is not a meshed pod of node {}; `weir explain inject` explains why a pod is not injected",
            listing.node
        ),
    })
}

/// Returns the meaning of a state, and what to do.
fn describe_state(state: &str) -> [&'static str; 2] {
    match state {
        "ok" => ["its rules are in place", "no action needed"],
        "pending" => ["it has no address yet: its sandbox is being created", "try again in a moment"],
        "missing" => [
            "it runs without capture rules: its traffic bypasses the mesh",
            "let the agent repair it (components/repair of the manifests), or delete the pod; its controller creates a new one",
        ],
        "drifted" => [
            "its rules differ from those that it should have",
            "let the agent repair them (components/repair of the manifests); `weir explain --netns` on the node shows the difference",
        ],
        "foreign" => ["it has foreign rules, which the agent does not change", "no action needed if that is intended"],
        "unreachable" => [
            "its network namespace was not found, or cannot be inspected",
            "see the agent's log; the agent needs the node's /proc, SYS_ADMIN and NET_ADMIN",
        ],
        "refused" => [
            "its annotations are invalid, so the plugin rejects it",
            "fix the reported annotations, and recreate the pod",
        ],
        _ => ["this version of weir does not know that state", "use the same version as the agent"],
    }
}

/// Describes the pod `NAMESPACE/NAME`, and returns whether it is healthy.
///
/// # Errors
/// The agent does not list the pod; the message says why.
pub(crate) fn explain(listing: &AgentPods, wanted: &str) -> Result<(String, bool), String> {
    let pod = find(listing, wanted)?;
    let [meaning, action] = describe_state(&pod.state);
    let mut text = format!("pod {wanted} on node {}: {}\n  {meaning}\n", listing.node, pod.state);
    // Writing to a string does not fail.
    for line in &pod.detail {
        let _ = writeln!(text, "    {line}");
    }
    if let Some(found_by) = &pod.found_by {
        let _ = writeln!(text, "  network namespace found by: {found_by}");
    }
    if pod.repairs > 0 {
        let _ = writeln!(text, "  rules repaired by the agent: {} times", pod.repairs);
    }
    let _ = writeln!(text, "=> {action}");
    Ok((text, !pod.is_unhealthy()))
}

/// Describes the meshed pods that agents list, of one namespace or of all, and returns whether all are healthy.
pub(crate) fn explain_all<'a>(
    listings: impl IntoIterator<Item = &'a AgentPods>,
    namespace: Option<&str>,
) -> (String, bool) {
    let mut texts = Vec::new();
    let mut healthy = true;
    for listing in listings {
        let listed = listing.pods.iter().filter(|pod| namespace.is_none_or(|namespace| pod.namespace == namespace));
        for explained in listed.filter_map(|pod| explain(listing, &format!("{}/{}", pod.namespace, pod.name)).ok()) {
            texts.push(explained.0);
            healthy &= explained.1;
        }
        if !listing.synced {
            texts.push(format!("node {}: the agent's pod cache is not synced\n", listing.node));
            healthy = false;
        }
    }
    if texts.is_empty() {
        let place = namespace.map_or_else(|| "the cluster".to_owned(), |namespace| format!("namespace {namespace}"));
        texts.push(format!("no meshed pods in {place}\n"));
    }
    (texts.join("\n"), healthy)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(text: &str) -> AgentPods {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn state_of_a_pod_is_explained_with_what_to_do() {
        let known = listing(
            r#"{"node":"n1","synced":true,"ageSeconds":1,"repairs":false,"pods":[
                {"namespace":"shop","name":"web","uid":"1","state":"ok","foundBy":"plugin","repairs":2},
                {"namespace":"shop","name":"db","uid":"2","state":"drifted","detail":["rule 3 differs"],"repairs":0}]}"#,
        );
        let (text, fine) = explain(&known, "shop/db").unwrap();
        assert!(!fine);
        assert!(
            text.starts_with("pod shop/db on node n1: drifted\n") && text.contains("    rule 3 differs\n"),
            "{text}"
        );
        let (text, fine) = explain(&known, "shop/web").unwrap();
        assert!(fine && text.contains("found by: plugin") && text.contains("2 times"), "{text}");
        assert!(explain(&known, "shop/other").unwrap_err().contains("not a meshed pod of node n1"));
    }

    #[test]
    fn missing_pod_and_unsynced_agent_differ() {
        let unknown = listing(r#"{"node":"n1","synced":false,"trouble":"401 Unauthorized","pods":[]}"#);
        assert!(explain(&unknown, "shop/db").unwrap_err().contains("401 Unauthorized"));
        let early = listing(r#"{"node":"n1","synced":false,"pods":[]}"#);
        assert!(explain(&early, "shop/db").unwrap_err().contains("yet"));
    }
}
