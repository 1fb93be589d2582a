//! The runtimes: the machine's containerd, newer ones unpacked by `scripts/install-tools tests`, and CRI-O.

use std::path::{Path, PathBuf};

/// A runtime with its CNI plugins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RuntimeRelease {
    /// The machine's containerd: 1.6 on Debian 12, with CNI plugins 1.1.1.
    Installed,
    /// containerd 1.7, of Debian 13, with the machine's CNI plugins.
    V1_7,
    /// containerd 2.1 or later, of Debian unstable, with its CNI plugins: CNI 1.1.0, the verb STATUS, drop-in folders.
    V2_1,
    /// CRI-O, built from source, with the machine's CNI plugins. Its pods have no process of their own.
    CriO,
}

impl RuntimeRelease {
    /// Returns the newest CNI version that it and its plugins support.
    pub fn cni_version(self) -> &'static str {
        if self == Self::V2_1 { "1.1.0" } else { "1.0.0" }
    }

    /// Returns whether it can be run here; where not, the test is [skipped](weir_lab::skip_or_fail).
    pub fn available_or_skip(self) -> bool {
        if !crate::privileged() {
            return false;
        }
        let missing = self.tools_dir().filter(|_| !self.program().is_file());
        if let Some(dir) = &missing {
            let (daemon, dir) = (self.daemon(), dir.display());
            weir_lab::skip_or_fail(format_args!("no {daemon} in {dir}; `make test-tools` installs it"));
        }
        missing.is_none()
    }

    pub(super) fn daemon(self) -> &'static str {
        if self == Self::CriO { "crio" } else { "containerd" }
    }

    /// Returns the path of the daemon.
    pub(super) fn program(self) -> PathBuf {
        self.tools_dir().unwrap_or_else(|| PathBuf::from("/")).join("usr/bin").join(self.daemon())
    }

    /// Returns `PATH` with its programs first. `runc` is always the machine's: that of newer releases needs a newer libc.
    pub(super) fn path(self) -> String {
        let own = self.tools_dir().map(|dir| format!("{}:", dir.join("usr/bin").display()));
        own.unwrap_or_default() + "/usr/sbin:/usr/bin:/sbin:/bin"
    }

    /// Returns the directory of its CNI plugins.
    pub(super) fn plugins(self) -> Option<PathBuf> {
        let unpacked = self.tools_dir().map(|dir| dir.join("usr/lib/cni"));
        let dirs = unpacked.into_iter().chain(["/usr/lib/cni", "/opt/cni/bin"].map(PathBuf::from));
        dirs.into_iter().find(|dir| dir.join("bridge").exists())
    }

    fn tools_dir(self) -> Option<PathBuf> {
        let name = match self {
            Self::Installed => return None,
            Self::V1_7 => "containerd-1.7",
            Self::V2_1 => "containerd-2.1",
            Self::CriO => "cri-o",
        };
        Some(Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools").join(name))
    }
}
