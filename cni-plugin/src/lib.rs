//! The chained CNI plugin `weir-cni`.
//!
//! ```text
//! stdin + CNI_* ──▶ request ──▶ who is this pod? ──▶ CaptureConfig ──▶ RuleSet ──▶ netns: nft, lo address ──▶ prevResult on stdout
//!  stdin.rs         request.rs    pod.rs                (iptables-rules)             kernel.rs                   lib.rs
//!                   netconf.rs
//! ```
//!
//! Everything before `kernel.rs` is a decision on plain values. The failure stance: a pod that is not in the mesh passes whatever is
//! broken, a pod that is in the mesh starts only with its rules in place. No file is read, nothing is waited for, and no
//! process is started unless the kernel has no nf_tables.

pub mod entry;
pub mod failure;
pub mod kernel;
pub mod log;
pub mod netconf;
pub mod pod;
pub mod request;
pub mod stdin;
pub mod version;

use std::path::Path;

use iptables_rules::RuleSet;
use iptables_rules::netns::NetnsError;
use iptables_rules::nft::{Applied, NftError};
use iptables_rules::route::Routed;

use crate::failure::Failure;
use crate::kernel::KernelError;
use crate::log::{Level, Log};
use crate::netconf::{NetConf, PodAnnotations};
use crate::pod::{Source, Verdict};
use crate::request::{Lookup, Request};
use crate::version::{CniVersion, Verb};

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
    let mut log = Log::default();
    let mut version = None;
    match carry_out(lookup, stdin, &mut log, &mut version) {
        Ok(stdout) => Outcome::success(stdout),
        Err(failure) => {
            log.write(Level::Error, &failure.message());
            Outcome::failure(&failure, version)
        }
    }
}

fn carry_out(
    lookup: &Lookup<'_>,
    stdin: Result<Vec<u8>, Failure>,
    log: &mut Log,
    version: &mut Option<CniVersion>,
) -> Result<Vec<u8>, Failure> {
    let request = Request::from_env(lookup)?;
    log.command = request.verb.as_str();
    log.container_id.clone_from(&request.container_id);
    if request.pod.is_kubernetes() {
        log.pod = request.pod.full_name();
    }
    if request.verb == Verb::Version {
        return Ok(versions(stdin.as_deref().unwrap_or_default()));
    }
    let result = stdin.and_then(|bytes| {
        let conf = NetConf::parse(&bytes, request.verb)?;
        *version = Some(conf.version);
        log.level = conf.log_level;
        match request.verb {
            Verb::Add => add(&request, &conf, log),
            Verb::Check => check(&request, &conf, log).map(|()| Vec::new()),
            Verb::Status => status(&conf).map(|()| Vec::new()),
            // Nothing is kept outside of namespaces, and rules go with theirs.
            Verb::Del | Verb::Gc | Verb::Version => Ok(Vec::new()),
        }
    });
    match result {
        // With nothing to undo there is nothing in a configuration that a pod's end should fail on.
        Err(failure) if request.verb == Verb::Del => {
            log.write(Level::Warn, &failure.message());
            Ok(Vec::new())
        }
        result => result,
    }
}

/// ADD: programs the namespace of a pod of the mesh and passes the previous result through, byte for byte.
fn add(request: &Request, conf: &NetConf<'_>, log: &Log) -> Result<Vec<u8>, Failure> {
    let result = conf.require_prev_result()?.get().as_bytes().to_vec();
    match pod::judge(&request.pod, conf)? {
        Verdict::Skip(reason) => log.write(Level::Info, &format!("passed untouched: {reason}")),
        Verdict::Capture { rules, source } => {
            if source == Source::IstioAnnotations {
                log.write(Level::Debug, "no annotation weir.dev/capture: uid, gid and environment of the proxy are taken to be Istio's defaults");
            }
            let (applied, routed) = kernel::install(netns_of(request)?, &rules, conf.backend).map_err(|error| {
                in_kernel(error, |reason| Failure::Install { pod: request.pod.full_name(), reason })
            })?;
            log.write(Level::Info, &installed(&rules, applied));
            if routed == Routed::WithoutIpv6 {
                log.write(Level::Info, "IPv6 is switched off in the pod: no address ::6 on lo");
            }
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
fn check(request: &Request, conf: &NetConf<'_>, log: &Log) -> Result<(), Failure> {
    conf.require_prev_result()?;
    match pod::judge(&request.pod, conf)? {
        Verdict::Skip(reason) => log.write(Level::Info, &format!("passed untouched: {reason}")),
        Verdict::Capture { rules, .. } => {
            let differences = kernel::differences(netns_of(request)?, &rules, conf.backend).map_err(|error| {
                in_kernel(error, |reason| Failure::Unreadable { pod: request.pod.full_name(), reason })
            })?;
            if !differences.is_empty() {
                return Err(Failure::Differs { pod: request.pod.full_name(), differences });
            }
        }
    }
    Ok(())
}

/// STATUS: could an ADD succeed now? The configuration is sound, the runtime will pass annotations, nf_tables answers.
fn status(conf: &NetConf<'_>) -> Result<(), Failure> {
    conf.require_sound()?;
    if conf.annotations()? == PodAnnotations::NotDeclared {
        return Err(pod::not_declared());
    }
    kernel::available(conf.backend).map_err(|error| Failure::NotAvailable(error.to_string()))
}

/// A wrong namespace and a setting that the backend lacks are errors of their own; anything else is the kernel's answer.
fn in_kernel(error: KernelError, otherwise: impl FnOnce(String) -> Failure) -> Failure {
    match error {
        KernelError::Netns(NetnsError::Open { .. } | NetnsError::Enter { .. }) | KernelError::OwnNamespace(_) => {
            Failure::Netns(error.to_string())
        }
        KernelError::Nft(NftError::Unsupported(what)) => Failure::Backend(what),
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
