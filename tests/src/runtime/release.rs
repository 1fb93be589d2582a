//! Which runtime: the machine's own containerd, newer ones unpacked beside it, and CRI-O, by `scripts/install-tools tests`.

use std::path::{Path, PathBuf};

/// A release of a runtime, with the CNI plugins it is run with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// The machine's own containerd: 1.6 on Debian 12, with CNI plugins 1.1.1.
    Installed,
    /// containerd 1.7, of Debian 13, with the machine's CNI plugins.
    V1_7,
    /// containerd 2.1 or later, of Debian unstable, with its CNI plugins: CNI 1.1.0, the verb STATUS, drop-in folders.
    V2_1,
    /// CRI-O, built from source, with the machine's CNI plugins. Its pods have no process of their own.
    CriO,
}

impl Release {
    /// The newest CNI version that it and its plugins speak.
    pub fn cni_version(self) -> &'static str {
        if self == Self::V2_1 { "1.1.0" } else { "1.0.0" }
    }

    /// Whether it can be run here; where not, says why.
    ///
    /// # Panics
    /// Where `CI` is set and it is missing: a skip must never look green there.
    pub fn available_or_skip(self) -> bool {
        if !crate::privileged() {
            return false;
        }
        let missing = self.unpacked().filter(|_| !self.program().is_file());
        if let Some(folder) = &missing {
            let why = format!("no {} in {}: `scripts/install-tools tests` fetches it", self.daemon(), folder.display());
            assert!(std::env::var_os("CI").is_none(), "{why}");
            eprintln!("skipped: {why}");
        }
        missing.is_none()
    }

    /// Name of its daemon.
    pub(super) fn daemon(self) -> &'static str {
        if self == Self::CriO { "crio" } else { "containerd" }
    }

    /// Its daemon's program.
    pub(super) fn program(self) -> PathBuf {
        self.unpacked().unwrap_or_else(|| PathBuf::from("/")).join("usr/bin").join(self.daemon())
    }

    /// The search path with its programs first; `runc` is the machine's always (that of newer releases needs a newer libc).
    pub(super) fn path(self) -> String {
        let own = self.unpacked().map(|folder| format!("{}:", folder.join("usr/bin").display()));
        own.unwrap_or_default() + "/usr/sbin:/usr/bin:/sbin:/bin"
    }

    /// The folder of its CNI plugins.
    pub(super) fn plugins(self) -> Option<PathBuf> {
        let unpacked = self.unpacked().map(|folder| folder.join("usr/lib/cni"));
        let folders = unpacked.into_iter().chain(["/usr/lib/cni", "/opt/cni/bin"].map(PathBuf::from));
        folders.into_iter().find(|folder| folder.join("bridge").exists())
    }

    fn unpacked(self) -> Option<PathBuf> {
        let name = match self {
            Self::Installed => return None,
            Self::V1_7 => "containerd-1.7",
            Self::V2_1 => "containerd-2.1",
            Self::CriO => "cri-o",
        };
        Some(Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools").join(name))
    }
}
