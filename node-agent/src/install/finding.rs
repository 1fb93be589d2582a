//! Obstacles on a node that keep meshed pods from starting with their rules, each with its fix.

/// An obstacle on this node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Finding {
    /// The directory has no network configuration.
    #[error("{}", match pinned {
        None => format!("no network configuration in {dir}: waiting for the node's network to be installed (if it is, set its directory with --mounted-cni-net-dir)"),
        Some(pinned) => format!("{dir} has no network configuration {pinned}: waiting for it (--cni-conf-name)"),
    })]
    NoConfiguration {
        /// Directory.
        dir: String,
        /// The file that `--cni-conf-name` names.
        pinned: Option<String>,
    },
    /// The first file is invalid, so containerd rejects the whole directory.
    #[error(
        "{file}: {reason}; it sorts first, so containerd rejects every configuration of the directory: fix or remove it"
    )]
    InvalidFirst {
        /// The file.
        file: String,
        /// Description of the fault.
        reason: String,
    },
    /// A file that is not the first is invalid.
    #[error("{file}: {reason}; skipped")]
    InvalidOther {
        /// The file.
        file: String,
        /// Description of the fault.
        reason: String,
    },
    /// Runtimes use another file than `--cni-conf-name`.
    #[error("runtimes use {by}, not {pinned} (--cni-conf-name): rename one of them, or change the flag")]
    Preempted {
        /// The file that `--cni-conf-name` names.
        pinned: String,
        /// The file that runtimes use.
        by: String,
    },
    /// Runtimes do not read files of this extension.
    #[error("{file} does not end in .conf, .conflist or .json, so no runtime reads it (--cni-conf-name)")]
    UnreadExtension {
        /// The file.
        file: String,
    },
    /// The plugin does not support the list's version, which cannot be raised.
    #[error("{file} has cniVersion '{version}', which weir-cni does not support; left unchanged: {reason}")]
    UnsupportedVersion {
        /// The file.
        file: String,
        /// Its version; empty where it has none.
        version: String,
        /// Reason for the failure.
        reason: String,
    },
    /// Drop-ins are configured, but cannot be used.
    #[error("cannot use a drop-in; falling back to chained mode: {reason}")]
    DropInsNotRead {
        /// Reason for the failure.
        reason: String,
    },
    /// Runtimes use another file than our own list.
    #[error("runtimes use {by}, which sorts before our {file}: change --owned-cni-config-filename")]
    OwnedNotFirst {
        /// Our file.
        file: String,
        /// The file that sorts before it.
        by: String,
    },
    /// A file of another component has the name of ours.
    #[error("{file} belongs to another component and is not overwritten: rename or remove it")]
    NotOurFile {
        /// The file.
        file: String,
    },
    /// Cilium renames configurations of other components.
    #[error(
        "{file}: Cilium renames configurations of other components: set cni.exclusive=false in its Helm values (cni-exclusive in its ConfigMap)"
    )]
    CiliumExclusive {
        /// A file that it has renamed.
        file: String,
    },
    /// The list has the plugin of another mesh.
    #[error("{file} has the plugin {plugin} of another mesh, and both would capture the same pods: remove one of them")]
    OtherMesh {
        /// The file.
        file: String,
        /// Plugin of the other mesh.
        plugin: String,
    },
    /// The runtime cannot find or start a plugin of the list.
    #[error("{file} uses the plugin {plugin}, but {reason}; no pod of this network can start")]
    PluginMissing {
        /// The file.
        file: String,
        /// The plugin.
        plugin: String,
        /// Error of the start.
        reason: String,
    },
    /// A directory does not exist.
    #[error("{dir} does not exist: mount {host} of the host there, or set another directory")]
    MissingDir {
        /// Path as mounted here.
        dir: String,
        /// Path on the host.
        host: String,
    },
    /// A directory is mounted read-only.
    #[error(
        "{dir} is read-only: mount it writable; if it is read-only on the host (GKE: /opt), use the platform's directory (--platform, --mounted-cni-bin-dir)"
    )]
    ReadOnly {
        /// Path as mounted here.
        dir: String,
    },
    /// The directory of plugins is mounted noexec.
    #[error("{dir} is mounted noexec, so no plugin in it can be started: use the platform's directory (--platform)")]
    NoExec {
        /// Path as mounted here.
        dir: String,
    },
    /// The runtime reads another directory than a flag names.
    #[error("{flag} is {given}, but the runtime reads {read} ({file}): mount and set that directory")]
    WrongDir {
        /// The flag.
        flag: &'static str,
        /// Its value.
        given: String,
        /// Directory in the runtime's configuration.
        read: String,
        /// File with that configuration.
        file: String,
    },
    /// The runtime does not pass pod annotations to plugins.
    #[error(
        "{binary} does not pass pod annotations to plugins (containerd before 1.5, CRI-O before 1.29): update it; until then the plugin asks the agent about every pod"
    )]
    NoPodAnnotations {
        /// Binary of the runtime.
        binary: String,
    },
    /// The runtime's configuration cannot be parsed.
    #[error("{file}: {reason}; assuming the default directories")]
    RuntimeConfiguration {
        /// The file.
        file: String,
        /// Error of the parser.
        reason: String,
    },
}

impl Finding {
    /// Returns the name used in logs and metrics.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::NoConfiguration { .. } => "no-configuration",
            Self::InvalidFirst { .. } => "invalid-first",
            Self::InvalidOther { .. } => "invalid-neighbour",
            Self::Preempted { .. } => "preempted",
            Self::UnreadExtension { .. } => "not-read",
            Self::UnsupportedVersion { .. } => "version",
            Self::DropInsNotRead { .. } => "drop-ins-not-read",
            Self::OwnedNotFirst { .. } => "owned-not-first",
            Self::NotOurFile { .. } => "foreign-file",
            Self::CiliumExclusive { .. } => "cilium-exclusive",
            Self::OtherMesh { .. } => "other-mesh",
            Self::PluginMissing { .. } => "plugin",
            Self::MissingDir { .. } => "missing-folder",
            Self::ReadOnly { .. } => "read-only",
            Self::NoExec { .. } => "noexec",
            Self::WrongDir { .. } => "wrong-folder",
            Self::NoPodAnnotations { .. } => "no-pod-annotations",
            Self::RuntimeConfiguration { .. } => "runtime-configuration",
        }
    }

    /// Returns whether meshed pods may lack their rules or fail to start because of it.
    pub const fn is_error(&self) -> bool {
        !matches!(self, Self::InvalidOther { .. } | Self::DropInsNotRead { .. } | Self::RuntimeConfiguration { .. })
    }
}
