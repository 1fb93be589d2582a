//! What the node's administrator should hear: handed from the parts that find it to whoever tells it (log, Kubernetes events).

use tokio::sync::mpsc;

/// Notices that nobody has told yet. A storm must not pile up: what finds no room is dropped, it is in the log and in a metric anyway.
const ROOM: usize = 64;

/// One thing that happened to the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// What it is about; the `reason` of a Kubernetes event.
    pub reason: Reason,
    /// A sentence for people.
    pub message: String,
}

/// Kinds of notices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Plugin and configuration are in place.
    Installed,
    /// They could not be put in place.
    InstallFailed,
    /// Somebody removed or changed our entry; it was put back.
    ConfigurationRestored,
    /// Somebody keeps removing or changing it.
    ConfigurationContended,
    /// Nobody does any longer.
    ContentionEnded,
    /// A setting of the node stands in the way of the mesh.
    Preflight,
}

impl Reason {
    /// As it stands in an event.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Installed => "CNIInstalled",
            Self::InstallFailed => "CNIInstallFailed",
            Self::ConfigurationRestored => "CNIConfigurationRestored",
            Self::ConfigurationContended => "CNIConfigurationContended",
            Self::ContentionEnded => "CNIContentionEnded",
            Self::Preflight => "CNIPreflight",
        }
    }

    /// Whether an event of it is a warning.
    pub const fn is_warning(self) -> bool {
        match self {
            Self::Installed | Self::ContentionEnded => false,
            Self::InstallFailed | Self::ConfigurationRestored | Self::ConfigurationContended | Self::Preflight => true,
        }
    }
}

/// Where notices go in.
#[derive(Debug, Clone)]
pub struct Notices(mpsc::Sender<Notice>);

/// Both ends.
pub fn channel() -> (Notices, mpsc::Receiver<Notice>) {
    let (sender, receiver) = mpsc::channel(ROOM);
    (Notices(sender), receiver)
}

impl Notices {
    /// Hands a notice on, never waiting.
    pub fn tell(&self, reason: Reason, message: impl Into<String>) {
        // Without room or without a listener it is dropped.
        let _ = self.0.try_send(Notice { reason, message: message.into() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_waits_for_a_listener() {
        let (notices, mut listener) = channel();
        for _ in 0..2 * ROOM {
            notices.tell(Reason::Installed, "again");
        }
        let mut heard = 0;
        while listener.try_recv().is_ok() {
            heard += 1;
        }
        assert_eq!(heard, ROOM);
        drop(listener);
        notices.tell(Reason::Preflight, "nobody listens");
    }
}
