//! A page of a list of pods, as the agent reads it: an error, or facts that hold nothing the page did not.
#![no_main]

use kube::core::ObjectList;
use weir_agent::pods::{PodFacts, PodObject};
use weir_fuzz::bounded_target;

bounded_target!(|bytes: &[u8]| {
    let Ok(page) = serde_json::from_slice::<ObjectList<PodObject>>(bytes) else { return };
    for pod in page.items {
        let facts = PodFacts::from_pod(pod, &["kube-system".to_owned()]);
        let kept =
            facts.name.len() + facts.namespace.len() + facts.container_ids.iter().map(String::len).sum::<usize>();
        assert!(kept <= bytes.len(), "{facts:?}");
        assert!(facts.has_uid(&facts.uid));
    }
});
