//! What the plugin, the node agent and the tools share: the plugin's entry in a network configuration, the messages of the agent's
//! sockets, and the decision about a pod.

pub mod agent;
pub mod decision;
pub mod entry;
pub mod log_level;
pub mod version;
