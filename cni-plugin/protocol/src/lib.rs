//! Interface of the CNI plugin to the node agent and the tools: its entry in a network configuration, the messages on the agent's
//! sockets, the decision about a pod, and the plan that follows from it.

pub mod agent;
pub mod decision;
pub mod entry;
pub mod log_level;
pub mod pod_plan;
pub mod version;
