//! The chained CNI plugin `weir-cni`.
//!
//! ```text
//! stdin + CNI_* ──▶ request ──▶ who is this pod? ──▶ CaptureConfig ──▶ RuleSet ──▶ netns: nft, lo address ──▶ prevResult on stdout
//!  stdin.rs         request.rs    pod.rs  ▲               (iptables-rules)             kernel.rs                   lib.rs
//!                   netconf.rs            │ where annotations do not say it
//!                                  agent.rs: the node agent's socket            every call ──▶ agent.rs: a report
//! ```
//!
//! Everything before `kernel.rs` is a decision on plain values. The failure stance: a pod that is not in the mesh passes whatever is
//! broken, a pod that is in the mesh starts only with its rules in place. For a pod with the annotation `weir.dev/capture` no file is read,
//! nothing is waited for, and no process is started unless the kernel has no nf_tables.

pub mod agent;
pub mod failure;
pub mod log;
pub mod netconf;
pub mod pod;
pub mod request;
pub mod stdin;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use iptables_rules::RuleSet;
use weir_kernel::backend::BackendError;
use weir_kernel::netns::NetnsError;
use weir_kernel::nft::{Applied, NftError};
use weir_kernel::route::Routed;

use weir_protocol::agent::{self as protocol, Agent, Question, Report, Stages};
use weir_protocol::entry::STATUS_SEEN;
use weir_protocol::version::{CniVersion, Verb};

use crate::agent::AskError;
use crate::failure::Failure;
use crate::log::{Level, Log};
use crate::netconf::{NetConf, PodAnnotations};
use crate::pod::Verdict;
use crate::request::{Lookup, PodArgs, Request};
use weir_kernel::namespace::KernelError;
use weir_protocol::decision::Source;

/// What a call leaves behind: stdout, written once, and the exit status.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    /// All of stdout.
    pub stdout: Vec<u8>,
    /// Exit status: 0, or 1 with an error object on stdout.
    pub exit: u8,
}

impl Outcome {
    fn success(stdout: Vec<u8>) -> Self {
        Self { stdout, exit: 0 }
    }

    fn failure(failure: &Failure, version: Option<CniVersion>) -> Self {
        Self { stdout: failure.to_json(version), exit: 1 }
    }
}

/// One line for people who start the plugin by hand.
pub const ABOUT: &str = concat!(
    "weir-cni ",
    env!("CARGO_PKG_VERSION"),
    ": chained CNI plugin of Weir; speaks CNI 0.3.1, 0.4.0, 1.0.0, 1.1.0"
);

/// Carries out one call.
pub fn run(lookup: &Lookup<'_>, stdin: Result<Vec<u8>, Failure>) -> Outcome {
    let mut call = Call::default();
    let result = carry_out(lookup, stdin, &mut call);
    if let Err(failure) = &result {
        call.log.write(Level::Error, &failure.message());
    }
    call.tell_agent(&result);
    match result {
        Ok(stdout) => Outcome::success(stdout),
        Err(failure) => Outcome::failure(&failure, call.version),
    }
}

/// What is known of a call while it goes on.
#[derive(Debug)]
struct Call {
    log: Log,
    version: Option<CniVersion>,
    agent: Option<Agent>,
    report: Report,
    begun: Instant,
    in_agent: Duration,
    in_kernel: Duration,
}

impl Default for Call {
    fn default() -> Self {
        let report = Report { v: protocol::VERSION, outcome: protocol::Outcome::Done, ..Report::default() };
        let (version, agent) = (None, None);
        let (in_agent, in_kernel) = (Duration::ZERO, Duration::ZERO);
        Self { log: Log::default(), version, agent, report, begun: Instant::now(), in_agent, in_kernel }
    }
}

impl Call {
    /// Reports to the agent, if there is one, without waiting.
    fn tell_agent(&mut self, result: &Result<Vec<u8>, Failure>) {
        let Some(agent) = &self.agent else { return };
        if let Err(failure) = result {
            self.report.outcome = protocol::Outcome::Failed;
            self.report.code = Some(failure.code());
        }
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let total = self.begun.elapsed();
        self.report.stages = Stages {
            decide: micros(total.saturating_sub(self.in_agent).saturating_sub(self.in_kernel)),
            agent: micros(self.in_agent),
            kernel: micros(self.in_kernel),
            total: micros(total),
        };
        agent::send(&self.report, agent);
    }

    /// Decides about the pod, with the agent's help where there is one and it is needed.
    fn judge(&mut self, request: &Request, conf: &NetConf<'_>) -> Result<Verdict, Failure> {
        let mut in_agent = Duration::ZERO;
        let verdict = pod::judge(&request.pod, conf, || {
            let asked = Instant::now();
            // It is asked only where the configuration names one.
            let agent = conf.agent.as_ref().ok_or_else(|| AskError::Protocol("there is none".to_owned()))?;
            let PodArgs { namespace, name, uid } = request.pod.clone();
            let answer = agent::ask(agent, &Question { v: protocol::VERSION, uid, namespace, name });
            in_agent = asked.elapsed();
            answer
        });
        self.in_agent += in_agent;
        if let Ok(Verdict::Skip(reason)) = &verdict {
            self.report.outcome = protocol::Outcome::Passed;
            self.log.write(Level::Info, &format!("passed untouched: {reason}"));
        }
        verdict
    }

    /// Does something in the pod's namespace.
    fn in_kernel<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let entered = Instant::now();
        let result = work();
        self.in_kernel += entered.elapsed();
        result
    }
}

fn carry_out(lookup: &Lookup<'_>, stdin: Result<Vec<u8>, Failure>, call: &mut Call) -> Result<Vec<u8>, Failure> {
    let request = Request::from_env(lookup)?;
    call.log.command = request.verb.as_str();
    call.log.container_id.clone_from(&request.container_id);
    if request.pod.is_kubernetes() {
        call.log.pod = request.pod.full_name();
    }
    if request.verb == Verb::Version {
        return Ok(versions(stdin.as_deref().unwrap_or_default()));
    }
    let result = stdin.and_then(|bytes| {
        let conf = NetConf::parse(&bytes, request.verb)?;
        call.version = Some(conf.version);
        call.log.level = conf.log_level;
        call.agent.clone_from(&conf.agent);
        call.report = Report {
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
            // Nothing is kept outside of namespaces, and rules go with theirs. What the agent keeps goes with the report.
            Verb::Del | Verb::Gc | Verb::Version => Ok(Vec::new()),
        }
    });
    match result {
        // With nothing to undo there is nothing in a configuration that a pod's end should fail on.
        Err(failure) if request.verb == Verb::Del => {
            call.log.write(Level::Warn, &failure.message());
            Ok(Vec::new())
        }
        result => result,
    }
}

/// ADD: programs the namespace of a pod of the mesh and passes the previous result through, byte for byte.
fn add(request: &Request, conf: &NetConf<'_>, call: &mut Call) -> Result<Vec<u8>, Failure> {
    let result = conf.previous_result()?.into_owned().into_bytes();
    if let Verdict::Capture { rules, source } = call.judge(request, conf)? {
        if source == Source::IstioAnnotations {
            call.log.write(Level::Debug, "no annotation weir.dev/capture: uid, gid and environment of the proxy are taken to be Istio's defaults");
        }
        let path = netns_of(request)?;
        let (applied, routed) = call
            .in_kernel(|| weir_kernel::namespace::install(path, &rules, conf.method()))
            .map_err(|error| in_kernel(error, |reason| Failure::Install { pod: request.pod.full_name(), reason }))?;
        call.report.outcome = match applied {
            Applied::Created => protocol::Outcome::Installed,
            Applied::Unchanged => protocol::Outcome::Unchanged,
            Applied::Replaced => protocol::Outcome::Replaced,
        };
        call.log.write(Level::Info, &installed(&rules, applied));
        if routed == Routed::WithoutIpv6 {
            call.log.write(Level::Info, "IPv6 is switched off in the pod: no address ::6 on lo");
        }
    }
    Ok(result)
}

fn installed(rules: &RuleSet, applied: Applied) -> String {
    let how = match applied {
        Applied::Created => "installed",
        Applied::Unchanged => "in place already",
        Applied::Replaced => "replaced",
    };
    format!("capture rules {how}: {} rules", rules.rules.len())
}

/// CHECK: the kernel's rules are those that ADD would install now.
fn check(request: &Request, conf: &NetConf<'_>, call: &mut Call) -> Result<(), Failure> {
    conf.previous_result()?;
    if let Verdict::Capture { rules, .. } = call.judge(request, conf)? {
        let path = netns_of(request)?;
        let differences = call
            .in_kernel(|| weir_kernel::namespace::differences(path, &rules, conf.method()))
            .map_err(|error| in_kernel(error, |reason| Failure::Unreadable { pod: request.pod.full_name(), reason }))?;
        if !differences.is_empty() {
            return Err(Failure::Differs { pod: request.pod.full_name(), differences });
        }
    }
    Ok(())
}

/// STATUS: could an ADD succeed now? The configuration is sound, somebody will tell about pods, nf_tables answers.
///
/// A runtime takes the whole node out of service for a bad answer, pods outside the mesh included. So once the answer has been good it
/// stays good: what breaks later is held against pods of the mesh alone, by ADD.
fn status(conf: &NetConf<'_>, log: &Log) -> Result<(), Failure> {
    let seen = conf.agent.as_ref().map(|agent| agent.socket.with_file_name(STATUS_SEEN));
    match (able(conf), seen) {
        (Ok(()), seen) => {
            if let Some(seen) = seen.filter(|seen| !seen.exists()) {
                // Without an agent's folder it is only forgotten that the answer was good.
                let _ = fs::write(seen, "");
            }
            Ok(())
        }
        (Err(failure), Some(seen)) if seen.exists() => {
            log.write(Level::Warn, &format!("set up before, and still said to be: {}", failure.message()));
            Ok(())
        }
        (Err(failure), _) => Err(failure),
    }
}

fn able(conf: &NetConf<'_>) -> Result<(), Failure> {
    conf.require_sound().and_then(|()| match conf.annotations()? {
        PodAnnotations::NotDeclared if conf.agent.is_none() => Err(pod::not_declared()),
        _ => Ok(()),
    })?;
    weir_kernel::namespace::available(conf.method()).map_err(|error| Failure::NotAvailable(error.to_string()))
}

/// A wrong namespace and a setting that the backend lacks are errors of their own; anything else is the kernel's answer.
fn in_kernel(error: KernelError, otherwise: impl FnOnce(String) -> Failure) -> Failure {
    match error {
        KernelError::Netns(NetnsError::Open { .. } | NetnsError::Enter { .. }) | KernelError::OwnNamespace(_) => {
            Failure::Netns(error.to_string())
        }
        KernelError::Backend(BackendError::Nft(NftError::Unsupported(what))) => Failure::Backend(what),
        other => otherwise(other.to_string()),
    }
}

fn netns_of(request: &Request) -> Result<&Path, Failure> {
    request.netns.as_deref().ok_or_else(|| Failure::Environment(vec!["CNI_NETNS is missing".to_owned()]))
}

/// Answer of VERSION. The version of the input is echoed where it is one of ours; without input it is the newest.
fn versions(stdin: &[u8]) -> Vec<u8> {
    let version = NetConf::parse(stdin, Verb::Version).map_or(CniVersion::NEWEST, |conf| conf.version);
    let names = CniVersion::names().map(|name| format!("\"{name}\"")).join(",");
    format!("{{\"cniVersion\":\"{version}\",\"supportedVersions\":[{names}]}}\n").into_bytes()
}
