//! The folder as runtimes see it.

use std::collections::BTreeMap;

use super::{BACKUP_ENDING, File, Listing};
use crate::install::network::{Invalid, Network, is_configuration};

/// Everything in the folder that parses, and why the rest does not.
pub(super) struct View<'a> {
    pub(super) listing: &'a Listing,
    pub(super) networks: BTreeMap<&'a str, Network<'a>>,
    pub(super) invalid: BTreeMap<&'a str, String>,
}

impl<'a> View<'a> {
    /// `named`: files that count whatever their names end in, because somebody named them to us. So do files that we have edited.
    pub(super) fn new(listing: &'a Listing, named: &[&str]) -> Self {
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

    pub(super) fn backup_of(&self, name: &str) -> Option<&'a str> {
        match self.listing.get(&format!("{name}{BACKUP_ENDING}"))? {
            File::Bytes(bytes) => std::str::from_utf8(bytes).ok(),
            File::Unreadable(_) => None,
        }
    }

    /// A list of ours that stands beside the file it was made from: with our entry, and never edited in place.
    pub(super) fn is_owned(&self, name: &str, owned_name: &str) -> bool {
        name == owned_name
            && self.backup_of(name).is_none()
            && self.networks.get(name).is_some_and(|network| network.ours() > 0 && !network.is_only_ours())
    }

    /// Whether a file is ours as a whole.
    pub(super) fn is_all_ours(&self, name: &str) -> bool {
        self.networks.get(name).is_some_and(Network::is_only_ours)
    }

    /// The configuration that the runtime takes, our own files aside.
    pub(super) fn primary(&self, pinned: Option<&str>, is_own: impl Fn(&str) -> bool) -> Option<&'a str> {
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
pub(super) fn list_name(name: &str) -> String {
    match name.rsplit_once('.') {
        Some((stem, "conf" | "json")) => format!("{stem}.conflist"),
        // A name that no runtime reads anyway.
        _ => name.to_owned(),
    }
}
