//! Reads manifests and annotations, and plans the rules of their pods.

use std::fmt;

use iptables_rules::{RuleSet, plan};
use weir_injector::settings::Settings;

use super::subject::{self, Subject};
use crate::failure::{Failure, join};
use crate::files::{InputArgs, InputFile};
use crate::manifest::{pods, proxy_configs, stream};
use crate::settings::InjectorArgs;

/// A subject with its rules; `None` if it gets none.
#[derive(Debug)]
pub(crate) struct Planned {
    pub(crate) subject: Subject,
    pub(crate) rules: Option<RuleSet>,
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.subject.fmt(f)
    }
}

/// Plans the rules of all subjects.
///
/// # Errors
/// Every unsupported setting.
fn plan_all(subjects: Vec<Subject>) -> Result<Vec<Planned>, Vec<String>> {
    let mut planned = Vec::new();
    let mut findings = Vec::new();
    for subject in subjects {
        match subject.capture.config().map(plan).transpose() {
            Ok(rules) => planned.push(Planned { subject, rules }),
            Err(errors) => findings.extend(errors.iter().map(|error| format!("{}: {error}", subject.name))),
        }
    }
    if findings.is_empty() { Ok(planned) } else { Err(findings) }
}

/// Reads manifests, or a file of annotations, and plans the rules of every pod. Says on standard error which input has no pods.
///
/// # Errors
/// Everything that is wrong with the files and the settings.
pub(crate) fn load(
    manifests: &InputArgs,
    annotations: Option<&str>,
    injector: &InjectorArgs,
) -> Result<Vec<Planned>, Failure> {
    if let Some(file) = annotations {
        if injector.is_given() {
            return Err(Failure::usage("--annotations accepts no injector settings, because nothing is injected"));
        }
        let input = InputFile::from(file);
        let planned = of_annotations(&input.name(), &input.read()?);
        return planned.map_err(|messages| Failure::findings_in(&input.name(), &messages));
    }
    let (mut settings, inputs) = join(injector.load(), manifests.read())?;
    settings.proxy_configs = proxy_configs::in_inputs(&inputs, None)?;
    let mut planned = Vec::new();
    let mut failures = Vec::new();
    for input in &inputs {
        match subjects_in(&input.text, &settings).and_then(plan_all) {
            Ok(found) if found.is_empty() => eprintln!("weir: {}: no pods found", input.name),
            Ok(found) => planned.extend(found),
            Err(messages) => failures.extend(messages.iter().map(|message| format!("{}: {message}", input.name))),
        }
    }
    if failures.is_empty() { Ok(planned) } else { Err(Failure::findings(failures)) }
}

/// Plans the rules of every pod of a manifest.
///
/// # Errors
/// Everything that is wrong with the manifest.
pub(crate) fn of_manifest(text: &str, mut settings: Settings) -> Result<Vec<Planned>, Vec<String>> {
    settings.proxy_configs = proxy_configs::in_stream(text, None)?;
    plan_all(subjects_in(text, &settings)?)
}

/// Plans the rules of annotations.
///
/// # Errors
/// Everything that is wrong with them.
pub(crate) fn of_annotations(name: &str, text: &str) -> Result<Vec<Planned>, Vec<String>> {
    plan_all(vec![subject::from_annotations(name, text)?])
}

/// Returns every pod of a stream, or everything that is wrong with it.
fn subjects_in(text: &str, settings: &Settings) -> Result<Vec<Subject>, Vec<String>> {
    let documents = stream::split(text).map_err(|strays| strays.iter().map(ToString::to_string).collect::<Vec<_>>())?;
    let mut subjects = Vec::new();
    let mut findings = Vec::new();
    for document in documents {
        let mut value = match document.parse() {
            Ok(value) => value,
            Err(error) => {
                findings.push(format!("{document}: {error}"));
                continue;
            }
        };
        match pods::find(&mut value) {
            Ok(holders) => {
                for holder in holders {
                    match subject::from_holder(&holder, settings) {
                        Ok(subject) => subjects.push(Subject { line: document.line, ..subject }),
                        Err(errors) => {
                            findings.extend(errors.iter().map(|error| holder.finding(&document, error)));
                        }
                    }
                }
            }
            Err(errors) => findings.extend(errors.iter().map(|error| format!("{document}: {error}"))),
        }
    }
    if findings.is_empty() { Ok(subjects) } else { Err(findings) }
}
