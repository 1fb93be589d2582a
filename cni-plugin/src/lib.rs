//! Chained CNI plugin that installs the traffic-capture rules of meshed pods. The library is the body of the binary `weir-cni`, for tests
//! and fuzzing; what other programs need is in `weir-protocol`.
//!
//! ```text
//! stdin + CNI_* ──▶ request.rs, netconf.rs ──▶ pod.rs: CaptureConfig ──▶ RuleSet ──▶ weir-kernel, in the netns ──▶ prevResult on stdout
//!   stdin.rs                                     ▲ where annotations do not say enough
//!                                             agent.rs: query of the node agent; a report of every call
//! ```
//!
//! A pod outside the mesh starts whatever is broken; a meshed pod starts only with its rules in place. For a pod with the annotation
//! `weir.dev/capture` the plugin reads no file, waits for nothing, and starts no process unless the kernel has no nf_tables.

pub mod agent;
pub mod arena;
pub mod error;
pub mod limits;
pub mod log;
pub mod netconf;
pub mod pod;
pub mod request;
pub mod stdin;

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use weir_kernel::ApplyOutcome;
use weir_kernel::backend::{self, BackendError};
use weir_kernel::netns::NetnsError;
use weir_kernel::nft::NftError;
use weir_kernel::route::RoutingOutcome;

use weir_protocol::agent::{AgentEndpoint, CallOutcome, CallReport, PROTOCOL_VERSION, PodQuery, StageTimes};
use weir_protocol::entry::STATUS_OK_FILE;
use weir_protocol::version::{CniVersion, Verb};

use crate::agent::AgentError;
use crate::error::CniError;
use crate::log::{CallLog, LogLevel};
use crate::netconf::{NetConf, PodAnnotations};
use crate::pod::PodPlan;
use crate::request::{EnvLookup, PodArgs, Request};
use weir_protocol::decision::ConfigSource;

/// Output of one call.
#[derive(Debug, PartialEq, Eq)]
pub struct PluginOutput {
    /// All of stdout, to be written at once.
    pub stdout: Vec<u8>,
    /// Exit status: 0, or 1 with an error object on stdout.
    pub exit_code: u8,
}

/// Printed when the plugin is started by hand.
pub const ABOUT: &str = concat!(
    "weir-cni ",
    env!("CARGO_PKG_VERSION"),
    ": chained CNI plugin of Weir; supports CNI 0.3.1, 0.4.0, 1.0.0, 1.1.0"
);

/// Executes one call.
pub fn run(lookup: &EnvLookup<'_>, stdin: Result<Vec<u8>, CniError>) -> PluginOutput {
    let mut call = Call::default();
    let result = execute(lookup, stdin, &mut call);
    if let Err(error) = &result {
        call.log.write(LogLevel::Error, "call failed", &[("error", error.message().into())]);
    }
    call.send_report(&result);
    match result {
        Ok(stdout) => PluginOutput { stdout, exit_code: 0 },
        Err(error) => PluginOutput { stdout: error.to_json(call.version), exit_code: 1 },
    }
}

/// State of a call while it is executed.
#[derive(Debug)]
struct Call {
    log: CallLog,
    version: Option<CniVersion>,
    agent: Option<AgentEndpoint>,
    report: CallReport,
    started: Instant,
    agent_time: Duration,
    kernel_time: Duration,
}

impl Default for Call {
    fn default() -> Self {
        Self {
            log: CallLog::default(),
            version: None,
            agent: None,
            report: CallReport {
                v: PROTOCOL_VERSION,
                outcome: CallOutcome::Done,
                version: env!("CARGO_PKG_VERSION").to_owned(),
                ..CallReport::default()
            },
            started: Instant::now(),
            agent_time: Duration::ZERO,
            kernel_time: Duration::ZERO,
        }
    }
}

impl Call {
    /// Sends the report to the agent, where one is configured, without waiting.
    fn send_report(&mut self, result: &Result<Vec<u8>, CniError>) {
        let Some(agent) = &self.agent else { return };
        if let Err(error) = result {
            self.report.outcome = CallOutcome::Failed;
            self.report.code = Some(error.code());
        }
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let total = self.started.elapsed();
        self.report.stages = StageTimes {
            decide: micros(total.saturating_sub(self.agent_time).saturating_sub(self.kernel_time)),
            agent: micros(self.agent_time),
            kernel: micros(self.kernel_time),
            total: micros(total),
        };
        agent::send(&self.report, agent);
    }

    /// Decides what to do in the pod, and asks the agent where the annotations do not say enough.
    fn decide(&mut self, request: &Request, conf: &NetConf<'_>) -> Result<PodPlan, CniError> {
        let mut agent_time = Duration::ZERO;
        let plan = pod::plan_pod(&request.pod, conf, || {
            let started = Instant::now();
            let no_agent = || AgentError::InvalidAnswer("no agent_socket is configured".to_owned());
            let agent = conf.agent.as_ref().ok_or_else(no_agent)?;
            let PodArgs { namespace, name, uid } = request.pod.clone();
            let answer = agent::query_agent(agent, &PodQuery { v: PROTOCOL_VERSION, uid, namespace, name });
            agent_time = started.elapsed();
            answer
        });
        self.agent_time += agent_time;
        if let Ok(PodPlan::Skip(reason)) = &plan {
            self.report.outcome = CallOutcome::Skipped;
            self.log.write(LogLevel::Info, "skipping pod", &[("reason", reason.to_string().into())]);
        }
        plan
    }

    /// Runs `work` in the pod's network namespace and adds its duration to `kernel_time`.
    fn timed<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let started = Instant::now();
        let result = work();
        self.kernel_time += started.elapsed();
        result
    }
}

fn execute(lookup: &EnvLookup<'_>, stdin: Result<Vec<u8>, CniError>, call: &mut Call) -> Result<Vec<u8>, CniError> {
    let request = Request::from_env(lookup)?;
    call.log.command = request.verb.as_str();
    call.log.container_id.clone_from(&request.container_id);
    if request.pod.is_kubernetes() {
        call.log.pod = request.pod.full_name();
    }
    if request.verb == Verb::Version {
        return Ok(version_output(stdin.as_deref().unwrap_or_default()));
    }
    let result = stdin.and_then(|bytes| {
        let conf = NetConf::parse(&bytes, request.verb)?;
        call.version = Some(conf.version);
        limits::set_version(conf.version);
        if let Some(agent) = &conf.agent {
            limits::extend_deadline(call.started, agent.timeout);
        }
        call.log.level = conf.log_level;
        call.agent.clone_from(&conf.agent);
        call.report = CallReport {
            verb: request.verb.as_str().to_owned(),
            namespace: request.pod.namespace.clone(),
            name: request.pod.name.clone(),
            uid: request.pod.uid.clone(),
            container: request.container_id.clone(),
            netns: request.netns.as_deref().map(|path| path.display().to_string()).unwrap_or_default(),
            valid: if request.verb == Verb::Gc { conf.valid_sandboxes() } else { None },
            ..std::mem::take(&mut call.report)
        };
        match request.verb {
            Verb::Add => add(&request, &conf, call),
            Verb::Check => check(&request, &conf, call).map(|()| Vec::new()),
            Verb::Status => status(&conf, &call.log).map(|()| Vec::new()),
            // The rules are gone with their namespace; the agent removes its own state when it reads the report.
            Verb::Del | Verb::Gc | Verb::Version => Ok(Vec::new()),
        }
    });
    match result {
        // DEL has nothing to undo, so an invalid configuration must not keep a pod from ending.
        Err(error) if request.verb == Verb::Del => {
            call.log.write(LogLevel::Warn, "ignoring an error on DEL", &[("error", error.message().into())]);
            Ok(Vec::new())
        }
        result => result,
    }
}

/// ADD: installs the capture rules of a meshed pod and returns the previous result unchanged, byte for byte.
fn add(request: &Request, conf: &NetConf<'_>, call: &mut Call) -> Result<Vec<u8>, CniError> {
    let result = conf.previous_result()?.into_owned().into_bytes();
    let PodPlan::Capture { rules, config, source } = call.decide(request, conf)? else { return Ok(result) };
    if source == ConfigSource::IstioAnnotations {
        let message =
            "annotation weir.dev/capture is missing; assuming Istio's default uid, gid and environment of the proxy";
        call.log.write(LogLevel::Debug, message, &[]);
    }
    let path = required_netns(request)?;
    let (applied, routed) = call
        .timed(|| backend::install_in(path, &rules, conf.backend_options()))
        .map_err(|error| kernel_failure(error, |reason| CniError::Install { pod: request.pod.full_name(), reason }))?;
    let (outcome, message) = match applied {
        ApplyOutcome::Created => (CallOutcome::Installed, "installed capture rules"),
        ApplyOutcome::Unchanged => (CallOutcome::Unchanged, "capture rules unchanged"),
        ApplyOutcome::Replaced => (CallOutcome::Replaced, "replaced capture rules"),
    };
    call.report.outcome = outcome;
    if call.agent.is_some() {
        call.report.capture = Some(config.to_capture_annotation());
    }
    call.log.write(LogLevel::Info, message, &[("rules", rules.rules.len().into())]);
    if !config.ipv6.is_captured() && conf.pod_addresses().iter().any(IpAddr::is_ipv6) {
        call.log.write(LogLevel::Warn, "IPv6 traffic is not captured and bypasses the mesh", &[]);
    }
    if routed == RoutingOutcome::WithoutIpv6 {
        call.log.write(LogLevel::Info, "IPv6 is disabled in the pod; not adding ::6 to lo", &[]);
    }
    Ok(result)
}

/// CHECK: fails where the rules in the kernel differ from those that ADD would install now.
fn check(request: &Request, conf: &NetConf<'_>, call: &mut Call) -> Result<(), CniError> {
    conf.previous_result()?;
    let PodPlan::Capture { rules, .. } = call.decide(request, conf)? else { return Ok(()) };
    let path = required_netns(request)?;
    let pod = request.pod.full_name();
    match call.timed(|| backend::differences_in(path, &rules, conf.backend_options())) {
        Ok(differences) if differences.is_empty() => Ok(()),
        Ok(differences) => Err(CniError::Drifted { pod, differences }),
        Err(error) => Err(kernel_failure(error, |reason| CniError::Unreadable { pod, reason })),
    }
}

/// STATUS: fails where ADD cannot succeed: the configuration is invalid, neither annotations nor an agent tell about pods, or the kernel
/// has no nf_tables.
///
/// When STATUS fails, the runtime starts no pod at all, meshed or not. So it fails only until it has succeeded once since the node's boot;
/// after that, only ADD fails, and only for meshed pods.
fn status(conf: &NetConf<'_>, log: &CallLog) -> Result<(), CniError> {
    let ok_file = conf.agent.as_ref().map(|agent| agent.socket.with_file_name(STATUS_OK_FILE));
    match (check_prerequisites(conf), ok_file) {
        (Ok(()), ok_file) => {
            if let Some(path) = ok_file.filter(|path| !path.exists()) {
                // Without it the next failure counts, which is safe.
                let _ = fs::write(path, "");
            }
            Ok(())
        }
        (Err(error), Some(path)) if path.exists() => {
            let message = "STATUS would fail now; reporting ready because this node was ready before";
            log.write(LogLevel::Warn, message, &[("error", error.message().into())]);
            Ok(())
        }
        (Err(error), _) => Err(error),
    }
}

fn check_prerequisites(conf: &NetConf<'_>) -> Result<(), CniError> {
    conf.require_valid()?;
    if conf.annotations()? == PodAnnotations::NotDeclared && conf.agent.is_none() {
        return Err(pod::capability_not_declared());
    }
    backend::check_available(conf.backend_options()).map_err(|error| CniError::NotAvailable(error.to_string()))
}

/// Returns the error for a failure in the pod's network namespace: a wrong namespace and an unsupported setting have errors of their own.
fn kernel_failure(error: BackendError, otherwise: impl FnOnce(String) -> CniError) -> CniError {
    match error {
        BackendError::Netns(NetnsError::Open { .. } | NetnsError::Enter { .. }) | BackendError::OwnNetns(_) => {
            CniError::Netns(error.to_string())
        }
        BackendError::Nft(NftError::Unsupported(what)) => CniError::Backend(what),
        other => otherwise(other.to_string()),
    }
}

fn required_netns(request: &Request) -> Result<&Path, CniError> {
    request.netns.as_deref().ok_or_else(|| CniError::InvalidEnvironment(vec!["CNI_NETNS is missing".to_owned()]))
}

/// Returns the answer to VERSION: in the version of the input where it is supported, else in the newest.
fn version_output(stdin: &[u8]) -> Vec<u8> {
    let version = NetConf::parse(stdin, Verb::Version).map_or(CniVersion::NEWEST, |conf| conf.version);
    let names = CniVersion::names().map(|name| format!("\"{name}\"")).join(",");
    format!("{{\"cniVersion\":\"{version}\",\"supportedVersions\":[{names}]}}\n").into_bytes()
}
