//! Network namespaces, listeners and probes on one machine, for the demo, the tests and the benches.
//!
//! ```text
//! netns::Netns ──link.rs──▶ veth pairs, addresses, routes
//!      │
//!      ├─ echo.rs   listeners that answer with what they saw of a connection
//!      ├─ datagram.rs the same for UDP
//!      ├─ dial.rs   connections as a given user, from a given address ──▶ the answer, or why there is none
//!      ├─ proxy.rs  a passthrough proxy on 15001 and 15006, in place of Envoy
//!      ├─ envoy.rs   the same by a real Envoy: its bootstrap
//!      ├─ webhook.rs the admission webhook, asked as an API server asks it
//!      └─ process.rs  child processes with a bound on their time
//! ```
//!
//! Everything lives in namespaces of its own that are held by file descriptors; nothing has a name on the machine, nothing is left
//! behind, however the process ends. Every wait has a bound.

pub mod datagram;
pub mod dial;
pub mod echo;
pub mod envoy;
pub mod error;
pub mod http;
pub mod link;
pub mod netns;
pub mod privilege;
pub mod process;
pub mod proxy;
pub mod serve;
pub mod sighting;
pub mod user;
pub mod webhook;

pub use datagram::Datagrams;
pub use dial::Dial;
pub use echo::Echo;
pub use error::LabError;
pub use netns::Netns;
pub use proxy::Proxy;
pub use serve::Server;
pub use sighting::Sighting;
pub use user::User;
