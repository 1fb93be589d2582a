//! What was found: a fault, the object that has it, and what to do.

use std::collections::HashSet;

use serde_json::Value;

use super::fault::Fault;
use super::suppress::Suppressed;

/// The object that a finding is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Object {
    /// `Pod`.
    pub(crate) kind: String,
    /// Empty for what belongs to the cluster.
    pub(crate) namespace: String,
    /// Its name; empty for all of the kind.
    pub(crate) name: String,
}

impl Object {
    /// One of a namespace.
    pub(crate) fn new(kind: &str, namespace: &str, name: &str) -> Self {
        Self { kind: kind.to_owned(), namespace: namespace.to_owned(), name: name.to_owned() }
    }

    /// One that belongs to the cluster.
    pub(crate) fn global(kind: &str, name: &str) -> Self {
        Self::new(kind, "", name)
    }

    /// What an object as the API server has it is called.
    pub(crate) fn of(kind: &str, object: &Value) -> Self {
        let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default();
        Self::new(kind, text("namespace"), text("name"))
    }
}

impl std::fmt::Display for Object {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { kind, namespace, name } = self;
        match (namespace.is_empty(), name.is_empty()) {
            (_, true) => f.write_str(kind),
            (true, false) => write!(f, "{kind} {name}"),
            (false, false) => write!(f, "{kind} {namespace}/{name}"),
        }
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    /// Of which kind.
    pub(crate) fault: &'static Fault,
    /// Where.
    pub(crate) object: Object,
    /// What is wrong, in one sentence without its end.
    pub(crate) text: String,
    /// A command, or what to do.
    pub(crate) fix: String,
    /// Objects of the same owner that have it too.
    pub(crate) alike: usize,
}

/// Findings in the making: of one fault of one object the first counts.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    all: Vec<Finding>,
    seen: HashSet<(&'static str, Object)>,
}

impl Findings {
    /// Something is wrong, and the fault's own advice is all there is to say.
    pub(crate) fn add(&mut self, fault: &'static Fault, object: Object, text: impl Into<String>) {
        self.fixed(fault, object, text, fault.action);
    }

    /// Something is wrong, and this helps.
    pub(crate) fn fixed(
        &mut self,
        fault: &'static Fault,
        object: Object,
        text: impl Into<String>,
        fix: impl Into<String>,
    ) {
        self.group(fault, object, text, fix, 0);
    }

    /// Something is wrong with an object and others like it.
    pub(crate) fn group(
        &mut self,
        fault: &'static Fault,
        object: Object,
        text: impl Into<String>,
        fix: impl Into<String>,
        alike: usize,
    ) {
        if self.seen.insert((fault.code, object.clone())) {
            self.all.push(Finding { fault, object, text: text.into(), fix: fix.into(), alike });
        }
    }

    /// Whether a fault was found anywhere.
    pub(crate) fn has(&self, fault: &'static Fault) -> bool {
        self.all.iter().any(|finding| finding.fault == fault)
    }

    /// Whether a fault was found of an object with one of these names.
    pub(crate) fn has_of(&self, fault: &'static Fault, names: &HashSet<String>) -> bool {
        self.all.iter().any(|finding| finding.fault == fault && names.contains(&finding.object.name))
    }

    /// What was found and is not suppressed: the worst first, then by code and object.
    pub(crate) fn into_sorted(mut self, suppressed: &[Suppressed]) -> Vec<Finding> {
        self.all.retain(|finding| !suppressed.iter().any(|rule| rule.fits(finding)));
        self.all.sort_by(|a, b| {
            (b.fault.severity, a.fault.code, &a.object).cmp(&(a.fault.severity, b.fault.code, &b.object))
        });
        self.all
    }
}
