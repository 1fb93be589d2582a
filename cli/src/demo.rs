//! `weir demo`: the whole pipeline on this machine, with the real binaries, and nothing left of it afterwards.
//!
//! ```text
//! preflight ─▶ webhook + review ─▶ cni (bridge, portmap, weir-cni) ─▶ app + sidecar ─▶ flows ─▶ CHECK, DEL ─▶ report
//!               in the namespace "node"                    ╰─▶ in the namespace "pod"
//! ```
//!
//! Both namespaces are held by this process alone, so that no bridge, address or rule ever appears on the machine. Processes that
//! stay are started by `part.rs` and die with this one, also when it is killed. Only then its temporary folder stays behind.

mod app;
mod cni;
mod flows;
mod interrupt;
mod part;
mod preflight;
mod report;
mod review;
mod sidecar;
mod webhook;

use std::fs;
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use serde_json::Value;
use weir_lab::{Echo, Netns, User};

use crate::failure::{Failure, exit};
use app::App;
use cni::Attachment;
use flows::{Flow, SERVER_PORT, Stage};
use interrupt::Interrupt;
use preflight::Found;
use report::{AddTime, Check, PluginTime, Report, Teller, microseconds, milliseconds};
use review::{Admission, Candidate};
use sidecar::Sidecar;
use webhook::Webhook;

/// Fresh namespaces in which ADD is timed.
const TIMED: usize = 9;
/// What a shell reports for a process that SIGINT ended.
const INTERRUPTED: u8 = 130;

/// Options of `weir demo`.
#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Print one JSON document instead of text
    #[arg(long)]
    pub(crate) json: bool,
    /// Envoy to run as the sidecar; without it, or where the file of WEIR_ENVOY is missing, a small proxy of our own serves
    #[arg(long, value_name = "FILE")]
    pub(crate) envoy: Option<PathBuf>,
    /// Play one of the demo's processes
    #[arg(long, hide = true, value_name = "JSON")]
    pub(crate) part: Option<String>,
}

/// Runs the demo.
///
/// # Errors
/// What keeps the demo from running at all; a connection that goes the wrong way is an exit code.
pub(crate) fn run(args: &DemoArgs) -> Result<ExitCode, Failure> {
    if let Some(part) = &args.part {
        part::play(part)?;
        return Ok(ExitCode::SUCCESS);
    }
    let default_envoy = std::env::var_os("WEIR_ENVOY").map(PathBuf::from).filter(|path| path.is_file());
    let found = preflight::look(args.envoy.as_deref().or(default_envoy.as_deref())).map_err(Failure::refused)?;
    let stop = Interrupt::listen().context("signal handlers")?;
    let teller = Teller::new(args.json);
    match play(&found, &teller, &stop) {
        Ok(report) => {
            if args.json {
                let mut out = std::io::stdout().lock();
                serde_json::to_writer_pretty(&mut out, &report).context("writing the report")?;
                writeln!(out).context("writing the report")?;
            }
            Ok(ExitCode::from(if report.ok { 0 } else { exit::FINDINGS }))
        }
        // Whatever failed then, failed because of it.
        Err(_) if stop.is_set() => {
            eprintln!("weir demo: interrupted; everything it made is removed");
            Ok(ExitCode::from(INTERRUPTED))
        }
        Err(error) => Err(Failure::refused(vec![format!("{error:#}")])),
    }
}

/// The play in its order. What it makes is gone when it returns, by whatever way.
fn play(found: &Found, teller: &Teller, stop: &Interrupt) -> anyhow::Result<Report> {
    let dir = tempfile::Builder::new().prefix("weir-demo-").tempdir().context("temporary folder")?;
    let (node, pod) = (Netns::new("node")?, Netns::new("pod")?);
    let (node_number, pod_number) = (node.number()?, pod.number()?);

    let candidate = Candidate::from_deployment(review::MANIFEST).context(review::MANIFEST_PATH)?;
    let admission = admit(found, &node, dir.path(), &candidate, teller, stop)?;
    let sidecar_user = admission.sidecar_user()?;

    let annotations = admission.annotations();
    let attachment = Attachment {
        node: &node,
        pod: &pod,
        cni_path: &found.cni_path,
        namespace: &candidate.namespace,
        name: &format!("{}-x7k2p", candidate.deployment),
        annotations: &annotations,
    };
    let plugins = cni::plugins(&dir.path().join("ipam"));
    let calls = attach(&attachment, &plugins, teller, stop)?;
    let result = calls.last().and_then(|call| call.result.clone()).context("the plugins left no result")?;
    let addresses = addresses(&result)?;

    let (flows, sidecar) = {
        teller.step("The processes in the pod")?;
        let _server = Echo::start(&node, User::ROOT, &[SERVER_PORT])?;
        let mut app = App::start(&pod, candidate.user, &candidate.app, candidate.port, &dir.path().join("app.log"))?;
        teller.line(format_args!(
            "app      {} on :{}, uid {}, process {}",
            candidate.app,
            candidate.port,
            app.user.uid,
            app.pid()
        ))?;
        let sidecar = Sidecar::start(&pod, sidecar_user, found.envoy.as_deref(), dir.path(), stop)?;
        teller.line(format_args!("sidecar  {}, uid {}", sidecar.describe(), sidecar_user.uid))?;
        if found.envoy.is_none() {
            teller.line("         (no Envoy: --envoy or WEIR_ENVOY names one, `make tools` installs it)")?;
        }
        teller.step("The connections")?;
        let mut stage = Stage {
            node: &node,
            pod: &pod,
            app: &mut app,
            app_port: candidate.port,
            sidecar: &sidecar,
            sidecar_user,
            addresses: addresses.iter().map(|(address, gateway, _)| (*address, *gateway)).collect(),
        };
        let flows = stage.play(stop, |flow| Ok(teller.flow(flow)?))?;
        (flows, sidecar.describe())
    };

    stop.check()?;
    let mut checks = vec![
        families(&flows),
        Check::succeeds("CNI CHECK", &attachment.check(&plugins, &result)),
        Check::succeeds("CNI DEL", &attachment.del(&plugins, &result)),
        // Runtimes repeat it; it must not mind.
        Check::succeeds("CNI DEL again", &attachment.del(&plugins, &result)),
    ];
    let add = time_add(&attachment, &plugins, &result, stop)?;
    drop((node, pod));
    let path = dir.path().to_owned();
    dir.close().context("removing the temporary folder")?;
    checks.push(traces(&[node_number, pod_number], &path));

    let ok = flows.iter().all(|flow| flow.ok) && checks.iter().all(|check| check.ok);
    let report = Report {
        ok,
        manifest: review::MANIFEST_PATH,
        admission,
        addresses: addresses.into_iter().map(|(_, _, text)| text).collect(),
        plugins: calls
            .into_iter()
            .map(|call| PluginTime { plugin: call.plugin, microseconds: microseconds(call.took) })
            .collect(),
        sidecar,
        flows,
        checks,
        add,
    };
    teller.table(&report)?;
    teller.line(format_args!(
        "weir-cni ADD took {}, process start to exit, median of {} fresh namespaces",
        milliseconds(report.add.median_microseconds),
        report.add.namespaces
    ))?;
    Ok(report)
}

/// Starts the webhook, asks it about the pod and ends it.
fn admit(
    found: &Found,
    node: &Netns,
    dir: &Path,
    candidate: &Candidate,
    teller: &Teller,
    stop: &Interrupt,
) -> anyhow::Result<Admission> {
    teller.step("The admission")?;
    let webhook = Webhook::start(node, &found.webhook, dir)?;
    let (admission, took) = webhook.admit(node, candidate, stop)?;
    teller.line(format_args!("POST {} over TLS, its certificate verified against its own CA", Webhook::url()))?;
    teller.line(format_args!(
        "a pod of Deployment {}/{} ({}): allowed, {} operations, {}",
        candidate.namespace,
        candidate.deployment,
        review::MANIFEST_PATH,
        admission.operations,
        milliseconds(microseconds(took))
    ))?;
    for warning in &admission.warnings {
        teller.line(format_args!("warning: {warning}"))?;
    }
    for container in &admission.added_containers {
        teller.line(format_args!("+ {container}"))?;
    }
    teller.line(format_args!("+ volumes {}", admission.added_volumes.join(", ")))?;
    for (key, value) in &admission.added_annotations {
        teller.line(format_args!("+ annotation {key}: {}", shortened(value.as_str().unwrap_or_default())))?;
    }
    Ok(admission)
}

/// The beginning of a long text.
fn shortened(text: &str) -> String {
    const MOST: usize = 72;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{} ...", &text[..end]),
        None => text.to_owned(),
    }
}

/// Runs the plugins for ADD.
fn attach(
    attachment: &Attachment<'_>,
    plugins: &[Value],
    teller: &Teller,
    stop: &Interrupt,
) -> anyhow::Result<Vec<cni::Call>> {
    stop.check()?;
    teller.step("The network, as a container runtime makes it")?;
    let calls = attachment.add(plugins)?;
    for call in &calls {
        teller.line(format_args!("{:<10} ADD ok, {}", call.plugin, milliseconds(microseconds(call.took))))?;
    }
    let result = calls.last().and_then(|call| call.result.as_ref());
    for (address, gateway, text) in result.map(addresses).transpose()?.unwrap_or_default() {
        let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
        teller.line(format_args!("eth0       {family} {text}, gateway {gateway}"))?;
    }
    Ok(calls)
}

/// Addresses in a CNI result: the pod's, the gateway's, and the pod's with its prefix length.
fn addresses(result: &Value) -> anyhow::Result<Vec<(IpAddr, IpAddr, String)>> {
    let parse = |ip: &Value| -> anyhow::Result<(IpAddr, IpAddr, String)> {
        let text = |field: &str| ip[field].as_str().with_context(|| format!("an address without {field}: {ip}"));
        let address = text("address")?;
        let (bare, _) = address.split_once('/').with_context(|| format!("{address} has no prefix length"))?;
        Ok((bare.parse()?, text("gateway")?.parse()?, address.to_owned()))
    };
    result["ips"].as_array().into_iter().flatten().map(parse).collect()
}

/// Times `weir-cni` ADD in fresh namespaces.
fn time_add(
    attachment: &Attachment<'_>,
    plugins: &[Value],
    result: &Value,
    stop: &Interrupt,
) -> anyhow::Result<AddTime> {
    let plugin = plugins.last().context("no plugin")?;
    let mut times = Vec::with_capacity(TIMED);
    for _ in 0..TIMED {
        stop.check()?;
        let pod = Netns::new("fresh")?;
        times.push(Attachment { pod: &pod, ..*attachment }.call("ADD", plugin, Some(result))?.took);
    }
    Ok(AddTime::of(times))
}

/// Whether both families were shown: a pod without an IPv6 address would have fewer connections and no wrong one.
fn families(flows: &[Flow]) -> Check {
    let mut seen: Vec<&str> = flows.iter().map(|flow| flow.family).collect();
    seen.dedup();
    let (got, expected) = (seen.join(", "), "IPv4, IPv6");
    Check { what: "families", expected, ok: got == expected, got }
}

/// Whether anything is left: a process in one of the namespaces, which would keep it alive, or the temporary folder.
fn traces(namespaces: &[u64], dir: &Path) -> Check {
    let mut left: Vec<String> = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let inside = fs::metadata(entry.path().join("ns/net")).is_ok_and(|link| namespaces.contains(&link.ino()));
        if inside {
            left.push(format!("process {}", entry.file_name().display()));
        }
    }
    if dir.exists() {
        left.push(dir.display().to_string());
    }
    let got = if left.is_empty() { "nothing".to_owned() } else { left.join(", ") };
    Check { what: "left on the machine", expected: "nothing", ok: left.is_empty(), got }
}
