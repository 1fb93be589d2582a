//! The webhook and the node agent in a cluster: an API server, clients that create pods, and everything that can fail on the way.
//!
//! ```text
//! api_server.rs ─ an API server: the fake one, or a real one where KUBEBUILDER_ASSETS has its binaries
//! kubectl.rs ──── kubectl with a kubeconfig
//! replica.rs ──── one process of the webhook, started as a kubelet starts the pod of its Deployment
//! mesh.rs ─────── the manifests applied, replicas running, endpoints updated
//! workload.rs ─── what controllers do: pods of Deployments
//!
//! server.rs ───── the fake API server behaves like the real one: webhooks
//! clients.rs ──── the same: field ownership, roles, kubectl
//! flows.rs ────── manifests, namespaces, samples, and what the client is told
//! load.rs ─────── creates without a pause, every response checked
//! chaos.rs ────── failures under load
//! trust.rs ────── certificates and the CA bundle under load
//! check.rs ────── `weir check` while the way to the webhook is blocked
//! policies.rs ─── the admission policies of the manifests
//! agent.rs ────── the node agent with its own rights
//! ```

mod agent;
mod api_server;
mod chaos;
mod check;
mod clients;
mod flows;
mod kubectl;
mod load;
mod mesh;
mod policies;
mod replica;
mod server;
mod trust;
mod workload;
