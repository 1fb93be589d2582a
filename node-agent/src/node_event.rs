//! Events about the node, queued by tasks and published to the log and as Kubernetes events.

use tokio::sync::mpsc;

/// Most queued events. Further ones are dropped; logs and metrics have them all the same.
const QUEUE_CAPACITY: usize = 64;

/// An event about the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeEvent {
    /// `reason` of the Kubernetes event.
    pub reason: NodeEventReason,
    /// Sentence for people.
    pub message: String,
}

/// Reasons of node events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NodeEventReason {
    /// Plugin and conflist entry were installed.
    Installed,
    /// The installation failed.
    InstallFailed,
    /// Another component changed plugin or entry; they were restored.
    ConfigurationRestored,
    /// Another component keeps changing them.
    ConfigurationContended,
    /// The other component has stopped.
    ContentionEnded,
    /// A setting of the node keeps meshed pods from starting with their rules.
    PreflightFailed,
}

impl NodeEventReason {
    /// Returns the `reason` of the Kubernetes event.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Installed => "CNIInstalled",
            Self::InstallFailed => "CNIInstallFailed",
            Self::ConfigurationRestored => "CNIConfigurationRestored",
            Self::ConfigurationContended => "CNIConfigurationContended",
            Self::ContentionEnded => "CNIContentionEnded",
            Self::PreflightFailed => "CNIPreflightFailed",
        }
    }

    /// Returns whether the event is a warning.
    pub const fn is_warning(self) -> bool {
        match self {
            Self::Installed | Self::ContentionEnded => false,
            Self::InstallFailed
            | Self::ConfigurationRestored
            | Self::ConfigurationContended
            | Self::PreflightFailed => true,
        }
    }
}

/// Queue of node events.
#[derive(Debug, Clone)]
pub struct NodeEvents(mpsc::Sender<NodeEvent>);

/// Returns both ends of the queue.
pub fn channel() -> (NodeEvents, mpsc::Receiver<NodeEvent>) {
    let (sender, receiver) = mpsc::channel(QUEUE_CAPACITY);
    (NodeEvents(sender), receiver)
}

impl NodeEvents {
    /// Queues an event without waiting.
    pub fn record(&self, reason: NodeEventReason, message: impl Into<String>) {
        // Dropped where the queue is full or has no reader.
        let _ = self.0.try_send(NodeEvent { reason, message: message.into() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recording_never_waits_for_a_reader() {
        let (node_events, mut listener) = channel();
        for _ in 0..2 * QUEUE_CAPACITY {
            node_events.record(NodeEventReason::Installed, "installed");
        }
        let mut heard = 0;
        while listener.try_recv().is_ok() {
            heard += 1;
        }
        assert_eq!(heard, QUEUE_CAPACITY);
        drop(listener);
        node_events.record(NodeEventReason::PreflightFailed, "no reader");
    }
}
