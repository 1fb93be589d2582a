//! A finding: a fault, the object that has it, and a fix.

use std::collections::HashSet;
use std::fmt;

use crate::fault::Fault;

/// The object that a finding is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FindingObject {
    /// Kind of the object, such as `Pod`.
    pub kind: String,
    /// Empty for cluster-scoped objects.
    pub namespace: String,
    /// Empty for all objects of the kind.
    pub name: String,
}

impl FindingObject {
    pub(crate) fn new(kind: &str, namespace: &str, name: &str) -> Self {
        Self { kind: kind.to_owned(), namespace: namespace.to_owned(), name: name.to_owned() }
    }

    pub(crate) fn cluster_scoped(kind: &str, name: &str) -> Self {
        Self::new(kind, "", name)
    }
}

impl fmt::Display for FindingObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, namespace, name } = self;
        match (namespace.is_empty(), name.is_empty()) {
            (_, true) => f.write_str(kind),
            (true, false) => write!(f, "{kind} {name}"),
            (false, false) => write!(f, "{kind} {namespace}/{name}"),
        }
    }
}

/// A fault that an object has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The kind of fault.
    pub fault: &'static Fault,
    /// The object that has it.
    pub object: FindingObject,
    /// Description of the fault: one sentence without a full stop.
    pub text: String,
    /// A command, or what to do.
    pub fix: String,
    /// Number of further objects of the same owner that have the fault too.
    pub similar: usize,
}

/// Collects findings. Of several findings with the same fault and object, the first one is kept.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    all: Vec<Finding>,
    seen: HashSet<(&'static str, FindingObject)>,
}

impl Findings {
    /// Adds a finding with the fault's general fix.
    pub(crate) fn add(&mut self, fault: &'static Fault, object: FindingObject, text: impl Into<String>) {
        self.add_with_fix(fault, object, text, fault.action);
    }

    /// Adds a finding with a fix of its own.
    pub(crate) fn add_with_fix(
        &mut self,
        fault: &'static Fault,
        object: FindingObject,
        text: impl Into<String>,
        fix: impl Into<String>,
    ) {
        self.add_group(fault, object, text, fix, 0);
    }

    /// Adds a finding that `similar` further objects have too.
    pub(crate) fn add_group(
        &mut self,
        fault: &'static Fault,
        object: FindingObject,
        text: impl Into<String>,
        fix: impl Into<String>,
        similar: usize,
    ) {
        if self.seen.insert((fault.code, object.clone())) {
            self.all.push(Finding { fault, object, text: text.into(), fix: fix.into(), similar });
        }
    }

    /// Returns whether any object has the fault.
    pub(crate) fn has(&self, fault: &'static Fault) -> bool {
        self.all.iter().any(|finding| finding.fault == fault)
    }

    /// Returns whether an object with one of these names has the fault.
    pub(crate) fn has_for(&self, fault: &'static Fault, names: &HashSet<String>) -> bool {
        self.all.iter().any(|finding| finding.fault == fault && names.contains(&finding.object.name))
    }

    /// Returns the findings by descending severity, then by code and object.
    pub(crate) fn into_sorted(mut self) -> Vec<Finding> {
        self.all.sort_by(|a, b| {
            (b.fault.severity, a.fault.code, &a.object).cmp(&(a.fault.severity, b.fault.code, &b.object))
        });
        self.all
    }
}

/// Returns the first few of many names.
pub(crate) fn first_names(names: &[&str]) -> String {
    const MAX_NAMES: usize = 5;
    let shown = names.iter().take(MAX_NAMES).copied().collect::<Vec<_>>().join(", ");
    if names.len() > MAX_NAMES { format!("{shown} and {} more", names.len() - MAX_NAMES) } else { shown }
}
