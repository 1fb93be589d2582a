//! `weir assert`: proves that workloads capture what a policy demands, or shows the traffic that they do not.
//!
//! ```text
//! policy files ─▶ policy (CaptureAssertion) ─────────────────────┐
//! manifests, or pods of the cluster ─▶ input: planned rules ─────┼─▶ report (iptables_rules::compare::assertion) ─▶ text | json | sarif | html
//! namespaces ─▶ labels; node agents ─▶ evidence ─────────────────┘
//! ```

mod html;
mod input;
mod json;
mod live;
mod policy;
mod report;
mod sarif;
mod text;

use std::process::ExitCode;

use clap::Args;

use crate::agent::AgentArgs;
use crate::failure::{Failure, exit, join};
use crate::files;
use crate::output::ReportFormat;
use crate::settings::InjectorArgs;
use input::Workloads;
use report::Report;

/// Options of `weir assert`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
A policy is a stream of CaptureAssertion objects (apiVersion weir.dev/v1alpha1). Each selects workloads by the labels of their namespace \
and pods, and demands for some of their traffic that it is captured, bypasses the proxy, or is dropped. The rules of each workload are \
followed for all packets at once: an assertion holds for every packet, or those that violate it are listed as ranges with an example.

Workloads are the pods and pod templates of FILES, injected first if they are not, or the pods of the cluster with --live. A selector of \
namespaces needs their labels: from Namespace objects among FILES, or from the cluster.

Examples:
  weir assert -f policy.yaml web.yaml namespaces.yaml
  helm template shop | weir assert -f policy.yaml - -o sarif
  weir assert -f policy.yaml --live --context prod

Exit status: 0 all assertions hold, 1 the input has errors, or an assertion is violated or undecided, 2 wrong usage, or a file or cluster \
cannot be read.")]
pub(crate) struct AssertArgs {
    /// Files with CaptureAssertions; `-` is standard input
    #[arg(short = 'f', long = "filename", value_name = "POLICY", required = true)]
    policies: Vec<String>,

    /// Manifests with workloads and namespaces; `-` is standard input
    #[arg(value_name = "FILE", required_unless_present = "live", conflicts_with = "live")]
    files: Vec<String>,

    /// Check the running pods of the cluster, by their annotations, with what their nodes' agents find in the kernel as evidence
    #[arg(long)]
    live: bool,

    /// Namespace of objects without one; with --live, check the pods of this namespace only
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,

    /// Assume that pods get addresses of both families, in which case IPv6 is captured only if the proxy accepts it
    #[arg(long, conflicts_with = "live")]
    dual_stack: bool,

    #[command(flatten)]
    agent: AgentArgs,

    /// Output format
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t = ReportFormat::Text)]
    output: ReportFormat,

    #[command(flatten)]
    injector: InjectorArgs,
}

/// Runs `weir assert`.
///
/// # Errors
/// Everything that is wrong with the command line, the policy and the input.
pub(crate) fn run(args: &AssertArgs) -> Result<ExitCode, Failure> {
    let stdin = args.policies.iter().chain(&args.files).filter(|name| *name == "-").count();
    if stdin > 1 {
        return Err(Failure::usage("only one of the files can be -"));
    }
    let (assertions, workloads) = join(policy::load(&args.policies), load_workloads(args))?;
    for note in &workloads.notes {
        eprintln!("weir: {note}");
    }
    let report = Report::of(&assertions, &workloads);
    for name in &report.unused {
        eprintln!("weir: CaptureAssertion {name} selects no workload");
    }
    let text = match args.output {
        ReportFormat::Text => text::print(&report),
        ReportFormat::Json => json::print(&report),
        ReportFormat::Sarif => sarif::print(&report),
        ReportFormat::Html => html::print(&report),
    };
    files::write(None, &text)?;
    Ok(if report.holds() { ExitCode::SUCCESS } else { ExitCode::from(exit::FINDINGS) })
}

fn load_workloads(args: &AssertArgs) -> Result<Workloads, Failure> {
    let namespace = args.namespace.as_deref().unwrap_or_default();
    if args.live {
        return live::load(namespace, args.injector.connection(), &args.agent);
    }
    input::load(&args.files, namespace, args.dual_stack, &args.injector)
}
