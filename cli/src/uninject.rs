//! `weir uninject`: removes the sidecars from manifests.

use std::process::ExitCode;

use clap::{ArgGroup, Args};
use serde_json::Value;
use weir_injector::uninject::{Uninjected, uninject};

use crate::failure::Failure;
use crate::files::{InputArgs, OutputFileArgs};
use crate::manifest::pods::PodHolder;
use crate::manifest::rewrite::{self, EditedDocument, RewrittenStream, edit_parsed, rewrite};
use crate::manifest::stream::Document;

/// Options of `weir uninject`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("input").required(true).multiple(true)), after_long_help = "\
Pods that `weir` or its webhook injected are restored exactly, and manifests of `weir inject` byte for byte. Pods that Istio's injector injected are restored as far as they record \
the original; what cannot be restored is reported on standard error. What the records of a pod change outside of what the built-in \
templates write is reported as unverified: a custom template wrote it, or somebody forged the records. All other text stays byte for byte. Nothing is written unless \
every document is valid.

Examples:
  weir uninject injected.yaml --output-file web.yaml
  kubectl get deployment web -o yaml | weir uninject -f - | kubectl apply -f -

Exit status: 0 done, 1 the input has errors, 2 wrong usage or a file cannot be read or written.")]
pub(crate) struct UninjectArgs {
    #[command(flatten)]
    inputs: InputArgs,

    #[command(flatten)]
    output: OutputFileArgs,
}

/// Runs `weir uninject`.
///
/// # Errors
/// Everything that is wrong with the command line and the input.
pub(crate) fn run(args: &UninjectArgs) -> Result<ExitCode, Failure> {
    let inputs = args.inputs.read()?;
    let streams: Vec<_> = inputs.into_iter().map(|input| (input.name, uninject_text(&input.text))).collect();
    rewrite::write(&streams, &args.output)
}

pub(crate) fn uninject_text(text: &str) -> RewrittenStream {
    rewrite(text, uninject_pod, restore_text)
}

/// Returns the text of a document with this value without its injection; `None` if it is not injected, or invalid.
pub(crate) fn original_text(text: &str, value: Value) -> Option<String> {
    let document = Document::alone(text);
    let mut out = RewrittenStream::default();
    let edited = edit_parsed(&document, value, uninject_pod, &mut out)?;
    Some(restore_text(&document, edited, &mut out))
}

/// Restores what the document records of its original text, as long as this does not change its value: a record proves nothing.
fn restore_text(document: &Document<'_>, edited: EditedDocument, out: &mut RewrittenStream) -> String {
    let Some(record) = edited.record else { return edited.text };
    let is_same = |text: &String| Document::alone(text).parse().is_ok_and(|value| value == edited.value);
    record.apply(&edited.text).filter(is_same).unwrap_or_else(|| {
        out.notices.push(format!(
            "weir: note: {document}: edited since its injection; original quotes and comments of changed parts are not restored"
        ));
        edited.text
    })
}

/// Removes the sidecar from one pod; returns whether that changed it.
fn uninject_pod(holder: &mut PodHolder<'_>, location: &str, out: &mut RewrittenStream) -> bool {
    let request = match holder.request() {
        Ok(request) => request,
        Err(errors) => {
            out.findings.extend(errors.iter().map(|error| format!("{location}: {error}")));
            return false;
        }
    };
    match uninject(&request.pod) {
        Ok(Some(Uninjected { pod, unrecoverable, unverified })) => {
            out.notices.extend(unrecoverable.iter().map(|what| format!("weir: cannot restore: {location}: {what}")));
            out.notices.extend(unverified.iter().map(|path| format!("weir: unverified: {location}: {path}")));
            holder.replace(pod);
            true
        }
        Ok(None) => false,
        Err(error) => {
            out.findings.push(format!("{location}: {error}"));
            false
        }
    }
}
