//! `weir explain`: explains what a pod captures, and traces a packet through its rules.
//!
//! ```text
//! manifest, annotations ─▶ rules: planned rules ──┬─ no packet ─▶ summary ──┬─▶ text | json | svg | html
//! network namespace ─▶ netns: rules in the kernel ┤                         │
//! options ─▶ packet ──────────────────────────────┴─ packet ────▶ trace ────┘
//! cluster ─▶ service: the way of a connection from a pod to a Service ─▶ text | json
//! ```

pub(crate) mod explanation;
mod html;
mod inject;
mod json;
pub(crate) mod netns;
pub(crate) mod packet;
pub(crate) mod pod;
mod probe;
pub(crate) mod sentences;
mod service;
mod summary;
pub(crate) mod svg;
mod text;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgGroup, Args, Subcommand, ValueEnum};

use crate::agent::{AgentArgs, AgentTarget};
use crate::completion::objects;
use crate::duration;
use crate::failure::{Failure, exit};
use crate::files::{self, InputArgs};
use crate::rules::planned::{self, Planned};
use crate::settings::InjectorArgs;
use explanation::{explain_namespace, explain_planned};
use packet::PacketArgs;
use service::Observation;

/// Options of `weir explain`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
#[command(group(ArgGroup::new("input").required(true).multiple(true)), after_long_help = "\
Without a packet, prints what is captured, what is not, and the setting behind each. With a packet (--to), prints the rules that it \
meets with the reason of each, and where it ends. A manifest is explained without the kernel; the proxy is assumed to listen.

A network namespace (--netns, --pid; needs root) is read and never changed. Prints whose rules are in it, and traces a packet through \
the rules in the kernel. With the manifest or the annotations of its pod, the rules are compared with those that the pod should have; \
without, the fingerprint beside Weir's rules shows whether they have changed.

Examples:
  weir explain deployment.yaml
  weir explain deployment.yaml --to 10.1.2.3:443
  weir explain deployment.yaml --from outside --to 8080
  weir explain --annotations annotations.yaml --from proxy --to '[2001:db8::1]:53/udp'
  weir explain --pid 4711 --to 10.1.2.3:443
  weir explain --netns /run/netns/web web.yaml
  weir explain --pod shop/web
  weir explain --pod pod/web -n shop --context prod
  weir explain --pod -A
  weir explain --from-pod shop/web-0 --to-service shop/db:3306
  weir explain --from-pod shop/web-0 --to-service shop/db:3306 --observe 10s

Exit status: 0 done, 1 the input has errors or the rules of a namespace are not the expected ones, 2 wrong usage, or a file or namespace cannot be read.")]
pub(crate) struct ExplainArgs {
    #[command(subcommand)]
    command: Option<ExplainCommand>,

    #[command(flatten)]
    inputs: InputArgs,

    /// Explain these annotations: a map, or an object with `metadata.annotations`; `-` is standard input
    #[arg(long, value_name = "FILE", group = "input", conflicts_with_all = ["files", "filename"])]
    annotations: Option<String>,

    /// Explain the network namespace at this path, such as /run/netns/web
    #[arg(long, value_name = "PATH", group = "input", conflicts_with = "pid")]
    netns: Option<PathBuf>,

    /// Explain the network namespace of this process
    #[arg(long, value_name = "PID", group = "input")]
    pid: Option<u32>,

    /// Print the state of a meshed pod, as reported by its node's agent, which is found in the cluster
    ///
    /// Without a name, prints the state of all meshed pods of the namespace, or with --all-namespaces of the cluster.
    #[arg(long, value_name = "NAMESPACE/NAME|pod/NAME", num_args = 0..=1, default_missing_value = "", add = objects::pods(), group = "input", conflicts_with_all = ["files", "filename", "annotations", "netns", "pid"])]
    pod: Option<String>,

    /// Follow a connection from this pod of the cluster: by the Service's name and endpoints, NetworkPolicies, and the rules of both pods
    #[arg(long, value_name = "NAMESPACE/NAME", group = "input", requires = "to_service", conflicts_with_all = ["files", "filename", "annotations", "netns", "pid", "pod"])]
    from_pod: Option<String>,

    /// Service that the connection goes to
    #[arg(long, value_name = "NAMESPACE/NAME:PORT", requires = "from_pod")]
    to_service: Option<String>,

    /// Have the agents of both pods watch the connections that begin in this time, 1s to 60s, and compare them with the prediction
    #[arg(long, value_name = "DURATION", value_parser = observed_time, requires = "to_service")]
    observe: Option<Duration>,

    /// Namespace of pod/NAME
    #[arg(short, long, value_name = "NAMESPACE", default_value = "default", add = objects::namespaces())]
    namespace: String,

    /// With --pod and no name, print the state of the pods of all namespaces
    #[arg(short = 'A', long, requires = "pod")]
    all_namespaces: bool,

    #[command(flatten)]
    agent: AgentArgs,

    #[command(flatten)]
    packet: PacketArgs,

    /// Output format
    #[arg(short, long, alias = "format", value_enum, value_name = "FORMAT", default_value_t = OutputFormat::Text)]
    output: OutputFormat,

    #[command(flatten)]
    injector: InjectorArgs,
}

#[derive(Debug, Subcommand)]
enum ExplainCommand {
    /// Explain why a pod is injected or not, rule by rule
    Inject(Box<inject::ExplainInjectArgs>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OutputFormat {
    /// Text for people
    Text,
    /// One JSON document
    Json,
    /// Drawing of the chains, with the path of the packet
    Svg,
    /// One self-contained page with pictures, also for phones and dark mode
    Html,
}

/// Runs `weir explain`.
///
/// # Errors
/// Everything that is wrong with the command line and the input.
pub(crate) fn run(args: &ExplainArgs) -> Result<ExitCode, Failure> {
    if let Some(ExplainCommand::Inject(args)) = &args.command {
        return inject::run(args);
    }
    if let Some(pod) = &args.pod {
        return explain_from_agent(pod, args);
    }
    if let (Some(pod), Some(service)) = (&args.from_pod, &args.to_service) {
        return explain_service(pod, service, args);
    }
    let namespace = match (&args.netns, args.pid) {
        (Some(path), _) => Some(path.clone()),
        (None, Some(pid)) => Some(netns::of_process(pid)?),
        (None, None) => None,
    };
    let planned = if args.inputs.is_given() || args.annotations.is_some() {
        planned::load(&args.inputs, args.annotations.as_deref(), &args.injector)?
    } else {
        Vec::new()
    };
    let explanations = match namespace {
        Some(path) => vec![explain_namespace(&path, expected(&planned, args)?, &args.packet)?],
        None => explain_planned(&planned, &args.packet).map_err(Failure::findings)?,
    };
    let text = match args.output {
        OutputFormat::Text => text::print(&explanations),
        OutputFormat::Json => json::print(&explanations),
        OutputFormat::Svg => svg::print(&explanations),
        OutputFormat::Html => html::print(&explanations),
    };
    files::write(None, &text)?;
    let healthy =
        explanations.iter().all(|explanation| explanation.netns_report.as_ref().is_none_or(|report| report.is_healthy));
    Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::from(exit::FINDINGS) })
}

/// Returns the pod that a network namespace is compared with, if there is input.
fn expected<'a>(planned: &'a [Planned], args: &ExplainArgs) -> Result<Option<&'a Planned>, Failure> {
    match planned {
        [] if !args.inputs.is_given() && args.annotations.is_none() => Ok(None),
        [one] => Ok(Some(one)),
        more => {
            Err(Failure::usage(format!("--netns and --pid compare with one pod, but the input has {}", more.len())))
        }
    }
}

/// Prints the way of a connection from a pod to a Service.
/// Parses the time of an observation; the agents take no longer one.
fn observed_time(text: &str) -> Result<Duration, String> {
    let time = duration::parse(text)?;
    let range = Duration::from_secs(1)..=Duration::from_mins(1);
    if range.contains(&time) { Ok(time) } else { Err("must be 1s to 60s".to_owned()) }
}

fn explain_service(pod: &str, service: &str, args: &ExplainArgs) -> Result<ExitCode, Failure> {
    let print = match args.output {
        OutputFormat::Text if !args.packet.is_given() => service::text,
        OutputFormat::Json if !args.packet.is_given() => service::json,
        _ => return Err(Failure::usage("--to-service prints text or JSON about its own packet")),
    };
    let connect = args.injector.connection();
    let path = service::explain(pod, service, connect)?;
    let observed = args.observe.map(|time| service::observe(&path, connect, args.agent.node_namespace(), time));
    let observed = observed.transpose()?;
    files::write(None, &print(&path, observed.as_ref()))?;
    let is_as_predicted = observed.as_ref().is_none_or(Observation::is_as_predicted);
    Ok(if is_as_predicted { ExitCode::SUCCESS } else { ExitCode::from(exit::FINDINGS) })
}

/// Prints the state of a pod as its node's agent reports it.
fn explain_from_agent(pod: &str, args: &ExplainArgs) -> Result<ExitCode, Failure> {
    if args.packet.is_given() || args.output != OutputFormat::Text {
        return Err(Failure::usage(
            "--pod prints the state of the rules as text; packets and other formats need --netns, --pid or -f",
        ));
    }
    let connect = args.injector.connection();
    if pod.is_empty() {
        let answers = match args.agent.fetch_direct(connect) {
            Some(answer) => vec![answer?],
            None => args.agent.fetch_from_cluster(connect, &AgentTarget::All)?,
        };
        let namespace = (!args.all_namespaces).then_some(args.namespace.as_str());
        let (text, healthy) = pod::explain_all(answers.iter().map(|(listing, _)| listing), namespace);
        files::write(None, &text)?;
        return Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::from(exit::FINDINGS) });
    }
    if args.all_namespaces {
        return Err(Failure::usage(format!("--all-namespaces is about all pods; leave out the name {pod}")));
    }
    let (namespace, name) = pod::parse_name(pod, &args.namespace);
    let listing = args.agent.fetch_for_pod(connect, namespace, name)?;
    let pod = format!("{namespace}/{name}");
    let (text, healthy) = pod::explain(&listing, &pod).map_err(|finding| Failure::findings(vec![finding]))?;
    files::write(None, &text)?;
    Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::from(exit::FINDINGS) })
}
