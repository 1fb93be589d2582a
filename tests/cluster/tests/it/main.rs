//! The scenarios of a service mesh on a whole cluster, which `make cluster` has started: each in a namespace of its own.
//!
//! ```text
//! mesh.rs ─────── the cluster with Weir installed, as its documentation says
//! scenario.rs ─── a namespace, what runs in it, requests from its clients
//! traffic.rs ──── Istio's routing, security and egress, through the captured connections
//! pods.rs ─────── kinds of pods
//! grpc.rs ─────── gRPC without Envoy
//! telemetry.rs ── bookinfo, with its traces and metrics
//! installs.rs ─── configurations and ways of installation
//! operations.rs ─ what happens to running pods while components are killed, switched off, uninstalled
//! ```
//!
//! Tests that disturb the cluster run alone. They run with `WEIR_CLUSTER=all` only, because they take minutes.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic like tests")]

mod grpc;
mod installs;
mod mesh;
mod operations;
mod pods;
mod scenario;
mod telemetry;
mod traffic;
