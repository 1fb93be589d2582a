//! Removes our entry again: restores the backup where the file is unchanged since, else removes the entry alone.

use weir_protocol::version::CniVersion;

use super::model::{BACKUP_SUFFIX, ConfDir, ConfFile, DROP_IN_NAME, Plan, json_eq};
use super::step::{ChangeReason, FileStep};
use super::view::ConfDirView;
use crate::install::network::{ConfigFormat, InvalidConfig, NetworkConfig};
use crate::install::text;

/// Plans the removal of everything of ours from a configuration directory, also after an interrupted attempt.
pub fn undo(conf_dir: &ConfDir, owned_name: &str) -> Plan {
    let view = ConfDirView::new(conf_dir, &[owned_name]);
    let mut plan = Plan::default();
    for (name, network) in &view.networks {
        if network.entry_count() == 0 {
            continue;
        }
        if view.has_only_our_plugin(name) || view.is_owned(name, owned_name) {
            plan.steps.push(FileStep::Remove { file: (*name).to_owned(), reason: ChangeReason::Restored });
        } else {
            plan.steps.extend(restore_steps(&view, name, network, ChangeReason::Restored));
        }
    }
    for (name, file) in conf_dir {
        let copy = name.ends_with(BACKUP_SUFFIX) && !name.contains('/');
        let done = plan.steps.iter().any(|step| step.file() == name);
        if !done && (copy || is_our_drop_in(name, file)) {
            plan.steps.push(FileStep::Remove { file: name.clone(), reason: ChangeReason::Restored });
        }
    }
    plan
}

/// Returns whether a drop-in of a network is ours.
pub(super) fn is_our_drop_in(name: &str, file: &ConfFile) -> bool {
    let named = name.rsplit_once('/').is_some_and(|(_, file)| file == DROP_IN_NAME);
    // Only we use the name, so an incomplete file is ours as well.
    named && matches!(file, ConfFile::Bytes(_))
}

/// Returns the steps that restore one list.
pub(super) fn restore_steps(
    view: &ConfDirView<'_>,
    name: &str,
    network: &NetworkConfig<'_>,
    reason: ChangeReason,
) -> Vec<FileStep> {
    let name = name.to_owned();
    let stripped = network.text_without_entry();
    let like = Some(name.clone());
    match backup_of(view, &name, &stripped) {
        // The single plugin's file sorts before the list, so the runtime uses it as soon as it exists.
        Some(Backup { file, text, form: ConfigFormat::Single }) => {
            let copy = format!("{file}{BACKUP_SUFFIX}");
            // Where the file exists, its owner has written it again.
            let back = (!view.conf_dir.contains_key(&file)).then(|| FileStep::Write {
                file,
                bytes: text.into(),
                like,
                reason,
            });
            back.into_iter()
                .chain([FileStep::Remove { file: name, reason }, FileStep::Remove { file: copy, reason }])
                .collect()
        }
        Some(Backup { text, .. }) => vec![
            FileStep::Write { file: name.clone(), bytes: text.into(), like, reason },
            FileStep::Remove { file: format!("{name}{BACKUP_SUFFIX}"), reason },
        ],
        None => vec![FileStep::Write { file: name, bytes: stripped.into_bytes(), like, reason }],
    }
}

/// A backup that still equals the file without our entry.
pub(super) struct Backup<'a> {
    file: String,
    text: &'a str,
    form: ConfigFormat,
}

impl<'a> Backup<'a> {
    pub(super) fn form(&self) -> ConfigFormat {
        self.form
    }

    /// Parses the network that a restored file has.
    pub(super) fn parse(&self) -> Result<NetworkConfig<'a>, InvalidConfig> {
        NetworkConfig::parse(&self.file, self.text.as_bytes())
    }

    /// Returns the version of a list; empty where it has none.
    pub(super) fn version(&self) -> String {
        self.parse().map(|network| network.version).unwrap_or_default()
    }
}

/// Returns the backup of `name`, or of the single plugin's file that it was converted from.
pub(super) fn backup_of<'a>(view: &ConfDirView<'a>, name: &str, stripped: &str) -> Option<Backup<'a>> {
    if let Some(text) = view.backup_of(name).filter(|text| equals_backup(text, stripped)) {
        return Some(Backup { file: name.to_owned(), text, form: ConfigFormat::List });
    }
    let stem = name.strip_suffix(".conflist")?;
    [".conf", ".json"].into_iter().find_map(|extension| {
        let file = format!("{stem}{extension}");
        let text = view.backup_of(&file)?;
        is_backup(text, stripped).then_some(Backup { file, text, form: ConfigFormat::Single })
    })
}

/// Returns whether the list without our entry is that of a single plugin's backup.
pub(super) fn is_backup(single: &str, stripped: &str) -> bool {
    text::to_conflist(single).is_some_and(|list| equals_backup(&list, stripped))
}

/// Returns whether the backup equals the file without our entry, except for a raised version.
fn equals_backup(copy: &str, stripped: &str) -> bool {
    if json_eq(copy, stripped) {
        return true;
    }
    CniVersion::ALL
        .into_iter()
        .filter(|_| !names_a_version(copy))
        .any(|version| text::with_version(copy, version.as_str()).is_some_and(|raised| json_eq(&raised, stripped)))
}

/// Returns whether a list has a version that is never raised.
fn names_a_version(text: &str) -> bool {
    NetworkConfig::parse("x.conflist", text.as_bytes())
        .is_ok_and(|network| CniVersion::parse(&network.version).is_some())
}
