//! Input and result of planning.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use weir_protocol::entry::PluginEntry;

use super::step::FileStep;
use crate::install::finding::Finding;

/// Suffix of the backup of a file, without our entry. Runtimes do not read such files.
pub const BACKUP_SUFFIX: &str = ".weir-backup";
/// Name of our drop-in, in the directory of a network; it has to sort last.
pub const DROP_IN_NAME: &str = "zz-weir.conf";
/// Default name of our standalone configuration: Istio's, with our name in it.
pub const STANDALONE_NAME: &str = "YYY-weir-cni.conf";

/// A file of the configuration directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConfFile {
    /// Its content.
    Bytes(Vec<u8>),
    /// Error of the read.
    Unreadable(String),
}

/// Files of the configuration directory by name; drop-ins of a network as `network/name`.
pub type ConfDir = BTreeMap<String, ConfFile>;

/// Way in which the entry is installed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placement {
    /// As the last element of the primary's list.
    Chained,
    /// In a list of our own, derived from the primary.
    Owned,
    /// As a drop-in of the primary, where the runtime reads drop-ins.
    DropIn,
    /// As a standalone configuration that a meta plugin calls.
    Standalone,
}

/// Files to install.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DesiredEntry {
    /// Way in which the entry is installed.
    pub placement: Placement,
    /// The entry.
    pub entry: PluginEntry,
    /// The only file that may be the primary; for [`Placement::Standalone`], our file.
    pub pinned: Option<String>,
    /// Name of our own list, for [`Placement::Owned`].
    pub owned_name: String,
    /// The directory, for messages.
    pub dir: String,
}

/// Facts about the runtime and the other plugins.
#[derive(Debug, Clone)]
pub struct RuntimeFacts {
    /// Whether the runtime reads drop-ins, or why not.
    pub drop_ins: Result<(), String>,
    /// CNI versions of the other plugins, by type.
    pub versions: BTreeMap<String, PluginVersions>,
}

/// CNI versions that a plugin supports, as far as they are known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PluginVersions {
    /// It supports these.
    Supported(Vec<String>),
    /// It is not installed. Until it is, no pod of the network can start; every plugin since 2017 supports our oldest version.
    NotInstalled,
    /// It gave no valid answer, for this reason.
    Unknown(String),
}

/// Plan for a configuration directory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Steps, in their order.
    pub steps: Vec<FileStep>,
    /// The file of the node's network, as the runtime chooses it.
    pub primary: Option<String>,
    /// The file with the entry after all steps; `None` where no file can have it.
    pub entry_file: Option<String>,
    /// Types of the other plugins in the primary.
    pub other_plugins: Vec<String>,
    /// Plugins whose versions have to be known before the plan can be complete.
    pub plugins_to_query: BTreeSet<String>,
    /// Obstacles.
    pub findings: Vec<Finding>,
}

impl Plan {
    /// Returns whether the entry is installed and nothing has to change.
    pub fn is_up_to_date(&self) -> bool {
        self.steps.is_empty() && self.entry_file.is_some()
    }
}

/// Returns whether two texts are equal as JSON.
pub(super) fn json_eq(a: &str, b: &str) -> bool {
    let parse = |text: &str| serde_json::from_str::<Value>(text);
    a == b || matches!((parse(a), parse(b)), (Ok(a), Ok(b)) if a == b)
}
