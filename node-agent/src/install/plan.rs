//! Decides which files of the configuration directory to change, from their contents alone.
//!
//! ```text
//! ConfDir ──▶ parse ──▶ choose the primary ──▶ desired content of each file ──▶ steps, findings
//! ```
//!
//! Each step is atomic, and after each the runtime finds a network where it found one before. A plan that is interrupted anywhere and made
//! again ends in the same state. For a directory that is up to date the plan has no steps, so planning is also the check.

use std::collections::BTreeSet;

use weir_protocol::entry::PLUGIN_TYPE;

use super::finding::Finding;

mod model;
mod planner;
mod step;
mod undo;
mod view;

pub use model::{
    BACKUP_SUFFIX, ConfDir, ConfFile, DROP_IN_NAME, DesiredEntry, Placement, Plan, PluginVersions, RuntimeFacts,
    STANDALONE_NAME,
};
pub use step::{ChangeReason, FileStep};
pub use undo::undo;

use planner::Planner;
use view::ConfDirView;

/// Plans how to install the entry in a configuration directory.
pub fn decide(conf_dir: &ConfDir, desired: &DesiredEntry, facts: &RuntimeFacts) -> Plan {
    let pinned = match desired.placement {
        Placement::Standalone => None,
        _ => desired.pinned.as_deref(),
    };
    let view = ConfDirView::new(conf_dir, &desired.pinned.as_deref().into_iter().collect::<Vec<_>>());
    let mut planner = Planner { view: &view, facts, entry: desired.entry.to_map(), plan: Plan::default() };
    let owned_name = desired.owned_name.as_str();
    let is_own = |name: &str| view.has_only_our_plugin(name) || view.is_owned(name, owned_name);

    let primary = view.primary(pinned, is_own);
    planner.plan.primary = primary.map(str::to_owned);
    if let Some(network) = primary.and_then(|name| view.networks.get(name)) {
        planner.plan.other_plugins = network.types.iter().filter(|kind| *kind != PLUGIN_TYPE).cloned().collect();
    }
    planner.collect_findings(primary, pinned, &is_own, desired.placement == Placement::Owned);

    let keep: BTreeSet<String> = match (&desired.placement, primary) {
        (Placement::Standalone, _) => {
            let name = desired.pinned.as_deref().unwrap_or(STANDALONE_NAME);
            planner.standalone(name, &desired.entry);
            BTreeSet::from([name.to_owned()])
        }
        (_, None) => {
            planner
                .plan
                .findings
                .push(Finding::NoConfiguration { dir: desired.dir.clone(), pinned: pinned.map(str::to_owned) });
            if desired.placement == Placement::Owned {
                planner.remove_stale_owned(owned_name);
            }
            BTreeSet::new()
        }
        (Placement::Chained, Some(primary)) => planner.chained(primary),
        (Placement::Owned, Some(primary)) => planner.owned(primary, owned_name),
        (Placement::DropIn, Some(primary)) => match planner.drop_in(primary) {
            Ok(file) => BTreeSet::from([file]),
            Err(reason) => {
                planner.plan.findings.push(Finding::DropInsNotRead { reason });
                planner.chained(primary)
            }
        },
    };
    // A plan that waits for versions must not remove anything.
    if planner.plan.entry_file.is_some() {
        planner.remove_leftovers(&keep, desired.placement == Placement::Chained, owned_name);
    }
    planner.plan
}

#[cfg(test)]
mod tests;
