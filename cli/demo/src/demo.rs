//! The steps of the demo, in their order.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::Context as _;
use serde_json::Value;
use weir_lab::{Netns, TcpEcho, User};

use crate::app::App;
use crate::cni::{self, Attachment};
use crate::flows::{Flow, SERVER_PORT, Testbed};
use crate::interrupt::Interrupt;
use crate::preflight::Prerequisites;
use crate::report::{AddTime, Check, PluginTime, Printer, Report, microseconds, milliseconds};
use crate::review::{self, AppliedPatch, PodUnderTest};
use crate::sidecar::Sidecar;
use crate::webhook::Webhook;

/// Fresh namespaces in which ADD is timed.
const TIMED: usize = 9;

/// Runs all steps. Everything that they create is removed when this returns, also with an error.
pub(crate) fn run(prerequisites: &Prerequisites, printer: &Printer, stop: &Interrupt) -> anyhow::Result<Report> {
    let dir = tempfile::Builder::new().prefix("weir-demo-").tempdir().context("cannot create a temporary directory")?;
    let (node, pod) = (Netns::new("node")?, Netns::new("pod")?);
    let (node_number, pod_number) = (node.inode()?, pod.inode()?);

    let pod_under_test = PodUnderTest::from_deployment(review::MANIFEST).context(review::MANIFEST_PATH)?;
    let admission = admit(prerequisites, &node, dir.path(), &pod_under_test, printer, stop)?;
    let sidecar_user = admission.sidecar_user()?;

    let annotations = admission.annotations();
    let attachment = Attachment {
        node: &node,
        pod: &pod,
        cni_path: &prerequisites.cni_path,
        namespace: &pod_under_test.namespace,
        name: &format!("{}-x7k2p", pod_under_test.deployment),
        annotations: &annotations,
    };
    let plugins = cni::plugins(&dir.path().join("ipam"));
    let calls = attach(&attachment, &plugins, printer, stop)?;
    let result = calls.last().and_then(|call| call.result.clone()).context("the plugins returned no result")?;
    let addresses = addresses(&result)?;

    let machines = Machines { node: &node, pod: &pod, dir: dir.path(), addresses: &addresses };
    let (flows, sidecar) = connect(&machines, prerequisites, &pod_under_test, sidecar_user, printer, stop)?;

    stop.check()?;
    let mut checks = vec![
        families(&flows),
        Check::succeeds("CNI CHECK", &attachment.check(&plugins, &result)),
        Check::succeeds("CNI DEL", &attachment.del(&plugins, &result)),
        // Runtimes repeat DEL, so it has to be idempotent.
        Check::succeeds("CNI DEL again", &attachment.del(&plugins, &result)),
    ];
    let add = time_add(&attachment, &plugins, &result, stop)?;
    drop((node, pod));
    let path = dir.path().to_owned();
    dir.close().context("cannot remove the temporary directory")?;
    checks.push(leftovers(&[node_number, pod_number], &path));

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
    printer.table(&report)?;
    printer.line(format_args!(
        "weir-cni ADD took {}, process start to exit, median of {} fresh namespaces",
        milliseconds(report.add.median_microseconds),
        report.add.namespaces
    ))?;
    Ok(report)
}

/// The namespaces of the demo, its directory, and the addresses of the pod and its gateways.
struct Machines<'a> {
    node: &'a Netns,
    pod: &'a Netns,
    dir: &'a Path,
    addresses: &'a [(IpAddr, IpAddr, String)],
}

/// Starts application and sidecar, and makes all connections; returns them with a description of the sidecar.
fn connect(
    machines: &Machines<'_>,
    prerequisites: &Prerequisites,
    pod_under_test: &PodUnderTest,
    sidecar_user: User,
    printer: &Printer,
    stop: &Interrupt,
) -> anyhow::Result<(Vec<Flow>, String)> {
    let Machines { node, pod, dir, addresses } = machines;
    let PodUnderTest { app: name, port, user, .. } = pod_under_test;
    printer.heading("The processes in the pod")?;
    let _server = TcpEcho::start(node, User::ROOT, &[SERVER_PORT])?;
    let mut app = App::start(pod, *user, name, *port, &dir.join("app.log"))?;
    printer.line(format_args!("app      {name} on :{port}, uid {}, process {}", user.uid, app.pid()))?;
    let sidecar = Sidecar::start(pod, sidecar_user, prerequisites.envoy.as_deref(), dir, stop)?;
    printer.line(format_args!("sidecar  {}, uid {}", sidecar.describe(), sidecar_user.uid))?;
    if prerequisites.envoy.is_none() {
        printer.line("         (no Envoy: pass --envoy or set WEIR_ENVOY; `make tools` installs it)")?;
    }
    printer.heading("The connections")?;
    let mut testbed = Testbed {
        node,
        pod,
        app: &mut app,
        app_port: *port,
        sidecar: &sidecar,
        sidecar_user,
        addresses: addresses.iter().map(|(address, gateway, _)| (*address, *gateway)).collect(),
    };
    let flows = testbed.run_all(stop, |flow| Ok(printer.flow(flow)?))?;
    Ok((flows, sidecar.describe()))
}

/// Starts the webhook, has it review the pod, and ends it.
fn admit(
    prerequisites: &Prerequisites,
    node: &Netns,
    dir: &Path,
    pod_under_test: &PodUnderTest,
    printer: &Printer,
    stop: &Interrupt,
) -> anyhow::Result<AppliedPatch> {
    printer.heading("The admission")?;
    let webhook = Webhook::start(node, &prerequisites.webhook, dir)?;
    let (admission, took) = webhook.admit(node, pod_under_test, stop)?;
    printer.line(format_args!("POST {} over TLS, its certificate verified against its own CA", Webhook::url()))?;
    printer.line(format_args!(
        "a pod of Deployment {}/{} ({}): allowed, {} operations, {}",
        pod_under_test.namespace,
        pod_under_test.deployment,
        review::MANIFEST_PATH,
        admission.operations,
        milliseconds(microseconds(took))
    ))?;
    for warning in &admission.warnings {
        printer.line(format_args!("warning: {warning}"))?;
    }
    for container in &admission.added_containers {
        printer.line(format_args!("+ {container}"))?;
    }
    printer.line(format_args!("+ volumes {}", admission.added_volumes.join(", ")))?;
    for (key, value) in &admission.added_annotations {
        printer.line(format_args!("+ annotation {key}: {}", shortened(value.as_str().unwrap_or_default())))?;
    }
    Ok(admission)
}

/// Cuts a long text.
fn shortened(text: &str) -> String {
    const MAX: usize = 72;
    match text.char_indices().nth(MAX) {
        Some((end, _)) => format!("{} ...", &text[..end]),
        None => text.to_owned(),
    }
}

/// Runs the plugins for ADD.
fn attach(
    attachment: &Attachment<'_>,
    plugins: &[Value],
    printer: &Printer,
    stop: &Interrupt,
) -> anyhow::Result<Vec<cni::Call>> {
    stop.check()?;
    printer.heading("The network, as a container runtime makes it")?;
    let calls = attachment.add(plugins)?;
    for call in &calls {
        printer.line(format_args!("{:<10} ADD ok, {}", call.plugin, milliseconds(microseconds(call.took))))?;
    }
    let result = calls.last().and_then(|call| call.result.as_ref());
    for (address, gateway, text) in result.map(addresses).transpose()?.unwrap_or_default() {
        let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
        printer.line(format_args!("eth0       {family} {text}, gateway {gateway}"))?;
    }
    Ok(calls)
}

/// Returns the addresses of a CNI result: the pod's, the gateway's, and the pod's with its prefix length.
fn addresses(result: &Value) -> anyhow::Result<Vec<(IpAddr, IpAddr, String)>> {
    let parse = |ip: &Value| -> anyhow::Result<(IpAddr, IpAddr, String)> {
        let text = |field: &str| ip[field].as_str().with_context(|| format!("address {ip} has no {field}"));
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

/// Checks that both families were tested: a pod without an IPv6 address would have fewer connections, all of them as expected.
fn families(flows: &[Flow]) -> Check {
    let mut seen: Vec<&str> = flows.iter().map(|flow| flow.family).collect();
    seen.dedup();
    let (got, expected) = (seen.join(", "), "IPv4, IPv6");
    Check { what: "families", expected, ok: got == expected, got }
}

/// Checks that nothing is left: a process in one of the namespaces, which would keep it alive, or the temporary directory.
fn leftovers(namespaces: &[u64], dir: &Path) -> Check {
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
    Check { what: "leftovers on the machine", expected: "nothing", ok: left.is_empty(), got }
}
