//! The webhook in a cluster: an API server that asks it, the clients that create pods, and everything that can go wrong on the way.
//!
//! ```text
//! cluster.rs ── an API server of either kind: the tests' own, or a real one where KUBEBUILDER_ASSETS has its binaries
//! kubectl.rs ── the tool, as a person runs it
//!
//! replica.rs ── one process of the webhook, started as a kubelet starts the pod of its Deployment
//! mesh.rs ───── the manifests applied, replicas running, endpoints kept
//! workload.rs ─ what controllers do: Deployments to pods
//!
//! server.rs ─── what the tests' own server does, held to what the real one does
//! clients.rs ── owners of fields, roles, kubectl, likewise
//! flows.rs ──── whole ways: manifests, namespaces, samples, what the client hears
//! load.rs ───── creates without a pause, every answer looked at
//! chaos.rs ──── what can go wrong, under load
//! trust.rs ──── certificates and the CA bundle, under load
//! check.rs ──── what `weir check` says where the way to the webhook is blocked, hop by hop
//! agent.rs ──── the node agent with its own rights
//! ```

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests may panic like tests")]

mod agent;
mod chaos;
mod check;
mod clients;
mod cluster;
mod flows;
mod kubectl;
mod load;
mod mesh;
mod replica;
mod server;
mod trust;
mod workload;
