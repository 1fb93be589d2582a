//! `weir explain --pod`: what the node's agent knows about the rules of one pod, and what to do.

use std::fmt::Write as _;

use crate::agent::{Listing, Pod};

/// What a state means, and what helps.
fn meaning(state: &str) -> [&'static str; 2] {
    match state {
        "ok" => ["its rules are in place", "nothing is to be done"],
        "pending" => {
            ["it has no address yet: its sandbox is being made, and the plugin is at work", "ask again in a moment"]
        }
        "missing" => [
            "it runs without its rules: its traffic bypasses the mesh",
            "let the agent mend it (components/repair of the manifests), or delete the pod; its controller makes a new one",
        ],
        "drifted" => [
            "its rules are not those that it should have",
            "let the agent mend them (components/repair of the manifests); `weir explain --netns` on the node shows the difference",
        ],
        "foreign" => {
            ["another installer's rules are in it; they are left alone", "nothing is to be done where that is meant"]
        }
        "unreachable" => [
            "its network namespace was not found, or could not be looked at",
            "see the agent's log; the agent needs the node's /proc, SYS_ADMIN and NET_ADMIN for it",
        ],
        "refused" => [
            "it asks for what cannot be taken, so the plugin holds it back",
            "correct the annotations that are named, and create the pod again",
        ],
        _ => ["this version of weir does not know that state", "use the version of the agent"],
    }
}

/// The pod `NAMESPACE/NAME`, in words, and whether all is well with it.
///
/// # Errors
/// The agent does not list it; the text says what that may mean.
pub(crate) fn explain(listing: &Listing, wanted: &str) -> Result<(String, bool), String> {
    let is_it =
        |pod: &&Pod| wanted.strip_prefix(&pod.namespace).and_then(|rest| rest.strip_prefix('/')) == Some(&pod.name);
    let Some(pod) = listing.pods.iter().find(is_it) else {
        return Err(match (&listing.trouble, listing.synced) {
            (Some(trouble), _) => format!("pod {wanted}: the agent does not know its pods: {trouble}"),
            (None, false) => format!("pod {wanted}: the agent does not know its pods yet"),
            (None, true) => format!(
                "pod {wanted} is no pod of the mesh on node {}; `weir explain inject` says why a pod gets no sidecar",
                listing.node
            ),
        });
    };
    let [means, helps] = meaning(&pod.state);
    let mut text = format!("pod {wanted} on node {}: {}\n  {means}\n", listing.node, pod.state);
    // Writing to a string does not fail.
    for line in &pod.detail {
        let _ = writeln!(text, "    {line}");
    }
    if let Some(found_by) = &pod.found_by {
        let _ = writeln!(text, "  its namespace was found by: {found_by}");
    }
    if pod.repairs > 0 {
        let _ = writeln!(text, "  the agent has mended its rules: {} times", pod.repairs);
    }
    let _ = writeln!(text, "=> {helps}");
    Ok((text, !pod.is_bad()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(text: &str) -> Listing {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn says_what_is_wrong_with_a_pod_and_what_to_do() {
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
        assert!(explain(&known, "shop/other").unwrap_err().contains("no pod of the mesh on node n1"));
    }

    #[test]
    fn tells_a_pod_that_is_not_there_from_an_agent_that_knows_nothing() {
        let unknown = listing(r#"{"node":"n1","synced":false,"trouble":"401 Unauthorized","pods":[]}"#);
        assert!(explain(&unknown, "shop/db").unwrap_err().contains("401 Unauthorized"));
        let early = listing(r#"{"node":"n1","synced":false,"pods":[]}"#);
        assert!(explain(&early, "shop/db").unwrap_err().contains("yet"));
    }
}
