//! Builds a plan: the desired content of each file, and the steps to it.

use std::collections::BTreeSet;

use iptables_rules::text::truncate;
use serde_json::{Map, Value};
use weir_protocol::entry::{PLUGIN_TYPE, PluginEntry};
use weir_protocol::version::CniVersion;

use super::model::{BACKUP_SUFFIX, ConfFile, DROP_IN_NAME, Plan, PluginVersions, RuntimeFacts, json_eq};
use super::step::{ChangeReason, FileStep};
use super::undo;
use super::view::{ConfDirView, list_name};
use crate::install::finding::Finding;
use crate::install::network::{ConfigFormat, NetworkConfig, is_configuration, is_network_name};
use crate::install::text;

/// Version of a standalone configuration: every Multus supports it.
const STANDALONE_VERSION: CniVersion = CniVersion::V0_3_1;
/// Suffix of configurations that Cilium has renamed.
const CILIUM_BACKUP_SUFFIX: &str = ".cilium_bak";
/// Plugins of other meshes, which would capture the same pods.
const OTHER_MESHES: [&str; 5] = ["istio-cni", "linkerd-cni", "kuma-cni", "consul-cni", "osm-cni"];

pub(super) struct Planner<'a> {
    pub(super) view: &'a ConfDirView<'a>,
    pub(super) facts: &'a RuntimeFacts,
    pub(super) entry: Map<String, Value>,
    pub(super) plan: Plan,
}

impl Planner<'_> {
    /// Adds the findings that do not depend on the placement.
    pub(super) fn collect_findings(
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
                Finding::InvalidOther { file, reason }
            });
        }
        if let (Some(pinned), Some(primary)) = (pinned, primary) {
            if !is_configuration(primary) {
                self.plan.findings.push(Finding::UnreadExtension { file: primary.to_owned() });
            }
            let taken = self.view.networks.keys().copied().find(|name| is_configuration(name) && !is_own(name));
            if let Some(by) = taken.filter(|taken| *taken < primary) {
                self.plan.findings.push(Finding::Preempted { pinned: pinned.to_owned(), by: by.to_owned() });
            }
        }
        if let Some(primary) = primary {
            for plugin in self.plan.other_plugins.iter().filter(|kind| OTHER_MESHES.contains(&kind.as_str())) {
                self.plan.findings.push(Finding::OtherMesh { file: primary.to_owned(), plugin: plugin.clone() });
            }
        }
        if let Some(file) = self.view.conf_dir.keys().find(|name| name.ends_with(CILIUM_BACKUP_SUFFIX)) {
            self.plan.findings.push(Finding::CiliumExclusive { file: file.clone() });
        }
    }

    fn write(&mut self, file: &str, text: String, like: Option<&str>, reason: ChangeReason) {
        let bytes = text.into_bytes();
        self.plan.steps.push(FileStep::Write { file: file.to_owned(), bytes, like: like.map(str::to_owned), reason });
    }

    fn remove(&mut self, file: &str, reason: ChangeReason) {
        self.plan.steps.push(FileStep::Remove { file: file.to_owned(), reason });
    }

    /// Makes the entry the last element of the primary. Returns the files that have it.
    pub(super) fn chained(&mut self, primary: &str) -> BTreeSet<String> {
        let network = &self.view.networks[primary];
        match network.form {
            ConfigFormat::List => self.edit(primary),
            ConfigFormat::Single => self.convert(primary),
        }
    }

    fn edit(&mut self, name: &str) -> BTreeSet<String> {
        let network = &self.view.networks[name];
        if let Some((desired, reason)) = self.with_entry(name, network) {
            if let Some(reason) = reason {
                let stripped = network.text_without_entry();
                self.back_up(name, stripped);
                self.write(name, desired, Some(name), reason);
            }
            self.plan.entry_file = Some(name.to_owned());
        }
        BTreeSet::from([name.to_owned()])
    }

    /// Replaces a file with a single plugin by a list of the same name. The list is written before the file, which sorts first, is removed.
    fn convert(&mut self, name: &str) -> BTreeSet<String> {
        let network = &self.view.networks[name];
        let target = list_name(name);
        let kept = BTreeSet::from([name.to_owned(), target.clone()]);
        let list = network.as_list();
        let Some(desired) = self.versioned(name, network, &list) else { return kept };
        let Some(text) = text::append_entry(&desired, &self.entry) else { return kept };
        let existing = self.view.networks.get(target.as_str()).filter(|_| target != name);
        let made_by_us = self.view.backup_of(name).is_some()
            || existing.is_some_and(|existing| json_eq(&existing.text_without_entry(), &desired));
        let taken = target != name && self.view.conf_dir.contains_key(&target);
        if taken && !made_by_us {
            self.plan.findings.push(Finding::NotOurFile { file: target });
            return kept;
        }
        if self.view.backup_of(name) != Some(network.text) {
            self.write(&format!("{name}{BACKUP_SUFFIX}"), network.text.to_owned(), Some(name), ChangeReason::Backup);
        }
        if existing.is_none_or(|existing| !json_eq(existing.text, &text)) {
            self.write(&target, text, Some(name), ChangeReason::Converted);
        }
        if target != name {
            self.remove(name, ChangeReason::Converted);
        }
        self.plan.entry_file = Some(target);
        kept
    }

    pub(super) fn owned(&mut self, primary: &str, file: &str) -> BTreeSet<String> {
        let kept = BTreeSet::from([file.to_owned()]);
        let mine = self.view.is_owned(file, file);
        if self.view.conf_dir.contains_key(file) && !mine && !self.view.has_only_our_plugin(file) {
            self.plan.findings.push(Finding::NotOurFile { file: file.to_owned() });
            return kept;
        }
        let chained = &self.view.networks[primary];
        // A list that has our entry is restored, possibly to a single plugin or to an older version.
        let backup = (chained.entry_count() > 0)
            .then(|| undo::backup_of(self.view, primary, &chained.text_without_entry()))
            .flatten()
            .and_then(|backup| backup.parse().ok());
        let network = backup.as_ref().unwrap_or(chained);
        let list = network.as_list();
        let list = text::remove_entry(&list).unwrap_or_else(|| list.into_owned());
        let Some(list) = self.versioned(primary, network, &list) else { return kept };
        let Some(text) = text::append_entry(&list, &self.entry) else { return kept };
        match self.view.networks.get(file) {
            Some(current) if json_eq(current.text, &text) => {}
            Some(_) => self.write(file, text, Some(file), ChangeReason::Followed),
            None => self.write(file, text, None, ChangeReason::Missing),
        }
        if let Some(by) = self.view.networks.keys().find(|name| is_configuration(name) && **name < file) {
            self.plan.findings.push(Finding::OwnedNotFirst { file: file.to_owned(), by: (*by).to_owned() });
        }
        self.plan.entry_file = Some(file.to_owned());
        kept
    }

    /// Writes our drop-in for the primary, or returns why the runtime would not read it.
    pub(super) fn drop_in(&mut self, primary: &str) -> Result<String, String> {
        let network = &self.view.networks[primary];
        self.facts.drop_ins.clone()?;
        if network.form != ConfigFormat::List || !is_configuration(primary) {
            return Err(format!("{primary} is not a list, and runtimes read drop-ins of lists only"));
        }
        // Without our entry the list is restored, possibly to a single plugin or to an older version.
        let backup = undo::backup_of(self.view, primary, &network.text_without_entry());
        if backup.as_ref().is_some_and(|backup| backup.form() == ConfigFormat::Single) {
            return Err(format!("{primary} is a single plugin that was converted to a list"));
        }
        let version = backup.map_or_else(|| network.version.clone(), |backup| backup.version());
        if network.load_only_inlined {
            return Err(format!("{primary} disables them with loadOnlyInlinedPlugins"));
        }
        if !is_network_name(&network.name) {
            return Err(format!("the network '{}' is not a valid directory name", truncate(&network.name)));
        }
        if CniVersion::parse(&version).is_none() {
            return Err(format!("{primary} has cniVersion '{}'", truncate(&version)));
        }
        let file = format!("{}/{DROP_IN_NAME}", network.name);
        let dir = format!("{}/", network.name);
        let last = self.view.conf_dir.range(dir.clone()..).take_while(|(name, _)| name.starts_with(&dir)).last();
        if let Some((name, _)) = last.filter(|(name, _)| name.as_str() > file.as_str()) {
            return Err(format!("{name} sorts after our drop-in"));
        }
        let desired = text::to_document(&self.entry);
        let reason = match self.view.conf_dir.get(&file) {
            None => Some(ChangeReason::Missing),
            Some(ConfFile::Bytes(bytes)) if std::str::from_utf8(bytes).is_ok_and(|text| json_eq(text, &desired)) => {
                None
            }
            Some(_) => Some(ChangeReason::Different),
        };
        if let Some(reason) = reason {
            self.write(&file, desired, None, reason);
        }
        self.plan.entry_file = Some(file.clone());
        Ok(file)
    }

    pub(super) fn standalone(&mut self, name: &str, entry: &PluginEntry) {
        let desired = text::to_document(&entry.to_standalone(PLUGIN_TYPE, STANDALONE_VERSION));
        match self.view.conf_dir.get(name) {
            None => self.write(name, desired, None, ChangeReason::Missing),
            Some(_) if !self.view.has_only_our_plugin(name) => {
                self.plan.findings.push(Finding::NotOurFile { file: name.to_owned() });
                return;
            }
            Some(_) if !json_eq(self.view.networks[name].text, &desired) => {
                self.write(name, desired, Some(name), ChangeReason::Different);
            }
            Some(_) => {}
        }
        self.plan.entry_file = Some(name.to_owned());
    }

    /// Removes our own list when the network it was derived from is gone, unless a new configuration is just being written.
    pub(super) fn remove_stale_owned(&mut self, owned_name: &str) {
        if self.view.is_owned(owned_name, owned_name) && self.view.invalid.is_empty() {
            self.remove(owned_name, ChangeReason::Followed);
        }
    }

    /// Removes the entry from files where it does not belong, after it is in its place. In [`Placement::Chained`] other lists that have
    /// it keep it up to date instead: one of them may become the primary. A backup of a file that is restored is left from an interrupted plan.
    pub(super) fn remove_leftovers(&mut self, keep: &BTreeSet<String>, others_follow: bool, owned_name: &str) {
        let placed = self.plan.entry_file.clone();
        for (name, network) in &self.view.networks {
            if keep.contains(*name) {
                continue;
            }
            if !others_follow && self.view.backup_of(name) == Some(network.text) {
                self.remove(&format!("{name}{BACKUP_SUFFIX}"), ChangeReason::LeftOver);
            }
            if network.entry_count() == 0 {
                continue;
            }
            if self.view.has_only_our_plugin(name) || self.view.is_owned(name, owned_name) {
                self.remove(name, ChangeReason::LeftOver);
            } else if others_follow && network.form == ConfigFormat::List {
                self.edit(name);
            } else {
                let steps = undo::restore_steps(self.view, name, network, ChangeReason::LeftOver);
                self.plan.steps.extend(steps);
            }
        }
        for (name, file) in self.view.conf_dir {
            if undo::is_our_drop_in(name, file) && !keep.contains(name) {
                self.remove(name, ChangeReason::LeftOver);
            }
        }
        self.plan.entry_file = placed;
    }

    /// Returns the list with our entry, and why it has to change. `None` where the list has to stay as it is.
    fn with_entry(&mut self, name: &str, network: &NetworkConfig<'_>) -> Option<(String, Option<ChangeReason>)> {
        let stripped = network.text_without_entry();
        let versioned = self.versioned(name, network, &stripped)?;
        let desired = text::append_entry(&versioned, &self.entry)?;
        let reason = match network.types.iter().rposition(|kind| kind == PLUGIN_TYPE) {
            None => Some(ChangeReason::Missing),
            Some(_) if network.entry_count() > 1 => Some(ChangeReason::Duplicate),
            Some(last) if last + 1 != network.types.len() => Some(ChangeReason::NotLast),
            Some(_) if !json_eq(network.text, &desired) => Some(ChangeReason::Different),
            Some(_) => None,
        };
        Some((desired, reason))
    }

    /// Returns the list in a version that our plugin supports: its own, or the oldest that all its plugins support.
    fn versioned(&mut self, name: &str, network: &NetworkConfig<'_>, list: &str) -> Option<String> {
        if CniVersion::parse(&network.version).is_some() {
            return Some(list.to_owned());
        }
        let mut refuse = |reason: String| {
            let version = truncate(&network.version);
            self.plan.findings.push(Finding::UnsupportedVersion { file: name.to_owned(), version, reason });
            None
        };
        if !matches!(network.version.as_str(), "" | "0.1.0" | "0.2.0" | "0.3.0") {
            return refuse(format!("supported are {}", CniVersion::names().join(", ")));
        }
        let others: BTreeSet<&String> = network.types.iter().filter(|kind| *kind != PLUGIN_TYPE).collect();
        let mut candidates = CniVersion::ALL.to_vec();
        for kind in others {
            match self.facts.versions.get(kind) {
                None => drop(self.plan.plugins_to_query.insert(kind.clone())),
                Some(PluginVersions::NotInstalled) => {}
                Some(PluginVersions::Unknown(why)) => {
                    return refuse(format!("cannot query the versions of plugin {kind}: {why}"));
                }
                Some(PluginVersions::Supported(spoken)) => {
                    candidates.retain(|version| spoken.iter().any(|name| name == version.as_str()));
                }
            }
        }
        if !self.plan.plugins_to_query.is_empty() {
            return None;
        }
        match candidates.first() {
            Some(version) => text::with_version(list, version.as_str()),
            None => refuse("its plugins support no newer version in common".to_owned()),
        }
    }

    /// Writes a backup of the file without our entry, unless there is an equal one.
    fn back_up(&mut self, name: &str, stripped: String) {
        let kept = undo::backup_of(self.view, name, &stripped).is_some();
        if !kept {
            self.write(&format!("{name}{BACKUP_SUFFIX}"), stripped, Some(name), ChangeReason::Backup);
        }
    }
}
