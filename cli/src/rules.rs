//! `weir rules`: prints the capture rules of pods, without a cluster and without the kernel.
//!
//! ```text
//! manifest ─▶ pods ─┐ (not injected yet: injected first)
//! annotations ──────┴▶ subject: CaptureConfig ──plan──▶ RuleSet ──print──▶ iptables | nft | json
//! ```

pub(crate) mod init_container;
pub(crate) mod json;
pub(crate) mod planned;
mod print;
pub(crate) mod running;
pub(crate) mod subject;

use std::process::ExitCode;

use clap::{ArgGroup, Args, ValueEnum};

use crate::failure::Failure;
use crate::files::{self, InputArgs};
use crate::settings::InjectorArgs;

/// Options of `weir rules`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("input").required(true).multiple(true)), after_long_help = "\
An injected pod with the annotation `weir.dev/capture` gets the rules of that annotation; a pod that Istio injected, those of its \
annotations and its istio-proxy container. Any other pod is injected first, with the given settings. Standard error has the source \
of each pod's rules. Nothing is printed unless every pod is valid.

Examples:
  weir rules deployment.yaml
  kubectl get pod web-0 -o yaml | weir rules - -o nft
  weir rules --annotations annotations.yaml -o json

Exit status: 0 done, 1 the input has errors, 2 wrong usage or a file cannot be read.")]
pub(crate) struct RulesArgs {
    #[command(flatten)]
    inputs: InputArgs,

    /// Read annotations from this file: a map, or an object with `metadata.annotations`; `-` is standard input
    #[arg(long, value_name = "FILE", group = "input", conflicts_with_all = ["files", "filename"])]
    annotations: Option<String>,

    /// Output format
    #[arg(short, long, alias = "format", value_enum, value_name = "FORMAT", default_value_t = OutputFormat::Iptables)]
    output: OutputFormat,

    #[command(flatten)]
    injector: InjectorArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OutputFormat {
    /// Input of `iptables-restore` and `ip6tables-restore`, one after the other
    Iptables,
    /// Input of `nft -f`: the table that the plugin installs
    Nft,
    /// One JSON document with the rules as data
    Json,
}

/// Runs `weir rules`.
///
/// # Errors
/// Everything that is wrong with the command line and the input.
pub(crate) fn run(args: &RulesArgs) -> Result<ExitCode, Failure> {
    let planned = planned::load(&args.inputs, args.annotations.as_deref(), &args.injector)?;
    for subject in &planned {
        eprintln!("weir: {subject}");
    }
    let text = match args.output {
        OutputFormat::Iptables => print::iptables(&planned),
        OutputFormat::Nft => print::nft(&planned).map_err(Failure::findings)?,
        OutputFormat::Json => json::print(&planned),
    };
    files::write(None, &text)?;
    Ok(ExitCode::SUCCESS)
}
