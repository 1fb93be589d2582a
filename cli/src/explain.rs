//! `weir explain`: what is captured in a pod, and the way of one packet through its rules.
//!
//! ```text
//! manifest, annotations ─▶ rules: subjects with their plans ─┬─ no packet ─▶ summary ─────────┬─▶ text | json | svg
//! namespace ─▶ live: its rules as they are (library) ────────┤                                │
//! packet as typed ─▶ packet ─────────────────────────────────┴─ packet ────▶ trace (library) ─┘
//! ```

mod inject;
mod json;
mod live;
mod packet;
mod pod;
mod summary;
mod svg;
mod text;
mod words;

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{ArgGroup, Args, Subcommand, ValueEnum};
use iptables_rules::CaptureConfig;
use iptables_rules::trace::{Chains, Trace};

use crate::agent::AgentArgs;
use crate::failure::{Failure, exit};
use crate::files;
use crate::rules::print::Planned;
use crate::rules::subject::Capture;
use crate::rules::{self, Named};
use crate::settings::InjectorArgs;
use live::Found;
use packet::{PacketArgs, Pod, Question};
use summary::Summary;

/// Stands for its family.
const IPV4: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// Options of `weir explain`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
#[command(group(ArgGroup::new("subject").required(true).multiple(true)), after_long_help = "\
Without a packet: what is captured, what is not, and which setting says so. With one (--to): the rules that it meets, one by one,
with the reason of each, and what becomes of it. No kernel is asked about a manifest; listeners of the proxy are taken for granted.

A namespace (--netns, --pid; needs root) is read and never changed. Whose rules are in it is said, and a packet meets those that the
kernel has. With a manifest or annotations of its pod as well, they are compared with those that the pod should have; without, the
fingerprint that Weir leaves beside its rules tells whether they are still the same.

Examples:
  weir explain -f deployment.yaml
  weir explain -f deployment.yaml --to 10.1.2.3:443
  weir explain -f deployment.yaml --from outside --to 8080
  weir explain --annotations annotations.yaml --from proxy --to '[2001:db8::1]:53/udp'
  weir explain --pid 4711 --to 10.1.2.3:443
  weir explain --netns /run/netns/web -f web.yaml
  weir explain --pod shop/web

Exit status: 0 done, 1 something in the input was refused or the rules of a namespace are not as they should be, 2 wrong usage, or a
file or namespace cannot be read.")]
pub(crate) struct ExplainArgs {
    #[command(subcommand)]
    other: Option<Other>,

    /// Manifests with pods, or with workloads that have a pod template; `-` for standard input
    #[arg(short, long, value_name = "FILE", group = "subject", conflicts_with = "annotations")]
    filename: Option<String>,

    /// Annotations alone: a map of names to values, or an object with `metadata.annotations`; `-` for standard input
    #[arg(long, value_name = "FILE", group = "subject")]
    annotations: Option<String>,

    /// A network namespace by its path, for example below /run/netns
    #[arg(long, value_name = "PATH", group = "subject", conflicts_with = "pid")]
    netns: Option<PathBuf>,

    /// The network namespace of a process
    #[arg(long, value_name = "PID", group = "subject")]
    pid: Option<u32>,

    /// A pod of the mesh, as the agent of its node sees it
    #[arg(long, value_name = "NAMESPACE/NAME", group = "subject", conflicts_with_all = ["filename", "annotations", "netns", "pid"])]
    pod: Option<String>,

    #[command(flatten)]
    agent: AgentArgs,

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
enum Other {
    /// Say why a pod gets a sidecar or gets none, rule by rule
    Inject(Box<inject::ExplainInjectArgs>),
}

/// `--format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people
    Text,
    /// One JSON document
    Json,
    /// A picture of the chains, with the path of the packet
    Svg,
}

/// What is explained.
#[derive(Debug)]
pub(crate) struct Explanation {
    /// What messages call it.
    name: String,
    /// Where its rules come from, or why it has none, in words.
    origin: String,
    /// What a namespace has, where one was asked about.
    found: Option<Found>,
    /// What is captured; `None` where the injector leaves the pod alone.
    summary: Option<Summary>,
    /// The rules, as IPv4 packets meet them.
    chains: Chains,
    /// The packet and its way, where one was asked about.
    journey: Option<(Question, Trace)>,
}

/// Carries `weir explain` out.
///
/// # Errors
/// Everything that is wrong with the command line and the input.
pub(crate) fn run(args: &ExplainArgs) -> Result<ExitCode, Failure> {
    if let Some(Other::Inject(args)) = &args.other {
        return inject::run(args);
    }
    if let Some(pod) = &args.pod {
        return as_the_agent_sees_it(pod, args);
    }
    let namespace = match (&args.netns, args.pid) {
        (Some(path), _) => Some(path.clone()),
        (None, Some(pid)) => Some(live::of_process(pid)?),
        (None, None) => None,
    };
    let planned = match (&args.filename, &args.annotations) {
        (None, None) => Vec::new(),
        (manifest, annotations) => {
            let Named { name, planned } = rules::load(manifest.as_deref(), annotations.as_deref(), &args.injector)?;
            if planned.is_empty() {
                eprintln!("weir: {name}: no pod in it");
            }
            planned
        }
    };
    let explained = match namespace {
        Some(path) => namespace_as_it_is(&path, &planned, args).map(|explanation| vec![explanation])?,
        None => as_planned(&planned, &args.packet).map_err(Failure::refused)?,
    };
    let text = match args.format {
        Format::Text => text::print(&explained),
        Format::Json => json::print(&explained),
        Format::Svg => svg::print(&explained),
    };
    files::write(None, &text)?;
    let fine = explained.iter().all(|explanation| explanation.found.as_ref().is_none_or(|found| found.fine));
    Ok(if fine { ExitCode::SUCCESS } else { ExitCode::from(exit::FINDINGS) })
}

/// A pod in the words of its node's agent.
fn as_the_agent_sees_it(pod: &str, args: &ExplainArgs) -> Result<ExitCode, Failure> {
    if args.packet.given() || args.format != Format::Text {
        return Err(Failure::usage(
            "--pod tells the state of the rules in words; packets and other forms need --netns, --pid or -f",
        ));
    }
    let (listing, _) = args.agent.listing()?;
    let (text, fine) = pod::explain(&listing, pod).map_err(|finding| Failure::refused(vec![finding]))?;
    files::write(None, &text)?;
    Ok(if fine { ExitCode::SUCCESS } else { ExitCode::from(exit::FINDINGS) })
}

/// A namespace, compared with the one pod of the input, if there is input.
fn namespace_as_it_is(path: &Path, planned: &[Planned], args: &ExplainArgs) -> Result<Explanation, Failure> {
    let expected = match planned {
        [] if args.filename.is_none() && args.annotations.is_none() => None,
        [one] => Some(one),
        more => {
            let count = more.len();
            return Err(Failure::usage(format!("a namespace is that of one pod, and the input has {count}")));
        }
    };
    let config = expected.and_then(config_of);
    let rules = expected.map(|planned| planned.rules.clone().unwrap_or_default());
    let found = live::look(path, rules.as_ref())?;
    let question = args.packet.question(&live::pod(&found.live, config)).map_err(Failure::refused)?;
    let summary = config.map_or_else(|| Summary::of_chains(&live::both(&found.live)), Summary::of);
    Ok(Explanation {
        name: format!("network namespace {}", path.display()),
        origin: expected.map_or_else(
            || "the rules as they are".to_owned(),
            |planned| format!("the rules as they are, compared with those of {}", planned.subject),
        ),
        summary: Some(summary),
        chains: found.live.chains(IPV4),
        journey: question.map(|question| {
            let trace = found.live.chains(question.packet.destination).trace(&question.packet);
            (question, trace)
        }),
        found: Some(found),
    })
}

/// Every pod of the input; or everything that is wrong with the packet.
fn as_planned(planned: &[Planned], packet: &PacketArgs) -> Result<Vec<Explanation>, Vec<String>> {
    let mut explained = Vec::new();
    let mut findings = Vec::new();
    for planned in planned {
        match explain(planned, packet) {
            Ok(explanation) => explained.push(explanation),
            Err(errors) => findings.extend(errors),
        }
    }
    // What is wrong with a packet is wrong for every pod.
    findings.sort();
    findings.dedup();
    if findings.is_empty() { Ok(explained) } else { Err(findings) }
}

fn config_of(planned: &Planned) -> Option<&CaptureConfig> {
    match &planned.subject.capture {
        Capture::Configured { config, .. } => Some(config),
        Capture::Nothing(_) => None,
    }
}

fn explain(planned: &Planned, packet: &PacketArgs) -> Result<Explanation, Vec<String>> {
    let config = config_of(planned);
    let question = packet.question(&Pod::of(config.unwrap_or(&CaptureConfig::default())))?;
    let rules = planned.rules.clone().unwrap_or_default();
    Ok(Explanation {
        name: planned.subject.name.clone(),
        origin: planned.subject.capture.to_string(),
        found: None,
        summary: config.map(Summary::of),
        chains: Chains::planned(&rules, IPV4),
        journey: question.map(|question| {
            let trace = rules.trace(&question.packet);
            (question, trace)
        }),
    })
}
