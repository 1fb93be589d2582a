//! Kubernetes manifests: streams of YAML documents, and the pods in them.

pub(crate) mod namespaces;
pub(crate) mod pods;
pub(crate) mod proxy_configs;
pub(crate) mod rewrite;
pub(crate) mod stream;
pub(crate) mod text_record;
