//! The admission webhook: a TLS server around the crate `weir-injector`, and what it does in a cluster (its CA, `caBundle`, followed
//! configuration).

pub mod args;
pub mod cluster;
pub mod server;
