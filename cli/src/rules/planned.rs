//! Reads manifests and annotations, and plans the rules of their pods.

use std::fmt;

use iptables_rules::{RuleSet, plan};
use weir_injector::settings::Settings;

use super::subject::{self, Capture, Subject};
use crate::failure::{Failure, join};
use crate::files::InputFile;
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
        let rules = match &subject.capture {
            Capture::NotInjected(_) => Ok(None),
            Capture::Configured { config, .. } => plan(config).map(Some),
        };
        match rules {
            Ok(rules) => planned.push(Planned { subject, rules }),
            Err(errors) => findings.extend(errors.iter().map(|error| format!("{}: {error}", subject.name))),
        }
    }
    if findings.is_empty() { Ok(planned) } else { Err(findings) }
}

/// The planned rules of a file.
#[derive(Debug)]
pub(crate) struct PlannedFile {
    /// Name of the file, for messages.
    pub(crate) name: String,
    pub(crate) planned: Vec<Planned>,
}

/// Reads a manifest, or a file of annotations, and plans the rules of every pod.
///
/// # Errors
/// Everything that is wrong with the file and the settings.
pub(crate) fn load(
    manifest: Option<&str>,
    annotations: Option<&str>,
    injector: &InjectorArgs,
) -> Result<PlannedFile, Failure> {
    let (input, planned) = match (manifest, annotations) {
        (_, Some(file)) => {
            if injector.is_given() {
                return Err(Failure::usage("--annotations accepts no injector settings, because nothing is injected"));
            }
            let input = InputFile::from(file);
            let text = input.read()?;
            let planned = of_annotations(&input.name(), &text);
            (input, planned)
        }
        (file, None) => {
            let input = InputFile::from(file.unwrap_or("-"));
            let (settings, text) = join(injector.load(), input.read().map_err(Failure::from))?;
            (input, of_manifest(&text, settings))
        }
    };
    let name = input.name();
    let planned = planned.map_err(|messages| Failure::findings_in(&name, &messages))?;
    Ok(PlannedFile { name, planned })
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
