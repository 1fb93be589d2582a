//! `weir inject`: manifests in, the same manifests with sidecars out.
//!
//! ```text
//! text ──manifest/stream──▶ documents ──manifest/pods──▶ pods ──weir_webhook::inject──▶ pods with sidecar
//!                               │ untouched: byte for byte                              │ touched: splice, else yaml_text
//!                               └───────────────────────────▶ text ◀────────────────────┘
//! ```

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::Value;
use weir_webhook::inject::{InjectError, Outcome, SkipReason, inject};
use weir_webhook::settings::Settings;
use weir_webhook::yaml::YamlError;

use crate::failure::{Failure, both};
use crate::files::{self, Source};
use crate::manifest::pods::{self, ObjectName, PodHolder};
use crate::manifest::stream::{self, Document};
use crate::settings::InjectorArgs;
use crate::{splice, yaml_text};

/// Options of `weir inject`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Pods, Deployments, StatefulSets, DaemonSets, ReplicaSets, ReplicationControllers, Jobs, CronJobs, DeploymentConfigs and Lists of
them get a sidecar; everything else passes byte for byte. Nothing is written unless every document is fine.

Example:
  kubectl create deployment web --image=nginx --dry-run=client -o yaml | weir inject -f - | kubectl apply -f -

Exit status: 0 done, 1 something in the input was refused, 2 wrong usage or a file cannot be read or written.")]
pub(crate) struct InjectArgs {
    /// Manifests to inject, `-` for standard input
    #[arg(short, long, value_name = "FILE")]
    filename: String,

    /// Where to write; without it, standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Namespace of objects that name none
    #[arg(short, long, value_name = "NAME")]
    namespace: Option<String>,

    #[command(flatten)]
    injector: InjectorArgs,
}

/// What manifests are injected with.
struct Injector<'a> {
    settings: Settings,
    /// Namespace of objects that name none.
    namespace: Option<&'a str>,
}

/// A stream after injection.
#[derive(Debug, Default)]
struct Injected {
    /// The documents, each followed by a separator.
    text: String,
    /// What the user should hear: skipped pods and warnings.
    notices: Vec<String>,
    /// What was refused. Where there is anything, the text is of no use.
    findings: Vec<String>,
}

/// Carries `weir inject` out.
///
/// # Errors
/// Everything that is wrong with the command line and the input.
pub(crate) fn run(args: &InjectArgs) -> Result<ExitCode, Failure> {
    let source = Source::from(args.filename.as_str());
    let (settings, text) = both(args.injector.load(), source.read().map_err(Failure::from))?;
    let injected = inject_stream(&text, &Injector { settings, namespace: args.namespace.as_deref() });
    for notice in &injected.notices {
        eprintln!("{notice}");
    }
    if injected.findings.is_empty() {
        files::write(args.output.as_deref(), &injected.text)?;
        return Ok(ExitCode::SUCCESS);
    }
    Err(Failure::refused(injected.findings.iter().map(|finding| format!("{}: {finding}", source.name())).collect()))
}

fn inject_stream(text: &str, injector: &Injector<'_>) -> Injected {
    let mut out = Injected::default();
    let documents = match stream::split(text) {
        Ok(documents) => documents,
        Err(strays) => {
            out.findings.extend(strays.iter().map(ToString::to_string));
            return out;
        }
    };
    for document in documents {
        let rewritten = inject_document(&document, injector, &mut out);
        let text = rewritten.as_deref().unwrap_or(document.text);
        out.text.push_str(text);
        if !text.ends_with('\n') {
            out.text.push('\n');
        }
        out.text.push_str("---\n");
    }
    out
}

/// The new text of a document; `None` where it stays as it is.
fn inject_document(document: &Document<'_>, injector: &Injector<'_>, out: &mut Injected) -> Option<String> {
    let mut value = match document.parse() {
        Ok(value) => value,
        Err(error) => {
            out.findings.push(format!("{document}: {error}"));
            return None;
        }
    };
    let original = value.clone();
    let mut holders = match pods::find(&mut value) {
        Ok(holders) => holders,
        Err(errors) => {
            out.findings.extend(errors.iter().map(|error| format!("{document}: {error}")));
            return None;
        }
    };
    let mut touched = false;
    for holder in &mut holders {
        touched |= inject_pod(document, holder, injector, out);
    }
    if !touched {
        return None;
    }
    match rewritten(document.text, &original, &value) {
        Ok(text) => {
            let lost = splice::lost_comments(document.text, &text);
            if !lost.is_empty() {
                let shown: Vec<String> = lost.iter().take(3).map(|comment| format!("# {comment}")).collect();
                let number = lost.len();
                let more = if number > shown.len() { ", ..." } else { "" };
                out.notices.push(format!(
                    "weir: note: {document}: comments in changed parts are not kept ({number}): {}{more}",
                    shown.join(", ")
                ));
            }
            Some(text)
        }
        Err(error) => {
            out.findings.push(format!("{document}: {error:#}"));
            None
        }
    }
}

/// The text with the new value: changed where it changed, or where that cannot be done written anew.
fn rewritten(text: &str, original: &Value, value: &Value) -> Result<String, YamlError> {
    splice::splice(text, original, value).map_or_else(|| yaml_text::to_string(value), Ok)
}

/// Injects one pod in its place; whether that changed anything.
fn inject_pod(
    document: &Document<'_>,
    holder: &mut PodHolder<'_>,
    injector: &Injector<'_>,
    out: &mut Injected,
) -> bool {
    let place = holder.place(document);
    let mut request = match holder.request() {
        Ok(request) => request,
        Err(errors) => {
            out.findings.extend(errors.iter().map(|error| format!("{place}: {error}")));
            return false;
        }
    };
    if let (None, Some(namespace)) = (&request.namespace, injector.namespace) {
        request.namespace = Some(namespace.to_owned());
        if let Some(workload) = &mut request.workload {
            namespace.clone_into(&mut workload.namespace);
        }
    }
    match inject(&request, &injector.settings) {
        Ok(Outcome::Injected { pod, warnings, .. }) => {
            out.notices.extend(warnings.iter().map(|warning| format!("weir: warning: {place}: {warning}")));
            let changed = pod != request.pod;
            if changed {
                holder.replace(pod);
            }
            changed
        }
        Ok(Outcome::Skipped { reason, warnings }) => {
            out.notices.extend(warnings.iter().map(|warning| format!("weir: warning: {place}: {warning}")));
            out.notices.push(skip_notice(&holder.name, reason));
            false
        }
        Err(error) => {
            out.findings.extend(denials(error).iter().map(|message| format!("{place}: {message}")));
            false
        }
    }
}

/// Every reason for which a pod is denied.
pub(crate) fn denials(error: InjectError) -> Vec<String> {
    match error {
        InjectError::Invalid(messages) => messages,
        InjectError::Merge(_) | InjectError::Template(_) => vec![error.to_string()],
    }
}

/// What `istioctl kube-inject` says in front, for those who look for it in logs, and our reason.
pub(crate) fn skip_notice(name: &ObjectName, reason: SkipReason) -> String {
    let fact = match reason {
        SkipReason::HostNetwork => "has host networking enabled",
        _ => "has sidecar injection disabled",
    };
    format!("\n===> Skipping injection because {name} {fact}: {}", reason.explain())
}
