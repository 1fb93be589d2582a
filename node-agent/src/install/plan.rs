//! Which file, where in it, and in which order of steps: a function of what lies in the configuration folder.
//!
//! ```text
//! listing ──▶ parse ──▶ choose the primary ──▶ what each file should be ──▶ steps, findings
//! ```
//!
//! Each step is atomic and leaves a folder in which the runtime finds a network wherever it found one before; a plan that was cut off
//! anywhere and made anew ends in the same state. A folder in order gives a plan without steps, so the plan is the check as well.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};
use weir_cni::entry::{PLUGIN_TYPE, PluginEntry};
use weir_cni::netconf::shorten;
use weir_cni::version::CniVersion;

use super::finding::Finding;
use super::network::{Form, Invalid, Network, is_configuration, is_network_name};
use super::text;

mod undo;

pub use undo::undo;

/// Ending of the copy of a file as it was without us. Runtimes do not read it.
pub const BACKUP_ENDING: &str = ".weir-backup";
/// Name of our file in a network's folder of drop-ins; it has to sort last.
pub const DROP_IN_NAME: &str = "zz-weir.conf";
/// Name of our own configuration where no other was asked for; that of Istio with our name in it.
pub const STANDALONE_NAME: &str = "YYY-weir-cni.conf";
/// Version of a configuration of our own: every Multus speaks it.
const STANDALONE_VERSION: CniVersion = CniVersion::V0_3_1;
/// What Cilium appends to configurations that it sets aside.
const CILIUM_ASIDE: &str = ".cilium_bak";
/// Plugins of other meshes that program the same pods.
const OTHER_MESHES: [&str; 5] = ["istio-cni", "linkerd-cni", "kuma-cni", "consul-cni", "osm-cni"];

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

/// Why a file is written or removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// The copy of a file as it was without us.
    Backup,
    /// Our entry was not there.
    Missing,
    /// Our entry was not the last one.
    NotLast,
    /// There were several entries of ours.
    Duplicate,
    /// Our entry said something else.
    Different,
    /// A single plugin became a list.
    Converted,
    /// Our list followed the primary.
    Followed,
    /// What we left behind in another placement.
    LeftOver,
    /// Back to what it was without us.
    Restored,
}

impl Change {
    /// Name for logs and labels.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Backup => "backup",
            Self::Missing => "missing",
            Self::NotLast => "not_last",
            Self::Duplicate => "duplicate",
            Self::Different => "different",
            Self::Converted => "converted",
            Self::Followed => "followed",
            Self::LeftOver => "left_over",
            Self::Restored => "restored",
        }
    }
}

/// One atomic step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Replace or make a file, whole.
    Write {
        /// Its name.
        file: String,
        /// What will be in it.
        bytes: Vec<u8>,
        /// Whose mode and owner it gets; a new file's own defaults otherwise.
        like: Option<String>,
        /// Why.
        change: Change,
    },
    /// Remove a file.
    Remove {
        /// Its name.
        file: String,
        /// Why.
        change: Change,
    },
}

impl Step {
    /// Why.
    pub const fn change(&self) -> Change {
        let (Self::Write { change, .. } | Self::Remove { change, .. }) = self;
        *change
    }

    /// On which file.
    pub fn file(&self) -> &str {
        let (Self::Write { file, .. } | Self::Remove { file, .. }) = self;
        file
    }
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

/// Everything in the folder that parses, and why the rest does not.
struct View<'a> {
    listing: &'a Listing,
    networks: BTreeMap<&'a str, Network<'a>>,
    invalid: BTreeMap<&'a str, String>,
}

impl<'a> View<'a> {
    /// `named`: files that count whatever their names end in, because somebody named them to us. So do files that we have edited.
    fn new(listing: &'a Listing, named: &[&str]) -> Self {
        let mut view = Self { listing, networks: BTreeMap::new(), invalid: BTreeMap::new() };
        for (name, file) in listing {
            let counts = is_configuration(name) || named.contains(&name.as_str()) || view.backup_of(name).is_some();
            if name.contains('/') || !counts {
                continue;
            }
            let parsed = match file {
                File::Bytes(bytes) => Network::parse(name, bytes).map_err(|why: Invalid| why.to_string()),
                File::Unreadable(why) => Err(why.clone()),
            };
            match parsed {
                Ok(network) => drop(view.networks.insert(name, network)),
                Err(why) => drop(view.invalid.insert(name, why)),
            }
        }
        view
    }

    fn backup_of(&self, name: &str) -> Option<&'a str> {
        match self.listing.get(&format!("{name}{BACKUP_ENDING}"))? {
            File::Bytes(bytes) => std::str::from_utf8(bytes).ok(),
            File::Unreadable(_) => None,
        }
    }

    /// A list of ours that stands beside the file it was made from: with our entry, and never edited in place.
    fn is_owned(&self, name: &str, owned_name: &str) -> bool {
        name == owned_name
            && self.backup_of(name).is_none()
            && self.networks.get(name).is_some_and(|network| network.ours() > 0 && !network.is_only_ours())
    }

    /// Whether a file is ours as a whole.
    fn is_all_ours(&self, name: &str) -> bool {
        self.networks.get(name).is_some_and(Network::is_only_ours)
    }

    /// The configuration that the runtime takes, our own files aside.
    fn primary(&self, pinned: Option<&str>, is_own: impl Fn(&str) -> bool) -> Option<&'a str> {
        if let Some(pinned) = pinned {
            let exact = self.networks.keys().copied().find(|name| *name == pinned);
            return exact.or_else(|| {
                let twin = twin(pinned)?;
                self.networks.keys().copied().find(|name| *name == twin)
            });
        }
        let first = self.networks.keys().copied().find(|name| is_configuration(name) && !is_own(name))?;
        Some(self.written_anew(first).unwrap_or(first))
    }

    /// The file `x.json` of which we made the list `name`, where it is there again: it sorts after the list and is what its owner wants all the same.
    fn written_anew(&self, name: &str) -> Option<&'a str> {
        let source = format!("{}.json", name.strip_suffix(".conflist")?);
        let (source, _) = self.networks.get_key_value(source.as_str())?;
        (self.networks[name].ours() > 0 && self.backup_of(source).is_some()).then_some(*source)
    }
}

/// The same configuration in the other form.
fn twin(name: &str) -> Option<String> {
    match name.rsplit_once('.')? {
        (stem, "conf") => Some(format!("{stem}.conflist")),
        (stem, "conflist") => Some(format!("{stem}.conf")),
        _ => None,
    }
}

/// The list that a single plugin's file becomes.
fn list_name(name: &str) -> String {
    match name.rsplit_once('.') {
        Some((stem, "conf" | "json")) => format!("{stem}.conflist"),
        // A name that no runtime reads anyway.
        _ => name.to_owned(),
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

struct Draft<'a> {
    view: &'a View<'a>,
    facts: &'a Facts,
    entry: Map<String, Value>,
    plan: Plan,
}

impl Draft<'_> {
    /// Findings that do not depend on what is done.
    fn look_around(
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
    fn chained(&mut self, primary: &str) -> BTreeSet<String> {
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

    fn owned(&mut self, primary: &str, file: &str) -> BTreeSet<String> {
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
    fn drop_in(&mut self, primary: &str) -> Result<String, String> {
        let network = &self.view.networks[primary];
        self.facts.drop_ins.clone()?;
        if network.form != Form::List || !is_configuration(primary) {
            return Err(format!("{primary} is no list, and runtimes read drop-ins for lists only"));
        }
        let stripped = network.text_without_us();
        if undo::original(self.view, primary, &stripped).is_some_and(|original| original.form() == Form::Single) {
            return Err(format!("{primary} is a list only because we made it one"));
        }
        if network.inlined_only {
            return Err(format!("{primary} forbids them with loadOnlyInlinedPlugins"));
        }
        if !is_network_name(&network.name) {
            return Err(format!("the network '{}' cannot be the name of a folder", shorten(&network.name)));
        }
        if CniVersion::parse(&network.version).is_none() {
            return Err(format!("{primary} has cniVersion '{}'", shorten(&network.version)));
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

    fn standalone(&mut self, name: &str, entry: &PluginEntry) {
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
    fn without_primary(&mut self, owned_name: &str) {
        if self.view.is_owned(owned_name, owned_name) && self.view.invalid.is_empty() {
            self.remove(owned_name, Change::Followed);
        }
    }

    /// What carries our entry although it is not where the entry belongs: lists that may be next follow in the placement `chained`; the rest is put
    /// back, after the new place is made.
    fn left_overs(&mut self, keep: &BTreeSet<String>, others_follow: bool, owned_name: &str) {
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

/// Whether two texts are the same JSON.
fn same(a: &str, b: &str) -> bool {
    let parse = |text: &str| serde_json::from_str::<Value>(text);
    a == b || matches!((parse(a), parse(b)), (Ok(a), Ok(b)) if a == b)
}

#[cfg(test)]
mod tests;
