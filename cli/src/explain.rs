//! `weir explain`: what is captured in a pod, and the way of one packet through its rules.
//!
//! ```text
//! manifest, annotations ─▶ rules: subjects with their plans ─┬─ no packet ─▶ summary ─────────┬─▶ text | json | svg
//! packet as typed ─▶ packet ─────────────────────────────────┴─ packet ────▶ trace (library) ─┘
//! ```

mod json;
mod packet;
mod summary;
mod text;
mod words;

use std::process::ExitCode;

use clap::{ArgGroup, Args, Subcommand, ValueEnum};
use iptables_rules::CaptureConfig;
use iptables_rules::trace::Trace;

use crate::failure::Failure;
use crate::files;
use crate::rules::print::Planned;
use crate::rules::subject::Capture;
use crate::rules::{self, Named};
use crate::settings::InjectorArgs;
use packet::{PacketArgs, Pod, Question};
use summary::Summary;

/// Options of `weir explain`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
#[command(group(ArgGroup::new("subject").required(true)), after_long_help = "\
Without a packet: what is captured, what is not, and which setting says so. With one (--to): the rules that it meets, one by one,
with the reason of each, and what becomes of it. No kernel is asked about a manifest; listeners of the proxy are taken for granted.

Examples:
  weir explain -f deployment.yaml
  weir explain -f deployment.yaml --to 10.1.2.3:443
  weir explain -f deployment.yaml --from outside --to 8080
  weir explain --annotations annotations.yaml --from proxy --to '[2001:db8::1]:53/udp'

Exit status: 0 done, 1 something in the input was refused, 2 wrong usage or a file cannot be read.")]
pub(crate) struct ExplainArgs {
    #[command(subcommand)]
    other: Option<Other>,

    /// Manifests with pods, or with workloads that have a pod template; `-` for standard input
    #[arg(short, long, value_name = "FILE", group = "subject", conflicts_with = "annotations")]
    filename: Option<String>,

    /// Annotations alone: a map of names to values, or an object with `metadata.annotations`; `-` for standard input
    #[arg(long, value_name = "FILE", group = "subject")]
    annotations: Option<String>,

    #[command(flatten)]
    packet: PacketArgs,

    /// What to print
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,

    #[command(flatten)]
    injector: InjectorArgs,
}

/// Explanations of other things than packets.
#[derive(Debug, Subcommand)]
enum Other {}

/// `--format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people
    Text,
    /// One JSON document
    Json,
}

/// What is explained.
#[derive(Debug)]
pub(crate) struct Explanation {
    /// What messages call it.
    name: String,
    /// Where its rules come from, or why it has none, in words.
    origin: String,
    /// What is captured; `None` where the injector leaves the pod alone.
    summary: Option<Summary>,
    /// The packet and its way, where one was asked about.
    journey: Option<(Question, Trace)>,
}

/// Carries `weir explain` out.
///
/// # Errors
/// Everything that is wrong with the command line and the input.
pub(crate) fn run(args: &ExplainArgs) -> Result<ExitCode, Failure> {
    if let Some(other) = &args.other {
        match *other {}
    }
    let Named { name, planned } = rules::load(args.filename.as_deref(), args.annotations.as_deref(), &args.injector)?;
    let mut explained = Vec::new();
    let mut findings = Vec::new();
    for planned in &planned {
        match explain(planned, &args.packet) {
            Ok(explanation) => explained.push(explanation),
            Err(errors) => findings.extend(errors),
        }
    }
    if !findings.is_empty() {
        // What is wrong with a packet is wrong for every pod.
        findings.sort();
        findings.dedup();
        return Err(Failure::refused(findings));
    }
    if explained.is_empty() {
        eprintln!("weir: {name}: no pod in it");
    }
    let text = match args.format {
        Format::Text => text::print(&explained),
        Format::Json => json::print(&explained),
    };
    files::write(None, &text)?;
    Ok(ExitCode::SUCCESS)
}

fn explain(planned: &Planned, packet: &PacketArgs) -> Result<Explanation, Vec<String>> {
    let config = match &planned.subject.capture {
        Capture::Configured { config, .. } => Some(&**config),
        Capture::Nothing(_) => None,
    };
    let question = packet.question(&Pod::of(config.unwrap_or(&CaptureConfig::default())))?;
    let rules = planned.rules.clone().unwrap_or_default();
    Ok(Explanation {
        name: planned.subject.name.clone(),
        origin: planned.subject.capture.to_string(),
        summary: config.map(Summary::of),
        journey: question.map(|question| {
            let trace = rules.trace(&question.packet);
            (question, trace)
        }),
    })
}
