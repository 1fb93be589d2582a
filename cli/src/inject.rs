//! `weir inject`: manifests in, the same manifests with sidecars out.
//!
//! The stream, and what stays of it, is `manifest/rewrite.rs`; the injection is the library's.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use weir_injector::inject::{InjectError, Outcome, SkipReason, inject};
use weir_injector::settings::Settings;

use crate::failure::{Failure, both};
use crate::files::Source;
use crate::manifest::pods::{ObjectName, PodHolder};
use crate::manifest::proxy_configs;
use crate::manifest::rewrite::{Rewritten, rewrite};
use crate::settings::InjectorArgs;

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

/// Carries `weir inject` out.
///
/// # Errors
/// Everything that is wrong with the command line and the input.
pub(crate) fn run(args: &InjectArgs) -> Result<ExitCode, Failure> {
    let source = Source::from(args.filename.as_str());
    let (mut settings, text) = both(args.injector.load(), source.read().map_err(Failure::from))?;
    let namespace = args.namespace.as_deref();
    settings.proxy_configs = proxy_configs::in_stream(&text, namespace)
        .map_err(|findings| Failure::refused_in(&source.name(), &findings))?;
    let injector = Injector { settings, namespace };
    rewrite(&text, |holder, place, out| inject_pod(holder, place, &injector, out))
        .write(&source, args.output.as_deref())
}

/// Injects one pod in its place; whether that changed anything.
fn inject_pod(holder: &mut PodHolder<'_>, place: &str, injector: &Injector<'_>, out: &mut Rewritten) -> bool {
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
