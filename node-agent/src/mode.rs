//! The way in which rules get into new pods: by the CNI plugin, or by the agent as an NRI plugin.

use std::os::unix::net::UnixStream;
use std::path::Path;

use clap::ValueEnum;

/// Values of `--mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ModeArg {
    /// The CNI plugin, chained into the node's network.
    Cni,
    /// The agent, as a plugin of the container runtime (NRI).
    Nri,
    /// NRI where the runtime serves it when the agent starts, otherwise CNI.
    Auto,
}

/// The way in which rules get into new pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The CNI plugin.
    Cni,
    /// The agent as an NRI plugin.
    Nri,
}

impl Mode {
    /// Returns the name used in logs and `GET /status`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cni => "cni",
            Self::Nri => "nri",
        }
    }
}

/// A mode, and why it was chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModeChoice {
    /// The mode.
    pub mode: Mode,
    /// Reason, for people.
    pub reason: String,
}

impl ModeChoice {
    /// Chooses the mode. `probe` tells whether the runtime serves NRI; it is called where the flag leaves it open.
    pub fn new(asked: ModeArg, probe: impl FnOnce() -> Result<(), String>) -> Self {
        let (mode, reason) = match asked {
            ModeArg::Cni => (Mode::Cni, "--mode=cni".to_owned()),
            ModeArg::Nri => (Mode::Nri, "--mode=nri".to_owned()),
            ModeArg::Auto => match probe() {
                Ok(()) => (Mode::Nri, "the container runtime serves NRI".to_owned()),
                Err(error) => (Mode::Cni, format!("the container runtime does not serve NRI: {error}")),
            },
        };
        Self { mode, reason }
    }
}

/// Connects to the runtime's socket for NRI plugins.
///
/// # Errors
/// Nothing listens there.
pub fn probe_nri(socket: &Path) -> Result<(), String> {
    UnixStream::connect(socket).map(drop).map_err(|error| format!("{}: {error}", socket.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn auto_takes_nri_where_something_listens() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("nri.sock");
        let auto = || ModeChoice::new(ModeArg::Auto, || probe_nri(&socket));
        let missing = auto();
        assert!(missing.mode == Mode::Cni && missing.reason.contains("nri.sock: No such file"), "{missing:?}");
        let listener = UnixListener::bind(&socket).unwrap();
        assert_eq!(auto().mode, Mode::Nri);
        // The file of a runtime that does not serve NRI any more.
        drop(listener);
        let stale = auto();
        assert!(stale.mode == Mode::Cni && stale.reason.contains("refused"), "{stale:?}");
    }

    #[test]
    fn a_set_mode_needs_no_probe() {
        let choose = |asked| ModeChoice::new(asked, || panic!("probed")).mode;
        assert_eq!([ModeArg::Cni, ModeArg::Nri].map(choose), [Mode::Cni, Mode::Nri]);
    }
}
