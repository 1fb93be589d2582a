//! The watch that fills the cache.

use kube::Api;
pub use weir_runtime::Connect;
use weir_runtime::Follower as Generic;

use super::{PodFacts, PodObject, Pods};
use crate::stop::Stop;

/// Keeps a cache up to date.
pub struct Follower {
    /// Makes clients.
    pub connect: Connect,
    /// Name of the node.
    pub node: String,
    /// Namespaces whose pods are left alone.
    pub exclude_namespaces: Vec<String>,
    /// The cache.
    pub pods: Pods,
}

impl Follower {
    /// Follows until told to stop.
    pub async fn run(self, stop: Stop) {
        let Self { connect, node, exclude_namespaces, pods } = self;
        let follower = Generic {
            connect,
            what: "the pods of the node",
            api: Box::new(Api::all),
            fields: format!("spec.nodeName={node}"),
            labels: String::new(),
            keep: Box::new(move |pod: PodObject| PodFacts::of(pod, &exclude_namespaces)),
            cache: pods.cache,
        };
        follower.run(stop).await;
    }
}
