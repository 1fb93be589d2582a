//! `weir diff`: proves which traffic two versions of pods treat differently.
//!
//! ```text
//! manifest, annotations ─▶ rules: planned rules ─┐
//! network namespace ─▶ explain: rules in the kernel ┼─ input ─▶ pairs of workloads ─ comparison (iptables_rules::compare) ─▶ text | json | sarif | html
//! iptables-save text ────────────────────────────┘
//! ```

pub(crate) mod comparison;
mod html;
pub(crate) mod input;
pub(crate) mod json;
pub(crate) mod pod_changes;
mod sarif;
pub(crate) mod text;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};

use crate::agent::AgentArgs;
use crate::failure::{Failure, exit, join};
use crate::files;
use crate::output::ReportFormat;
use crate::settings::{InjectorArgs, OldInjectorArgs};
use comparison::{Comparison, Verdict};
use input::Side;

/// Options of `weir diff`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Compares the capture rules of OLD and NEW over all packets: direction, interface, family, protocol, addresses, ports, uid, gid, marks and \
conntrack state. Nothing is sampled: a workload is equal, or the packets that are treated differently are listed as ranges, with an example \
and the setting that decides, or it is said which rule is not understood.

OLD and NEW are files, or `-` for standard input, and each is one of: a manifest, whose pods and workloads are compared by name; annotations \
(a map, or an object with `metadata.annotations`); or the output of iptables-save and ip6tables-save. Pods that are not injected yet are \
injected first. With --netns, --pid or --pod, OLD is what runs now. With one manifest and settings of the injector for OLD (--old-...), two \
configurations are compared, such as those of two revisions. Fields of the injected pods that differ are listed, too.

Examples:
  weir diff old.yaml new.yaml
  git show HEAD:web.yaml | weir diff - web.yaml -o sarif
  weir diff --pod shop/web-0 web.yaml
  weir diff --netns /run/netns/web web.yaml
  weir diff saved.txt web.yaml --fail-on any
  weir diff web.yaml --old-revision 1-27 --revision 1-28 --context prod

Exit status: 0 done, 1 the input has errors or --fail-on applies, 2 wrong usage, or a file, namespace or cluster cannot be read.")]
pub(crate) struct DiffArgs {
    /// File with the old version, and the file with the new one
    #[arg(value_names = ["OLD", "NEW"], num_args = 1..=2, required = true)]
    files: Vec<String>,

    /// Compare with the rules in the network namespace at this path, instead of OLD (root)
    #[arg(long, value_name = "PATH", conflicts_with_all = ["pid", "pod"])]
    netns: Option<PathBuf>,

    /// Compare with the rules in the network namespace of this process, instead of OLD (root)
    #[arg(long, value_name = "PID", conflicts_with = "pod")]
    pid: Option<u32>,

    /// Compare with the rules of this pod in the cluster, which its node's agent reports to be in place, instead of OLD
    #[arg(long, value_name = "NAMESPACE/NAME|pod/NAME")]
    pod: Option<String>,

    /// Namespace of pod/NAME
    #[arg(short, long, value_name = "NAMESPACE", default_value = "default")]
    namespace: String,

    #[command(flatten)]
    agent: AgentArgs,

    /// Output format
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t = ReportFormat::Text)]
    output: ReportFormat,

    /// Changes that make the exit status 1
    #[arg(long, value_enum, value_name = "CHANGES", default_value_t = FailOn::Bypass)]
    fail_on: FailOn,

    #[command(flatten)]
    injector: InjectorArgs,

    #[command(flatten)]
    old_injector: OldInjectorArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FailOn {
    /// Traffic that was captured no longer is, or it cannot be decided
    Bypass,
    /// Any difference of traffic, or a workload that only one side has
    Any,
    /// None
    None,
}

/// Runs `weir diff`.
///
/// # Errors
/// Everything that is wrong with the command line and the input.
pub(crate) fn run(args: &DiffArgs) -> Result<ExitCode, Failure> {
    let (old, new) = sides(args)?;
    let comparison = Comparison::of(&old, &new)?;
    let text = match args.output {
        ReportFormat::Text => text::print(&comparison),
        ReportFormat::Json => json::print(&comparison),
        ReportFormat::Sarif => sarif::print(&comparison),
        ReportFormat::Html => html::print(&comparison),
    };
    files::write(None, &text)?;
    Ok(if fails(&comparison, args.fail_on) { ExitCode::from(exit::FINDINGS) } else { ExitCode::SUCCESS })
}

fn sides(args: &DiffArgs) -> Result<(Side, Side), Failure> {
    let live = [args.netns.is_some(), args.pid.is_some(), args.pod.is_some()].contains(&true);
    match (args.files.as_slice(), live) {
        ([old, new], false) if old == "-" && new == "-" => Err(Failure::usage("only one of OLD and NEW can be -")),
        ([old, new], false) => {
            let injector = args.old_injector.over(&args.injector);
            join(input::file(old, &injector), input::file(new, &args.injector))
        }
        ([both], false) if args.old_injector.is_given() => {
            input::with_both(both, &args.old_injector.over(&args.injector), &args.injector)
        }
        ([new], true) => join(live_side(args), input::file(new, &args.injector)),
        (_, true) => Err(Failure::usage("--netns, --pid and --pod stand for OLD; pass one file, NEW")),
        (_, false) => Err(Failure::usage(
            "pass two files, OLD and NEW; or one of --netns, --pid and --pod, and NEW; or one file, and settings of OLD",
        )),
    }
}

fn live_side(args: &DiffArgs) -> Result<Side, Failure> {
    match (&args.netns, args.pid, &args.pod) {
        (Some(path), ..) => input::namespace(path),
        (None, Some(pid), _) => input::namespace(&crate::explain::netns::of_process(pid)?),
        (None, None, pod) => {
            let pod = pod.as_deref().unwrap_or_default();
            input::pod(pod, &args.namespace, &args.agent, &args.injector)
        }
    }
}

fn fails(comparison: &Comparison, fail_on: FailOn) -> bool {
    comparison.workloads.iter().any(|workload| match (&workload.verdict, fail_on) {
        (_, FailOn::None) | (Verdict::Equal, _) | (Verdict::Added | Verdict::Removed, FailOn::Bypass) => false,
        (_, FailOn::Any) | (Verdict::Unknown(_), FailOn::Bypass) => true,
        (Verdict::Different(found), FailOn::Bypass) => {
            !found.unknown.is_empty()
                || found.changes.iter().any(|change| change.kind == comparison::ChangeKind::Bypass)
        }
    })
}
