//! Network namespaces, listeners and probes on one machine, for the demo, the tests and the benches.
//!
//! ```text
//! netns::Netns ──link.rs──▶ veth pairs, addresses, routes
//!      │
//!      ├─ tcp_echo.rs, udp_echo.rs  listeners that reply with a ConnectionInfo
//!      ├─ dial.rs     connections as a given user, from a given address ──▶ ConnectionInfo, or the error
//!      ├─ proxy.rs    a passthrough proxy on 15001 and 15006, in place of Envoy
//!      ├─ envoy.rs    the bootstrap of a real Envoy
//!      ├─ webhook.rs  the admission webhook, called as the API server calls it
//!      └─ process.rs  child processes with a timeout
//! growth.rs ── how processor time grows with an input
//! ```
//!
//! Namespaces are held by file descriptors and have no names on the host, so nothing is left behind, however the process ends. Every wait
//! has a timeout.

pub mod connection_info;
pub mod dial;
pub mod envoy;
pub mod error;
pub mod growth;
pub mod http;
pub mod link;
pub mod netns;
pub mod privilege;
pub mod process;
pub mod proxy;
pub mod serve;
pub mod tcp_echo;
pub mod udp_echo;
pub mod user;
pub mod webhook;

pub use connection_info::ConnectionInfo;
pub use dial::Dial;
pub use error::LabError;
pub use netns::Netns;
pub use privilege::skip_or_fail;
pub use proxy::Proxy;
pub use serve::Server;
pub use tcp_echo::TcpEcho;
pub use udp_echo::UdpEcho;
pub use user::User;
