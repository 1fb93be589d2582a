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
use crate::files::{self, InputFile};
use crate::manifest::stream::{self, Document};
use crate::manifest::{namespaces, pods, proxy_configs};
use crate::output::OutputFormat;
use explanation::{ExplainContext, InjectExplanation, explain_pod};
use installed::Installed;

/// Runs `weir explain inject`.
///
/// # Errors
/// Everything that is wrong with the command line and the input.
pub(super) fn run(args: &ExplainInjectArgs) -> Result<ExitCode, Failure> {
    let input = InputFile::from(args.filename.as_str());
    let (mut settings, text) = join(args.injector.load_as_webhook(), input.read().map_err(Failure::from))?;
    let findings_in = |findings: Vec<String>| Failure::findings_in(&input.name(), &findings);
    settings.proxy_configs = proxy_configs::in_stream(&text, Some(&args.namespace)).map_err(findings_in)?;
    let explanations = explain(&text, args, &settings)?.map_err(findings_in)?;
    if explanations.is_empty() {
        eprintln!("weir: {}: no pods found", input.name());
    }
    let text = match args.format {
        OutputFormat::Text => print::text(&explanations),
        OutputFormat::Json => print::json(&explanations),
    };
    files::write(None, &text)?;
    Ok(ExitCode::SUCCESS)
}

/// Explains every pod of a text; the inner error has the findings in it.
///
/// # Errors
/// The cluster that is named cannot be read.
fn explain(
    text: &str,
    args: &ExplainInjectArgs,
    settings: &Settings,
) -> Result<Result<Vec<InjectExplanation>, Vec<String>>, Failure> {
    let documents = match stream::split(text) {
        Ok(documents) => documents,
        Err(strays) => return Ok(Err(strays.iter().map(ToString::to_string).collect())),
    };
    let mut findings = Vec::new();
    let mut values: Vec<(&Document<'_>, Value)> = Vec::new();
    for document in &documents {
        match document.parse() {
            Ok(value) => values.push((document, value)),
            Err(error) => findings.push(format!("{document}: {error}")),
        }
    }
    let mut namespaces = HashMap::new();
    for (_, value) in &values {
        namespaces::collect(value, &mut namespaces);
    }
    let installed = match args.injector.connect_args() {
        None => None,
        Some(connect) => {
            let mut names = HashSet::from([args.namespace.clone()]);
            for (_, value) in &values {
                collect_names(value, &mut names);
            }
            Some(Installed::read(connect, &names)?)
        }
    };
    let context = ExplainContext { namespaces: &namespaces, installed: installed.as_ref(), args, settings };
    let mut explanations = Vec::new();
    for (document, value) in &mut values {
        match pods::find(value) {
            Err(errors) => findings.extend(errors.iter().map(|error| format!("{document}: {error}"))),
            Ok(holders) => {
                for holder in &holders {
                    match explain_pod(holder, &context) {
                        Ok(explanation) => explanations.push(explanation),
                        Err(errors) => {
                            findings.extend(errors.iter().map(|error| holder.finding(document, error)));
                        }
                    }
                }
            }
        }
    }
    Ok(if findings.is_empty() { Ok(explanations) } else { Err(findings) })
}

/// Collects the namespaces that objects are in, also as items of lists.
fn collect_names(object: &Value, names: &mut HashSet<String>) {
    names.extend(object["metadata"]["namespace"].as_str().map(str::to_owned));
    object["items"].as_array().into_iter().flatten().for_each(|item| collect_names(item, names));
}
