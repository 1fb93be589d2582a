//! The watch that fills the cache.

use kube::Api;
use weir_runtime::{CancellationToken, ClientFactory, ObjectLimits, Reflector};

use super::cache::PodCache;
use super::object::{PodFacts, PodObject};

/// Keeps the cache of this node's pods current.
pub struct PodReflector {
    /// Creates clients.
    pub client_factory: ClientFactory,
    /// Name of the node.
    pub node: String,
    /// Namespaces whose pods are skipped.
    pub exclude_namespaces: Vec<String>,
    /// The cache to fill.
    pub pods: PodCache,
}

impl PodReflector {
    /// Lists and watches until shutdown.
    pub async fn run(self, shutdown: CancellationToken) {
        let Self { client_factory, node, exclude_namespaces, pods } = self;
        let reflector = Reflector {
            client_factory,
            kind: "pods of this node",
            api: Box::new(Api::all),
            field_selector: format!("spec.nodeName={node}"),
            label_selector: String::new(),
            // Little is kept of a pod, and one that is skipped would not be repaired.
            limits: ObjectLimits::ETCD,
            transform: Box::new(move |pod: PodObject| PodFacts::from_pod(pod, &exclude_namespaces)),
            cache: pods.cache,
        };
        reflector.run(shutdown).await;
    }
}
