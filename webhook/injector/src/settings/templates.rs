//! The templates by name: those that are built in, and those that the configuration brings along.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::reader::Node;
use crate::inject::template::data::Installation;
use crate::inject::template::{UserTemplate, shipped};

/// Where a template comes from.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Source {
    /// A built-in one of the same name.
    BuiltIn,
    /// The gateway controller's; not for pods.
    Controller,
    /// The administrator's.
    User(Arc<UserTemplate>),
}

/// What the documents say about templates; built-in ones that they do not mention are there all the same.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Templates {
    named: BTreeMap<String, Source>,
    installation: Option<Arc<Installation>>,
}

impl Templates {
    /// Reads maps of names and texts; later ones replace the earlier.
    pub(super) fn read(maps: &[Node<'_>]) -> Self {
        let mut named = BTreeMap::new();
        for map in maps {
            for (name, text) in map.text_map() {
                let source = if shipped::is_of_the_controller(&name) {
                    Source::Controller
                } else if shipped::is_shipped(&name, &text) {
                    Source::BuiltIn
                } else {
                    match UserTemplate::parse(&name, &text) {
                        Ok(template) => Source::User(Arc::new(template)),
                        Err(reasons) => {
                            for reason in reasons {
                                map.at(&name).refuse(reason);
                            }
                            continue;
                        }
                    }
                };
                named.insert(name, source);
            }
        }
        Self { named, installation: None }
    }

    /// Notes the documents, where some template can ask for them.
    pub(super) fn set_installation(&mut self, installation: impl FnOnce() -> Installation) {
        if self.named.values().any(|source| matches!(source, Source::User(_))) {
            self.installation = Some(Arc::new(installation()));
        }
    }

    /// The template of that name, where the documents have one.
    pub(crate) fn get(&self, name: &str) -> Option<&Source> {
        self.named.get(name)
    }

    /// Names of those that only the documents have.
    pub(crate) fn own_names(&self) -> impl Iterator<Item = &str> {
        self.named.iter().filter(|(_, source)| matches!(source, Source::User(_))).map(|(name, _)| name.as_str())
    }

    /// What templates are given of the installation.
    pub(crate) fn installation(&self) -> Option<&Installation> {
        self.installation.as_deref()
    }
}
