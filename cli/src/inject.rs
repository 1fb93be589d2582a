//! `weir inject`: adds sidecars to the pods in manifests.

use std::process::ExitCode;

use clap::{ArgGroup, Args};
use weir_injector::settings::Settings;
use weir_injector::{InjectError, InjectOutcome, SkipReason, inject};

use crate::failure::{Failure, join};
use crate::files::{InputArgs, OutputFileArgs};
use crate::manifest::pods::{ObjectName, PodHolder};
use crate::manifest::proxy_configs;
use crate::manifest::rewrite::{self, EditedDocument, RewrittenStream, rewrite};
use crate::manifest::stream::Document;
use crate::manifest::text_record::TextRecord;
use crate::settings::InjectorArgs;
use crate::uninject::original_text;

/// Options of `weir inject`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("input").required(true).multiple(true)), after_long_help = "\
Pods, Deployments, StatefulSets, DaemonSets, ReplicaSets, ReplicationControllers, Jobs, CronJobs, DeploymentConfigs and Lists of \
them get a sidecar; all other text stays byte for byte. Nothing is written unless every document is valid.

Examples:
  weir inject web.yaml | kubectl apply -f -
  weir inject -R manifests/ --output-file injected.yaml
  kubectl create deployment web --image=nginx --dry-run=client -o yaml | weir inject - | kubectl apply -f -

Exit status: 0 done, 1 the input has errors, 2 wrong usage or a file cannot be read or written.")]
pub(crate) struct InjectArgs {
    #[command(flatten)]
    inputs: InputArgs,

    #[command(flatten)]
    output: OutputFileArgs,

    /// Namespace of objects without one
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,

    #[command(flatten)]
    injector: InjectorArgs,
}

/// Settings for the pods of a manifest.
struct ManifestInjector<'a> {
    settings: Settings,
    /// Namespace of objects without one.
    namespace: Option<&'a str>,
}

/// Runs `weir inject`.
///
/// # Errors
/// Everything that is wrong with the command line and the input.
pub(crate) fn run(args: &InjectArgs) -> Result<ExitCode, Failure> {
    let (mut settings, inputs) = join(args.injector.load(), args.inputs.read())?;
    let namespace = args.namespace.as_deref();
    settings.proxy_configs = proxy_configs::in_inputs(&inputs, namespace)?;
    let injector = ManifestInjector { settings, namespace };
    let streams: Vec<_> = inputs.into_iter().map(|input| (input.name, inject_text(&input.text, &injector))).collect();
    rewrite::write(&streams, &args.output)
}

fn inject_text(text: &str, injector: &ManifestInjector<'_>) -> RewrittenStream {
    let change = |holder: &mut PodHolder<'_>, location: &str, out: &mut RewrittenStream| {
        inject_pod(holder, location, injector, out)
    };
    rewrite(text, change, record_text)
}

/// Adds what `weir uninject` needs to restore the original text exactly.
fn record_text(document: &Document<'_>, edited: EditedDocument, out: &mut RewrittenStream) -> String {
    let injected_before = original_text(document.text, edited.original.clone());
    let original = injected_before.as_deref().unwrap_or(document.text);
    let Some(restored) = original_text(&edited.text, edited.value.clone()) else { return edited.text };
    if restored == original {
        return edited.text;
    }
    let recorded = TextRecord::between(&restored, original).append_to(&edited.text);
    let parsed = Document::alone(&recorded).parse().ok().filter(|value| *value == edited.value);
    let is_kept = parsed.and_then(|value| original_text(&recorded, value)).is_some_and(|text| text == original);
    if is_kept {
        return recorded;
    }
    let lines = TextRecord::between(&restored, original).lines_of_result(document.line);
    out.notices.push(format!("weir: warning: {document}: weir uninject will not restore the text of {lines}"));
    edited.text
}

/// Injects one pod; returns whether that changed it.
fn inject_pod(
    holder: &mut PodHolder<'_>,
    location: &str,
    injector: &ManifestInjector<'_>,
    out: &mut RewrittenStream,
) -> bool {
    let mut request = match holder.request() {
        Ok(request) => request,
        Err(errors) => {
            out.findings.extend(errors.iter().map(|error| format!("{location}: {error}")));
            return false;
        }
    };
    request.is_manifest = true;
    if let (None, Some(namespace)) = (&request.namespace, injector.namespace) {
        request.namespace = Some(namespace.to_owned());
        if let Some(workload) = &mut request.workload {
            namespace.clone_into(&mut workload.namespace);
        }
    }
    match inject(&request, &injector.settings) {
        Ok(InjectOutcome::Injected { pod, warnings, .. }) => {
            out.notices.extend(warnings.iter().map(|warning| format!("weir: warning: {location}: {warning}")));
            let changed = pod != request.pod;
            if changed {
                holder.replace(pod);
            }
            changed
        }
        Ok(InjectOutcome::Skipped { reason, warnings }) => {
            out.notices.extend(warnings.iter().map(|warning| format!("weir: warning: {location}: {warning}")));
            out.notices.push(skip_notice(&holder.name, reason));
            false
        }
        Err(error) => {
            out.findings.extend(denial_messages(error).iter().map(|message| format!("{location}: {message}")));
            false
        }
    }
}

/// Returns every reason for which a pod is denied.
pub(crate) fn denial_messages(error: InjectError) -> Vec<String> {
    match error {
        InjectError::Invalid(messages) => messages,
        InjectError::Merge(_) | InjectError::Template(_) => vec![error.to_string()],
    }
}

/// Returns the line that `istioctl kube-inject` prints for a skipped pod, with our reason.
fn skip_notice(name: &ObjectName, reason: SkipReason) -> String {
    let fact = match reason {
        SkipReason::HostNetwork => "has host networking enabled",
        _ => "has sidecar injection disabled",
    };
    format!("\n===> Skipping injection because {name} {fact}: {}", reason.message())
}

#[cfg(test)]
mod tests;
