//! Taking our entry out again: back to the kept bytes where nobody has changed the file since, else our entry alone.

use weir_protocol::version::CniVersion;

use super::view::View;
use super::{BACKUP_ENDING, Change, DROP_IN_NAME, File, Listing, Plan, Step, same};
use crate::install::network::{Form, Network};
use crate::install::text;

/// What takes every trace of ours out of the folder. Sound wherever an earlier attempt was cut off.
pub fn undo(listing: &Listing, owned_name: &str) -> Plan {
    let view = View::new(listing, &[owned_name]);
    let mut plan = Plan::default();
    for (name, network) in &view.networks {
        if network.ours() == 0 {
            continue;
        }
        if view.is_all_ours(name) || view.is_owned(name, owned_name) {
            plan.steps.push(Step::Remove { file: (*name).to_owned(), change: Change::Restored });
        } else {
            plan.steps.extend(file(&view, name, network, Change::Restored));
        }
    }
    for (name, file) in listing {
        let copy = name.ends_with(BACKUP_ENDING) && !name.contains('/');
        let done = plan.steps.iter().any(|step| step.file() == name);
        if !done && (copy || is_our_drop_in(name, file)) {
            plan.steps.push(Step::Remove { file: name.clone(), change: Change::Restored });
        }
    }
    plan
}

/// Whether a file in a network's folder is ours.
pub(super) fn is_our_drop_in(name: &str, file: &File) -> bool {
    let named = name.rsplit_once('/').is_some_and(|(_, file)| file == DROP_IN_NAME);
    // Nobody else uses the name: what is empty or half of a file there is a trace of ours as well.
    named && matches!(file, File::Bytes(_))
}

/// Steps that put one list back.
pub(super) fn file(view: &View<'_>, name: &str, network: &Network<'_>, change: Change) -> Vec<Step> {
    let name = name.to_owned();
    let stripped = network.text_without_us();
    let like = Some(name.clone());
    match original(view, &name, &stripped) {
        // The single plugin's file sorts before the list, so it counts from the moment it is there.
        Some(Original { file, text, form: Form::Single }) => {
            let copy = format!("{file}{BACKUP_ENDING}");
            // Where the file is there again, its owner has written it anew.
            let back =
                (!view.listing.contains_key(&file)).then(|| Step::Write { file, bytes: text.into(), like, change });
            back.into_iter().chain([Step::Remove { file: name, change }, Step::Remove { file: copy, change }]).collect()
        }
        Some(Original { text, .. }) => vec![
            Step::Write { file: name.clone(), bytes: text.into(), like, change },
            Step::Remove { file: format!("{name}{BACKUP_ENDING}"), change },
        ],
        None => vec![Step::Write { file: name, bytes: stripped.into_bytes(), like, change }],
    }
}

/// A kept copy that still means what the file means without us.
pub(super) struct Original<'a> {
    file: String,
    text: &'a str,
    form: Form,
}

impl Original<'_> {
    pub(super) fn form(&self) -> Form {
        self.form
    }

    /// Of a list; empty where it names none.
    pub(super) fn version(&self) -> String {
        Network::parse("x.conflist", self.text.as_bytes()).map(|network| network.version).unwrap_or_default()
    }
}

/// The kept copy of `name`, or of the single plugin's file that it was made from.
pub(super) fn original<'a>(view: &View<'a>, name: &str, stripped: &str) -> Option<Original<'a>> {
    if let Some(text) = view.backup_of(name).filter(|text| means_the_same(text, stripped)) {
        return Some(Original { file: name.to_owned(), text, form: Form::List });
    }
    let stem = name.strip_suffix(".conflist")?;
    [".conf", ".json"].into_iter().find_map(|ending| {
        let file = format!("{stem}{ending}");
        let text = view.backup_of(&file)?;
        means_the_same(&text::wrap(text)?, stripped).then_some(Original { file, text, form: Form::Single })
    })
}

/// Whether the copy is the file without us, but for a version that was raised for us.
fn means_the_same(copy: &str, stripped: &str) -> bool {
    if same(copy, stripped) {
        return true;
    }
    CniVersion::ALL
        .into_iter()
        .filter(|_| !names_a_version(copy))
        .any(|version| text::with_version(copy, version.as_str()).is_some_and(|raised| same(&raised, stripped)))
}

/// Whether a list is in a version that is never raised.
fn names_a_version(text: &str) -> bool {
    Network::parse("x.conflist", text.as_bytes()).is_ok_and(|network| CniVersion::parse(&network.version).is_some())
}
