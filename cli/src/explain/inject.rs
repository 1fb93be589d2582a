//! `weir explain inject`: explains why a pod is injected or not, rule by rule.
//!
//! ```text
//! manifest ─▶ namespaces, pods ─▶ selection (API server) ─▶ decision (injector) ─▶ inject (what the pod gets) ─▶ text | json
//! ```

mod args;
mod explanation;
mod installed;
mod print;

use std::collections::{HashMap, HashSet};
use std::process::ExitCode;

use serde_json::Value;
use weir_injector::settings::Settings;

pub(super) use args::ExplainInjectArgs;

use crate::failure::{Failure, join};
use crate::files::{self, InputText};
use crate::manifest::pods::{self, PodHolder};
use crate::manifest::stream::{self, Document};
use crate::manifest::{namespaces, proxy_configs};
use crate::output::OutputFormat;
use explanation::{ExplainContext, InjectExplanation, explain_pod};
use installed::Installed;

/// Runs `weir explain inject`.
///
/// # Errors
/// Everything that is wrong with the command line and the input.
pub(super) fn run(args: &ExplainInjectArgs) -> Result<ExitCode, Failure> {
    let (mut settings, inputs) = join(args.injector.load_as_webhook(), args.inputs.read())?;
    settings.proxy_configs = proxy_configs::in_inputs(&inputs, Some(&args.namespace))?;
    let explanations = explain(&inputs, args, &settings)?;
    if explanations.is_empty() {
        eprintln!("weir: no pods found");
    }
    let text = match args.output {
        OutputFormat::Text => print::text(&explanations),
        OutputFormat::Json => print::json(&explanations),
    };
    files::write(None, &text)?;
    Ok(ExitCode::SUCCESS)
}

/// Explains every pod of the inputs. Namespaces of any of them count.
///
/// # Errors
/// Everything that is wrong with the inputs, or the cluster that is named cannot be read.
fn explain(
    inputs: &[InputText],
    args: &ExplainInjectArgs,
    settings: &Settings,
) -> Result<Vec<InjectExplanation>, Failure> {
    let mut findings = Vec::new();
    let mut values: Vec<(&str, Document<'_>, Value)> = Vec::new();
    for InputText { name, text } in inputs {
        let documents = stream::split(text).unwrap_or_else(|strays| {
            findings.extend(strays.iter().map(|stray| format!("{name}: {stray}")));
            Vec::new()
        });
        for document in documents {
            match document.parse() {
                Ok(value) => values.push((name, document, value)),
                Err(error) => findings.push(format!("{name}: {document}: {error}")),
            }
        }
    }
    let mut namespaces = HashMap::new();
    for (.., value) in &values {
        namespaces::collect(value, &mut namespaces);
    }
    let installed = match args.injector.connect_args() {
        None => None,
        Some(connect) => {
            let mut names = HashSet::from([args.namespace.clone()]);
            for (.., value) in &values {
                collect_names(value, &mut names);
            }
            Some(Installed::read(connect, &names)?)
        }
    };
    let context = ExplainContext { namespaces: &namespaces, installed: installed.as_ref(), args, settings };
    let mut explanations = Vec::new();
    for (name, document, value) in &mut values {
        let explained = pods::find(value)
            .map_err(|errors| errors.iter().map(|error| format!("{document}: {error}")).collect::<Vec<_>>());
        let explained = explained.and_then(|holders| explain_all(&holders, document, &context));
        match explained {
            Ok(found) => explanations.extend(found),
            Err(messages) => findings.extend(messages.iter().map(|message| format!("{name}: {message}"))),
        }
    }
    if findings.is_empty() { Ok(explanations) } else { Err(Failure::findings(findings)) }
}

/// Explains the pods of a document, or returns everything that is wrong with them.
fn explain_all(
    holders: &[PodHolder<'_>],
    document: &Document<'_>,
    context: &ExplainContext<'_>,
) -> Result<Vec<InjectExplanation>, Vec<String>> {
    let mut explanations = Vec::new();
    let mut findings = Vec::new();
    for holder in holders {
        match explain_pod(holder, context) {
            Ok(explanation) => explanations.push(explanation),
            Err(errors) => findings.extend(errors.iter().map(|error| holder.finding(document, error))),
        }
    }
    if findings.is_empty() { Ok(explanations) } else { Err(findings) }
}

/// Collects the namespaces that objects are in, also as items of lists.
fn collect_names(object: &Value, names: &mut HashSet<String>) {
    names.extend(object["metadata"]["namespace"].as_str().map(str::to_owned));
    object["items"].as_array().into_iter().flatten().for_each(|item| collect_names(item, names));
}
