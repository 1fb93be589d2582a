//! Shared state that every task of the agent gets.

use weir_runtime::CancellationToken;

use crate::health::Health;
use crate::metrics::MetricsRegistry;
use crate::node_event::NodeEvents;

/// Handles that every task of the agent shares.
#[derive(Debug, Clone)]
pub struct TaskContext {
    /// Registers the task's conditions.
    pub health: Health,
    /// Registers the task's metrics.
    pub metrics: MetricsRegistry,
    /// Publishes events about the node.
    pub node_events: NodeEvents,
    /// Is cancelled when the agent shuts down.
    pub shutdown: CancellationToken,
}
