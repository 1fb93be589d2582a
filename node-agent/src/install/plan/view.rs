//! The configuration directory as runtimes see it.

use std::collections::BTreeMap;

use super::model::{BACKUP_SUFFIX, ConfDir, ConfFile};
use super::undo;
use crate::install::network::{ConfigFormat, InvalidConfig, NetworkConfig, is_configuration};

/// The valid configurations of a directory, and why the others are invalid.
pub(super) struct ConfDirView<'a> {
    pub(super) conf_dir: &'a ConfDir,
    pub(super) networks: BTreeMap<&'a str, NetworkConfig<'a>>,
    pub(super) invalid: BTreeMap<&'a str, String>,
}

impl<'a> ConfDirView<'a> {
    /// `named`: files that count whatever their extension, because a flag names them. So do files that have a backup.
    pub(super) fn new(conf_dir: &'a ConfDir, named: &[&str]) -> Self {
        let mut view = Self { conf_dir, networks: BTreeMap::new(), invalid: BTreeMap::new() };
        for (name, file) in conf_dir {
            let counts = is_configuration(name) || named.contains(&name.as_str()) || view.backup_of(name).is_some();
            if name.contains('/') || !counts {
                continue;
            }
            let parsed = match file {
                ConfFile::Bytes(bytes) => {
                    NetworkConfig::parse(name, bytes).map_err(|why: InvalidConfig| why.to_string())
                }
                ConfFile::Unreadable(why) => Err(why.clone()),
            };
            match parsed {
                Ok(network) => drop(view.networks.insert(name, network)),
                Err(why) => drop(view.invalid.insert(name, why)),
            }
        }
        view
    }

    pub(super) fn backup_of(&self, name: &str) -> Option<&'a str> {
        match self.conf_dir.get(&format!("{name}{BACKUP_SUFFIX}"))? {
            ConfFile::Bytes(bytes) => std::str::from_utf8(bytes).ok(),
            ConfFile::Unreadable(_) => None,
        }
    }

    /// Returns whether a file is our own list, derived from the primary: it has our entry and others, and no backup.
    pub(super) fn is_owned(&self, name: &str, owned_name: &str) -> bool {
        name == owned_name
            && self.backup_of(name).is_none()
            && self
                .networks
                .get(name)
                .is_some_and(|network| network.entry_count() > 0 && !network.has_only_our_plugin())
    }

    /// Returns whether a file has our plugin and no other.
    pub(super) fn has_only_our_plugin(&self, name: &str) -> bool {
        self.networks.get(name).is_some_and(NetworkConfig::has_only_our_plugin)
    }

    /// Returns the file that the runtime uses, without our own files.
    pub(super) fn primary(&self, pinned: Option<&str>, is_own: impl Fn(&str) -> bool) -> Option<&'a str> {
        if let Some(pinned) = pinned {
            let exact = self.networks.keys().copied().find(|name| *name == pinned);
            return exact.or_else(|| {
                let other_extension = other_extension(pinned)?;
                self.networks.keys().copied().find(|name| *name == other_extension)
            });
        }
        let first = self.networks.keys().copied().find(|name| is_configuration(name) && !is_own(name))?;
        Some(self.recreated_source(first).unwrap_or(first))
    }

    /// Returns the file `x.json` that the list `name` was converted from, where its owner has written it again; it sorts after the list.
    fn recreated_source(&self, name: &str) -> Option<&'a str> {
        let stem = name.strip_suffix(".conflist")?;
        let (source, source_file) = self.networks.get_key_value(format!("{stem}.json").as_str())?;
        let (list, backup) = (&self.networks[name], self.backup_of(source)?);
        let stripped = list.text_without_entry();
        // The list is of the old text, or the backup is of the new one already.
        let has_source = || backup == source_file.text || undo::is_backup(backup, &stripped);
        let was_a_list =
            || undo::backup_of(self, name, &stripped).is_some_and(|backup| backup.form() == ConfigFormat::List);
        let is_converted = list.entry_count() > 0 && has_source() && !was_a_list();
        (is_converted && !self.has_only_our_plugin(source)).then_some(*source)
    }
}

/// Returns the name with the other of the extensions .conf and .conflist.
fn other_extension(name: &str) -> Option<String> {
    match name.rsplit_once('.')? {
        (stem, "conf") => Some(format!("{stem}.conflist")),
        (stem, "conflist") => Some(format!("{stem}.conf")),
        _ => None,
    }
}

/// Returns the name of the list that replaces a single plugin's file.
pub(super) fn list_name(name: &str) -> String {
    match name.rsplit_once('.') {
        Some((stem, "conf" | "json")) => format!("{stem}.conflist"),
        // No runtime reads this name.
        _ => name.to_owned(),
    }
}
