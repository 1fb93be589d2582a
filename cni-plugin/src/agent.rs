//! The plugin's side of the node agent's sockets: a query with a bounded wait, and a report that is sent without waiting.

mod client;
mod report;

pub use self::client::{AgentError, query_agent};
pub use self::report::send;
