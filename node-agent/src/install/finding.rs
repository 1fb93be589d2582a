//! What stands in the way of the mesh on this node: one sentence and its remedy each, all of them at once.

use std::fmt;

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Finding {
    /// No network to be a part of.
    NoConfiguration {
        /// Folder that was looked at.
        folder: String,
        /// The one file that is waited for, where one was named.
        pinned: Option<String>,
    },
    /// The first file is one that containerd refuses, and with it all others.
    InvalidFirst {
        /// The file.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file that runtimes pass over or never come to.
    InvalidNeighbour {
        /// The file.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The named configuration is not the one that runtimes take.
    Preempted {
        /// The named one.
        pinned: String,
        /// The one that is taken.
        by: String,
    },
    /// A name that runtimes do not read.
    NotRead {
        /// The file.
        file: String,
    },
    /// A list whose version the plugin does not speak, and that cannot be raised.
    Version {
        /// The file.
        file: String,
        /// Its version; empty where it names none.
        version: String,
        /// Why it is not raised.
        reason: String,
    },
    /// Drop-ins were asked for and cannot be used.
    DropInsNotRead {
        /// Why not.
        reason: String,
    },
    /// Our own file is not the one that runtimes take.
    OwnedNotFirst {
        /// Our file.
        file: String,
        /// The one before it.
        by: String,
    },
    /// Under a name that we would write there is somebody else's file.
    Foreign {
        /// The file.
        file: String,
    },
    /// Cilium sets other people's configurations aside.
    CiliumExclusive {
        /// What it has set aside.
        file: String,
    },
    /// Another mesh's plugin is in the same list.
    OtherMesh {
        /// The file.
        file: String,
        /// Its plugin.
        plugin: String,
    },
    /// A plugin of the list that no runtime would find, or could start.
    Plugin {
        /// The file.
        file: String,
        /// The plugin.
        plugin: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A folder that is not there.
    MissingFolder {
        /// As it is called here.
        folder: String,
        /// As the host calls it.
        host: String,
    },
    /// A folder that cannot be written.
    ReadOnly {
        /// As it is called here.
        folder: String,
    },
    /// A folder of programs from which nothing can be started.
    NoExec {
        /// As it is called here.
        folder: String,
    },
    /// The runtime reads another folder.
    WrongFolder {
        /// The flag that names the wrong one.
        flag: &'static str,
        /// What it names.
        given: String,
        /// What the runtime's configuration names.
        read: String,
        /// Where that stands.
        source: String,
    },
    /// The runtime hands over no annotations.
    NoPodAnnotations {
        /// Its binary.
        binary: String,
    },
    /// The configuration of the runtime cannot be understood.
    RuntimeConfiguration {
        /// The file.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl Finding {
    /// Name for logs and labels.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::NoConfiguration { .. } => "no-configuration",
            Self::InvalidFirst { .. } => "invalid-first",
            Self::InvalidNeighbour { .. } => "invalid-neighbour",
            Self::Preempted { .. } => "preempted",
            Self::NotRead { .. } => "not-read",
            Self::Version { .. } => "version",
            Self::DropInsNotRead { .. } => "drop-ins-not-read",
            Self::OwnedNotFirst { .. } => "owned-not-first",
            Self::Foreign { .. } => "foreign-file",
            Self::CiliumExclusive { .. } => "cilium-exclusive",
            Self::OtherMesh { .. } => "other-mesh",
            Self::Plugin { .. } => "plugin",
            Self::MissingFolder { .. } => "missing-folder",
            Self::ReadOnly { .. } => "read-only",
            Self::NoExec { .. } => "noexec",
            Self::WrongFolder { .. } => "wrong-folder",
            Self::NoPodAnnotations { .. } => "no-pod-annotations",
            Self::RuntimeConfiguration { .. } => "runtime-configuration",
        }
    }

    /// Whether pods of the mesh can be without their rules because of it, or cannot start.
    pub const fn is_serious(&self) -> bool {
        !matches!(self, Self::InvalidNeighbour { .. } | Self::DropInsNotRead { .. } | Self::RuntimeConfiguration { .. })
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoConfiguration { folder, pinned: None } => write!(
                f,
                "no network configuration in {folder}: waiting for the network of the node to be installed (if it is, its folder is another one: --mounted-cni-net-dir)"
            ),
            Self::NoConfiguration { folder, pinned: Some(pinned) } => {
                write!(f, "{pinned} is not in {folder}, or no network configuration: waiting for it (--cni-conf-name)")
            }
            Self::InvalidFirst { file, reason } => write!(
                f,
                "{file}: {reason}; it sorts first, so containerd refuses every configuration of the folder: mend or remove it"
            ),
            Self::InvalidNeighbour { file, reason } => write!(f, "{file}: {reason}; it is passed over"),
            Self::Preempted { pinned, by } => {
                write!(
                    f,
                    "runtimes take {by}, not {pinned}, which --cni-conf-name names: rename one of them, or name the other"
                )
            }
            Self::NotRead { file } => {
                write!(f, "{file} ends in none of .conf, .conflist, .json: no runtime reads it (--cni-conf-name)")
            }
            Self::Version { file, version, reason } => {
                write!(
                    f,
                    "{file} has cniVersion '{version}', which the plugin does not speak; it is left alone: {reason}"
                )
            }
            Self::DropInsNotRead { reason } => write!(f, "no drop-in, the entry is chained: {reason}"),
            Self::OwnedNotFirst { file, by } => {
                write!(
                    f,
                    "runtimes take {by}, which sorts before our {file}: choose another --owned-cni-config-filename"
                )
            }
            Self::Foreign { file } => {
                write!(f, "{file} is somebody else's and is not overwritten: rename or remove it")
            }
            Self::CiliumExclusive { file } => write!(
                f,
                "{file}: Cilium sets other configurations aside: set cni.exclusive=false in its Helm values (cni-exclusive in its ConfigMap)"
            ),
            Self::OtherMesh { file, plugin } => {
                write!(
                    f,
                    "{file} has the plugin {plugin} of another mesh: both would program the same pods; remove one of them"
                )
            }
            Self::Plugin { file, plugin, reason } => {
                write!(f, "{file} names the plugin {plugin}: {reason}; no pod of this network can start")
            }
            Self::MissingFolder { folder, host } => {
                write!(f, "{folder} is not there: mount {host} of the host at this path, or name another folder")
            }
            Self::ReadOnly { folder } => write!(
                f,
                "{folder} is read-only: mount it writable; where the host's own is (GKE: /opt), use the platform's folder (--platform, --mounted-cni-bin-dir)"
            ),
            Self::NoExec { folder } => {
                write!(
                    f,
                    "{folder} is mounted noexec: nothing in it can be started; use the platform's folder (--platform)"
                )
            }
            Self::WrongFolder { flag, given, read, source } => {
                write!(f, "{flag} is {given}, but the runtime reads {read} ({source}): mount that one and name it")
            }
            Self::NoPodAnnotations { binary } => write!(
                f,
                "{binary} hands no annotations to plugins (containerd before 1.5, CRI-O before 1.29): update it; until then every pod is looked up in the agent"
            ),
            Self::RuntimeConfiguration { file, reason } => {
                write!(f, "{file}: {reason}; its folders are taken to be the usual ones")
            }
        }
    }
}
