//! `weir uninject`: manifests with sidecars in, the manifests that they were made of out.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use weir_injector::inject::uninject::{Uninjected, uninject};

use crate::failure::Failure;
use crate::files::Source;
use crate::manifest::pods::PodHolder;
use crate::manifest::rewrite::{Rewritten, rewrite};

/// Options of `weir uninject`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Pods that `weir` or its webhook injected come out exactly as they were. Pods that Istio's own injector made come out as far as they
tell what they were; what they do not tell is said on standard error. Everything else passes byte for byte. Nothing is written unless
every document is fine.

Example:
  kubectl get deployment web -o yaml | weir uninject -f - | kubectl apply -f -

Exit status: 0 done, 1 something in the input was refused, 2 wrong usage or a file cannot be read or written.")]
pub(crate) struct UninjectArgs {
    /// Manifests to take the sidecar out of, `-` for standard input
    #[arg(short, long, value_name = "FILE")]
    filename: String,

    /// Where to write; without it, standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Carries `weir uninject` out.
///
/// # Errors
/// Everything that is wrong with the command line and the input.
pub(crate) fn run(args: &UninjectArgs) -> Result<ExitCode, Failure> {
    let source = Source::from(args.filename.as_str());
    rewrite(&source.read()?, uninject_pod).write(&source, args.output.as_deref())
}

/// Takes the sidecar out of one pod in its place; whether that changed anything.
fn uninject_pod(holder: &mut PodHolder<'_>, place: &str, out: &mut Rewritten) -> bool {
    let request = match holder.request() {
        Ok(request) => request,
        Err(errors) => {
            out.findings.extend(errors.iter().map(|error| format!("{place}: {error}")));
            return false;
        }
    };
    match uninject(&request.pod) {
        Ok(Some(Uninjected { pod, unknown })) => {
            out.notices.extend(unknown.iter().map(|unknown| format!("weir: not known: {place}: {unknown}")));
            holder.replace(pod);
            true
        }
        Ok(None) => false,
        Err(error) => {
            out.findings.push(format!("{place}: {error}"));
            false
        }
    }
}
