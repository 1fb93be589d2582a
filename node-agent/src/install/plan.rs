//! Which file, where in it, and in which order of steps: a function of what lies in the configuration folder.
//!
//! ```text
//! listing ──▶ parse ──▶ choose the primary ──▶ what each file should be ──▶ steps, findings
//! ```
//!
//! Each step is atomic and leaves a folder in which the runtime finds a network wherever it found one before; a plan that was cut off
//! anywhere and made anew ends in the same state. A folder in order gives a plan without steps, so the plan is the check as well.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use weir_protocol::entry::{PLUGIN_TYPE, PluginEntry};

use super::finding::Finding;

mod draft;
mod step;
mod undo;
mod view;

pub use step::{Change, Step};
pub use undo::undo;

use draft::Draft;
use view::View;

/// Ending of the copy of a file as it was without us. Runtimes do not read it.
pub const BACKUP_ENDING: &str = ".weir-backup";
/// Name of our file in a network's folder of drop-ins; it has to sort last.
pub const DROP_IN_NAME: &str = "zz-weir.conf";
/// Name of our own configuration where no other was asked for; that of Istio with our name in it.
pub const STANDALONE_NAME: &str = "YYY-weir-cni.conf";
/// A file of the folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum File {
    /// What is in it.
    Bytes(Vec<u8>),
    /// Why nobody can tell.
    Unreadable(String),
}

/// Files of the folder by name; those of a network's folder of drop-ins as `network/name`.
pub type Listing = BTreeMap<String, File>;

/// How our entry gets into the node's network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placement {
    /// The last element of the primary's list.
    Chained,
    /// A list of our own, made from the primary.
    Owned,
    /// A file in the primary's folder of drop-ins, where the runtime reads such.
    DropIn,
    /// A configuration of our own that a meta plugin calls.
    Standalone,
}

/// What is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// How.
    pub placement: Placement,
    /// Our entry.
    pub entry: PluginEntry,
    /// The one file that may be the primary; in the placement `standalone` the file that is ours.
    pub pinned: Option<String>,
    /// Name of our own list.
    pub owned_name: String,
    /// The folder, for messages.
    pub folder: String,
}

/// What was found out beside the listing.
#[derive(Debug, Clone)]
pub struct Facts {
    /// Whether the runtime reads drop-ins, or why they cannot be counted on.
    pub drop_ins: Result<(), String>,
    /// What plugins said about versions, by type.
    pub versions: BTreeMap<String, Said>,
}

/// What a plugin said when it was asked for the versions that it speaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// These.
    Speaks(Vec<String>),
    /// It is not there. No pod of the network can start until it is, and every plugin written since 2017 speaks the oldest version of ours.
    Absent,
    /// Nothing that could be understood, and why.
    Nothing(String),
}
/// What is to be done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// In this order.
    pub steps: Vec<Step>,
    /// The node's network, as the runtime chooses it.
    pub primary: Option<String>,
    /// The file that carries our entry once all steps are done; `None` where there is none to carry it.
    pub placed: Option<String>,
    /// Types of plugins in the primary, without ours.
    pub types: Vec<String>,
    /// Plugins that have to be asked for their versions before more can be said.
    pub ask: BTreeSet<String>,
    /// What stands in the way.
    pub findings: Vec<Finding>,
}

impl Plan {
    /// Whether everything is as it should be already.
    pub fn is_in_order(&self) -> bool {
        self.steps.is_empty() && self.placed.is_some()
    }
}

/// Decides what is to be done about the folder.
pub fn decide(listing: &Listing, wanted: &Wanted, facts: &Facts) -> Plan {
    let pinned = match wanted.placement {
        Placement::Standalone => None,
        _ => wanted.pinned.as_deref(),
    };
    let view = View::new(listing, &wanted.pinned.as_deref().into_iter().collect::<Vec<_>>());
    let mut draft = Draft { view: &view, facts, entry: wanted.entry.to_map(), plan: Plan::default() };
    let owned_name = wanted.owned_name.as_str();
    let is_own = |name: &str| view.is_all_ours(name) || view.is_owned(name, owned_name);

    let primary = view.primary(pinned, is_own);
    draft.plan.primary = primary.map(str::to_owned);
    if let Some(network) = primary.and_then(|name| view.networks.get(name)) {
        draft.plan.types = network.types.iter().filter(|kind| *kind != PLUGIN_TYPE).cloned().collect();
    }
    draft.look_around(primary, pinned, &is_own, wanted.placement == Placement::Owned);

    let keep: BTreeSet<String> = match (&wanted.placement, primary) {
        (Placement::Standalone, _) => {
            let name = wanted.pinned.as_deref().unwrap_or(STANDALONE_NAME);
            draft.standalone(name, &wanted.entry);
            BTreeSet::from([name.to_owned()])
        }
        (_, None) => {
            draft
                .plan
                .findings
                .push(Finding::NoConfiguration { folder: wanted.folder.clone(), pinned: pinned.map(str::to_owned) });
            if wanted.placement == Placement::Owned {
                draft.without_primary(owned_name);
            }
            BTreeSet::new()
        }
        (Placement::Chained, Some(primary)) => draft.chained(primary),
        (Placement::Owned, Some(primary)) => draft.owned(primary, owned_name),
        (Placement::DropIn, Some(primary)) => match draft.drop_in(primary) {
            Ok(file) => BTreeSet::from([file]),
            Err(reason) => {
                draft.plan.findings.push(Finding::DropInsNotRead { reason });
                draft.chained(primary)
            }
        },
    };
    // A plan that waits for answers must not take anything away meanwhile.
    if draft.plan.placed.is_some() {
        draft.left_overs(&keep, wanted.placement == Placement::Chained, owned_name);
    }
    draft.plan
}

/// Whether two texts are the same JSON.
fn same(a: &str, b: &str) -> bool {
    let parse = |text: &str| serde_json::from_str::<Value>(text);
    a == b || matches!((parse(a), parse(b)), (Ok(a), Ok(b)) if a == b)
}

#[cfg(test)]
mod tests;
