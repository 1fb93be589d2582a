//! A plan while it is made: what each file should be, and the steps to it.

use std::collections::BTreeSet;

use iptables_rules::text::shorten;
use serde_json::{Map, Value};
use weir_protocol::entry::{PLUGIN_TYPE, PluginEntry};
use weir_protocol::version::CniVersion;

use super::view::{View, list_name};
use super::{BACKUP_ENDING, Change, DROP_IN_NAME, Facts, File, Plan, Said, Step, same, undo};
use crate::install::finding::Finding;
use crate::install::network::{Form, Network, is_configuration, is_network_name};
use crate::install::text;

/// Version of a configuration of our own: every Multus speaks it.
const STANDALONE_VERSION: CniVersion = CniVersion::V0_3_1;
/// What Cilium appends to configurations that it sets aside.
const CILIUM_ASIDE: &str = ".cilium_bak";
/// Plugins of other meshes that program the same pods.
const OTHER_MESHES: [&str; 5] = ["istio-cni", "linkerd-cni", "kuma-cni", "consul-cni", "osm-cni"];

pub(super) struct Draft<'a> {
    pub(super) view: &'a View<'a>,
    pub(super) facts: &'a Facts,
    pub(super) entry: Map<String, Value>,
    pub(super) plan: Plan,
}

impl Draft<'_> {
    /// Findings that do not depend on what is done.
    pub(super) fn look_around(
        &mut self,
        primary: Option<&str>,
        pinned: Option<&str>,
        is_own: &dyn Fn(&str) -> bool,
        ours_is_first: bool,
    ) {
        let read = |name: &&&str| is_configuration(name) && !is_own(name);
        let all: BTreeSet<&str> = self.view.networks.keys().chain(self.view.invalid.keys()).copied().collect();
        let first = all.iter().find(read).copied();
        for (file, reason) in &self.view.invalid {
            let (file, reason) = ((*file).to_owned(), reason.clone());
            self.plan.findings.push(if first == Some(file.as_str()) && !ours_is_first {
                Finding::InvalidFirst { file, reason }
            } else {
                Finding::InvalidNeighbour { file, reason }
            });
        }
        if let (Some(pinned), Some(primary)) = (pinned, primary) {
            if !is_configuration(primary) {
                self.plan.findings.push(Finding::NotRead { file: primary.to_owned() });
            }
            let taken = self.view.networks.keys().copied().find(|name| is_configuration(name) && !is_own(name));
            if let Some(by) = taken.filter(|taken| *taken < primary) {
                self.plan.findings.push(Finding::Preempted { pinned: pinned.to_owned(), by: by.to_owned() });
            }
        }
        if let Some(primary) = primary {
            for plugin in self.plan.types.iter().filter(|kind| OTHER_MESHES.contains(&kind.as_str())) {
                self.plan.findings.push(Finding::OtherMesh { file: primary.to_owned(), plugin: plugin.clone() });
            }
        }
        if let Some(file) = self.view.listing.keys().find(|name| name.ends_with(CILIUM_ASIDE)) {
            self.plan.findings.push(Finding::CiliumExclusive { file: file.clone() });
        }
    }

    fn write(&mut self, file: &str, text: String, like: Option<&str>, change: Change) {
        let bytes = text.into_bytes();
        self.plan.steps.push(Step::Write { file: file.to_owned(), bytes, like: like.map(str::to_owned), change });
    }

    fn remove(&mut self, file: &str, change: Change) {
        self.plan.steps.push(Step::Remove { file: file.to_owned(), change });
    }

    /// The entry as the last element of the primary, and of every other list that carries it: one of those may be the primary next.
    pub(super) fn chained(&mut self, primary: &str) -> BTreeSet<String> {
        let network = &self.view.networks[primary];
        match network.form {
            Form::List => self.edit(primary),
            Form::Single => self.convert(primary),
        }
    }

    fn edit(&mut self, name: &str) -> BTreeSet<String> {
        let network = &self.view.networks[name];
        if let Some((wanted, change)) = self.with_entry(name, network) {
            if let Some(change) = change {
                let stripped = network.text_without_us();
                self.back_up(name, stripped);
                self.write(name, wanted, Some(name), change);
            }
            self.plan.placed = Some(name.to_owned());
        }
        BTreeSet::from([name.to_owned()])
    }

    /// A single plugin's file becomes a list under the twin's name: that is written first, and the file goes last, as it sorts before it.
    fn convert(&mut self, name: &str) -> BTreeSet<String> {
        let network = &self.view.networks[name];
        let target = list_name(name);
        let kept = BTreeSet::from([name.to_owned(), target.clone()]);
        let list = network.as_list();
        let Some(wanted) = self.versioned(name, network, &list) else { return kept };
        let Some(text) = text::append(&wanted, &self.entry) else { return kept };
        let existing = self.view.networks.get(target.as_str()).filter(|_| target != name);
        let made_by_us = self.view.backup_of(name).is_some()
            || existing.is_some_and(|existing| same(&existing.text_without_us(), &wanted));
        let taken = target != name && self.view.listing.contains_key(&target);
        if taken && !made_by_us {
            self.plan.findings.push(Finding::Foreign { file: target });
            return kept;
        }
        if self.view.backup_of(name) != Some(network.text) {
            self.write(&format!("{name}{BACKUP_ENDING}"), network.text.to_owned(), Some(name), Change::Backup);
        }
        if existing.is_none_or(|existing| !same(existing.text, &text)) {
            self.write(&target, text, Some(name), Change::Converted);
        }
        if target != name {
            self.remove(name, Change::Converted);
        }
        self.plan.placed = Some(target);
        kept
    }

    pub(super) fn owned(&mut self, primary: &str, file: &str) -> BTreeSet<String> {
        let kept = BTreeSet::from([file.to_owned()]);
        let mine = self.view.is_owned(file, file);
        if self.view.listing.contains_key(file) && !mine && !self.view.is_all_ours(file) {
            self.plan.findings.push(Finding::Foreign { file: file.to_owned() });
            return kept;
        }
        let network = &self.view.networks[primary];
        let list = network.as_list();
        let list = text::strip(&list).unwrap_or_else(|| list.into_owned());
        let Some(list) = self.versioned(primary, network, &list) else { return kept };
        let Some(text) = text::append(&list, &self.entry) else { return kept };
        match self.view.networks.get(file) {
            Some(current) if same(current.text, &text) => {}
            Some(_) => self.write(file, text, Some(file), Change::Followed),
            None => self.write(file, text, None, Change::Missing),
        }
        if let Some(by) = self.view.networks.keys().find(|name| is_configuration(name) && **name < file) {
            self.plan.findings.push(Finding::OwnedNotFirst { file: file.to_owned(), by: (*by).to_owned() });
        }
        self.plan.placed = Some(file.to_owned());
        kept
    }

    /// Our file beside the primary, or why the runtime would not read it.
    pub(super) fn drop_in(&mut self, primary: &str) -> Result<String, String> {
        let network = &self.view.networks[primary];
        self.facts.drop_ins.clone()?;
        if network.form != Form::List || !is_configuration(primary) {
            return Err(format!("{primary} is no list, and runtimes read drop-ins for lists only"));
        }
        // With the entry beside it the list goes back to what it was, which may be another form, or a version that was raised.
        let original = undo::original(self.view, primary, &network.text_without_us());
        if original.as_ref().is_some_and(|original| original.form() == Form::Single) {
            return Err(format!("{primary} is a list only because we made it one"));
        }
        let version = original.map_or_else(|| network.version.clone(), |original| original.version());
        if network.inlined_only {
            return Err(format!("{primary} forbids them with loadOnlyInlinedPlugins"));
        }
        if !is_network_name(&network.name) {
            return Err(format!("the network '{}' cannot be the name of a folder", shorten(&network.name)));
        }
        if CniVersion::parse(&version).is_none() {
            return Err(format!("{primary} has cniVersion '{}'", shorten(&version)));
        }
        let file = format!("{}/{DROP_IN_NAME}", network.name);
        let folder = format!("{}/", network.name);
        let last = self.view.listing.range(folder.clone()..).take_while(|(name, _)| name.starts_with(&folder)).last();
        if let Some((name, _)) = last.filter(|(name, _)| name.as_str() > file.as_str()) {
            return Err(format!("{name} would come after it"));
        }
        let wanted = text::document(&self.entry);
        let change = match self.view.listing.get(&file) {
            None => Some(Change::Missing),
            Some(File::Bytes(bytes)) if std::str::from_utf8(bytes).is_ok_and(|text| same(text, &wanted)) => None,
            Some(_) => Some(Change::Different),
        };
        if let Some(change) = change {
            self.write(&file, wanted, None, change);
        }
        self.plan.placed = Some(file.clone());
        Ok(file)
    }

    pub(super) fn standalone(&mut self, name: &str, entry: &PluginEntry) {
        let wanted = text::document(&entry.to_standalone(PLUGIN_TYPE, STANDALONE_VERSION));
        match self.view.listing.get(name) {
            None => self.write(name, wanted, None, Change::Missing),
            Some(_) if !self.view.is_all_ours(name) => {
                self.plan.findings.push(Finding::Foreign { file: name.to_owned() });
                return;
            }
            Some(_) if !same(self.view.networks[name].text, &wanted) => {
                self.write(name, wanted, Some(name), Change::Different);
            }
            Some(_) => {}
        }
        self.plan.placed = Some(name.to_owned());
    }

    /// Without a network our own list would keep a gone one alive: it goes. Where somebody is just writing one, it stays.
    pub(super) fn without_primary(&mut self, owned_name: &str) {
        if self.view.is_owned(owned_name, owned_name) && self.view.invalid.is_empty() {
            self.remove(owned_name, Change::Followed);
        }
    }

    /// What carries our entry although it is not where the entry belongs: lists that may be next follow in the placement `chained`; the rest is put
    /// back, after the new place is made.
    pub(super) fn left_overs(&mut self, keep: &BTreeSet<String>, others_follow: bool, owned_name: &str) {
        let placed = self.plan.placed.clone();
        for (name, network) in &self.view.networks {
            if network.ours() == 0 || keep.contains(*name) {
                continue;
            }
            if self.view.is_all_ours(name) || self.view.is_owned(name, owned_name) {
                self.remove(name, Change::LeftOver);
            } else if others_follow && network.form == Form::List {
                self.edit(name);
            } else {
                let steps = undo::file(self.view, name, network, Change::LeftOver);
                self.plan.steps.extend(steps);
            }
        }
        for (name, file) in self.view.listing {
            if undo::is_our_drop_in(name, file) && !keep.contains(name) {
                self.remove(name, Change::LeftOver);
            }
        }
        self.plan.placed = placed;
    }

    /// What the list should be, and what is wrong with it now. `None` where it has to be left alone.
    fn with_entry(&mut self, name: &str, network: &Network<'_>) -> Option<(String, Option<Change>)> {
        let stripped = network.text_without_us();
        let versioned = self.versioned(name, network, &stripped)?;
        let wanted = text::append(&versioned, &self.entry)?;
        let change = match network.types.iter().rposition(|kind| kind == PLUGIN_TYPE) {
            None => Some(Change::Missing),
            Some(_) if network.ours() > 1 => Some(Change::Duplicate),
            Some(last) if last + 1 != network.types.len() => Some(Change::NotLast),
            Some(_) if !same(network.text, &wanted) => Some(Change::Different),
            Some(_) => None,
        };
        Some((wanted, change))
    }

    /// The list in a version that our plugin speaks: its own, or the oldest one that every plugin of it says it speaks.
    fn versioned(&mut self, name: &str, network: &Network<'_>, list: &str) -> Option<String> {
        if CniVersion::parse(&network.version).is_some() {
            return Some(list.to_owned());
        }
        let mut refuse = |reason: String| {
            let version = shorten(&network.version);
            self.plan.findings.push(Finding::Version { file: name.to_owned(), version, reason });
            None
        };
        if !matches!(network.version.as_str(), "" | "0.1.0" | "0.2.0" | "0.3.0") {
            return refuse(format!("only {} are known", CniVersion::names().join(", ")));
        }
        let others: BTreeSet<&String> = network.types.iter().filter(|kind| *kind != PLUGIN_TYPE).collect();
        let mut candidates = CniVersion::ALL.to_vec();
        for kind in others {
            match self.facts.versions.get(kind) {
                None => drop(self.plan.ask.insert(kind.clone())),
                Some(Said::Absent) => {}
                Some(Said::Nothing(why)) => {
                    return refuse(format!("the plugin {kind} does not say which versions it speaks: {why}"));
                }
                Some(Said::Speaks(spoken)) => {
                    candidates.retain(|version| spoken.iter().any(|name| name == version.as_str()));
                }
            }
        }
        if !self.plan.ask.is_empty() {
            return None;
        }
        match candidates.first() {
            Some(version) => text::with_version(list, version.as_str()),
            None => refuse("its plugins have no newer version in common".to_owned()),
        }
    }

    /// Keeps a copy of the file without us, unless there is one that means the same.
    fn back_up(&mut self, name: &str, stripped: String) {
        let kept = undo::original(self.view, name, &stripped).is_some();
        if !kept {
            self.write(&format!("{name}{BACKUP_ENDING}"), stripped, Some(name), Change::Backup);
        }
    }
}
