//! Progress of a migration, which is kept in the cluster: a run that was killed is resumed from it.
//!
//! The annotation `weir.dev/migration` of a namespace has the labels that it had before. Label and annotation change in one request, so
//! that neither is ever there without the other. The same annotation of a workload says for which phase of which run it was restarted.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use weir_injector::selection::{INJECTION_LABEL, REVISION_LABEL};

use super::object::{annotation, name};

/// Annotation with the progress.
pub(super) const MIGRATION: &str = "weir.dev/migration";
/// Labels of a namespace that choose its injector.
const LABELS: [&str; 2] = [INJECTION_LABEL, REVISION_LABEL];

/// The labels of a namespace that choose its injector.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct InjectionLabels(BTreeMap<String, String>);

impl InjectionLabels {
    /// Picks them from all labels.
    pub(super) fn of(labels: &Map<String, Value>) -> Self {
        let pick = |key: &str| Some((key.to_owned(), labels.get(key)?.as_str()?.to_owned()));
        Self(LABELS.into_iter().filter_map(pick).collect())
    }

    /// Returns those of a namespace that has moved to a revision of Weir.
    pub(super) fn of_revision(revision: &str) -> Self {
        Self(BTreeMap::from([(REVISION_LABEL.to_owned(), revision.to_owned())]))
    }

    /// Returns them as labels of an object.
    pub(super) fn labels(&self) -> Map<String, Value> {
        self.0.iter().map(|(key, value)| (key.clone(), value.clone().into())).collect()
    }

    /// Returns the patch that sets them, and removes the others.
    pub(super) fn patch(&self) -> Value {
        LABELS.into_iter().map(|key| (key.to_owned(), json!(self.0.get(key)))).collect()
    }

    /// Returns the labels as `KEY=VALUE`; `no label` without any.
    pub(super) fn describe(&self) -> String {
        let all: Vec<String> = self.0.iter().map(|(key, value)| format!("{key}={value}")).collect();
        if all.is_empty() { "no label".to_owned() } else { all.join(", ") }
    }
}

/// Phase of the migration of a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Its workloads move to Weir.
    Moving,
    /// All of them have moved.
    Moved,
    /// They go back to the former injector.
    Restoring,
}

impl Phase {
    const ALL: [(Self, &'static str); 3] =
        [(Self::Moving, "moving"), (Self::Moved, "moved"), (Self::Restoring, "restoring")];

    /// Returns the name in annotations.
    pub(super) fn name(self) -> &'static str {
        Self::ALL.iter().find(|(phase, _)| *phase == self).map_or("", |(_, name)| name)
    }

    fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| *known == name).map(|(phase, _)| *phase)
    }
}

/// Progress of a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) phase: Phase,
    /// Revision of Weir.
    pub(super) revision: String,
    /// Name of the run that has started it, which tells restarts of an earlier migration apart.
    pub(super) run: String,
    /// Labels before the migration.
    pub(super) former: InjectionLabels,
}

impl Record {
    /// Returns the record of a namespace.
    ///
    /// # Errors
    /// It is not one of this version.
    pub(super) fn of_namespace(namespace: &Value) -> Result<Option<Self>, String> {
        let parsed = annotation(namespace, MIGRATION).map(Self::parse).transpose();
        parsed.map_err(|error| format!("namespace {}: cannot read annotation {MIGRATION}: {error}", name(namespace)))
    }

    /// Parses the annotation of a namespace.
    ///
    /// # Errors
    /// The text is not a record that this version has written.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let value: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let field = |key: &str| value[key].as_str().map(str::to_owned).ok_or_else(|| format!("{key} is missing"));
        let phase = field("phase")?;
        let phase = Phase::parse(&phase).ok_or_else(|| format!("phase {phase} is unknown"))?;
        let former = value["former"].as_object().ok_or("former is missing")?;
        Ok(Self { phase, revision: field("revision")?, run: field("run")?, former: InjectionLabels::of(former) })
    }

    /// Returns the annotation of the namespace.
    pub(super) fn to_text(&self) -> String {
        json!({"phase": self.phase.name(), "revision": self.revision, "run": self.run, "former": self.former.0})
            .to_string()
    }

    /// Returns the annotation of a workload that is restarted in a phase.
    pub(super) fn marker(&self, phase: Phase) -> String {
        format!("{}/{}", self.run, phase.name())
    }

    /// Returns the record in another phase.
    pub(super) fn in_phase(&self, phase: Phase) -> Self {
        Self { phase, ..self.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_is_read_as_written() {
        let labels = json!({"istio-injection": "enabled", "team": "a"});
        let former = InjectionLabels::of(labels.as_object().unwrap());
        assert_eq!(former.patch(), json!({"istio-injection": "enabled", "istio.io/rev": null}));
        let record = Record { phase: Phase::Moving, revision: "weir".to_owned(), run: "7".to_owned(), former };
        assert_eq!(Record::parse(&record.to_text()), Ok(record.clone()));
        assert_eq!(record.marker(Phase::Restoring), "7/restoring");
        assert!(Record::parse("{}").is_err() && Record::parse(r#"{"phase":"x"}"#).unwrap_err().contains("phase x"));
    }
}
