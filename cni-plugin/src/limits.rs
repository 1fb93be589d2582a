//! Limits of this process: memory, processor time, and time for the whole call. What a pod's author writes must not take more of the node.
//!
//! When a limit is met, the kernel sends a signal: SIGXCPU and SIGALRM, or SIGABRT after an allocation that failed. The handler answers
//! with a CNI error that was built at compile time, because nothing can be allocated then, and ends the process.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::alarm;
use weir_protocol::version::CniVersion;

/// Address space of the process (`RLIMIT_AS`), in MiB. A call takes less than 16.
pub const MAX_MEMORY_MIB: u64 = 256;
/// Processor time of the process (`RLIMIT_CPU`), in seconds. A call takes a few milliseconds.
pub const MAX_CPU_SECONDS: u64 = 5;
/// Time for the whole call, in seconds, without the time that the entry allows for the agent.
pub const MAX_CALL_SECONDS: u32 = 30;

/// Whether the deadline is set: only the binary sets it, not a test or a fuzzer that calls the library.
static ARMED: AtomicBool = AtomicBool::new(false);
/// Whether the answer is being written: then the handler must not write another.
static ANSWERING: AtomicBool = AtomicBool::new(false);
/// Index of the configuration's version in [`CniVersion::ALL`].
static VERSION: AtomicUsize = AtomicUsize::new(CniVersion::ALL.len() - 1);

/// Sets all limits. A lower limit that the process has already stays.
pub fn start() {
    signals::install();
    limit(Resource::RLIMIT_AS, MAX_MEMORY_MIB << 20, MAX_MEMORY_MIB << 20);
    // At the hard limit the kernel kills the process; it is never met, because the handler ends the process at the soft one.
    limit(Resource::RLIMIT_CPU, MAX_CPU_SECONDS, MAX_CPU_SECONDS + 1);
    alarm::set(MAX_CALL_SECONDS);
    ARMED.store(true, Ordering::Relaxed);
}

/// Lowers a limit. What the kernel refuses is left: the other limits still hold.
fn limit(resource: Resource, soft: u64, hard: u64) {
    if let Ok((soft_now, hard_now)) = getrlimit(resource) {
        let _ = setrlimit(resource, soft.min(soft_now), hard.min(hard_now));
    }
}

/// Adds the time for the agent's answer to the deadline of a call that began at `started`.
pub(crate) fn extend_deadline(started: Instant, wait: Duration) {
    if ARMED.load(Ordering::Relaxed) {
        let extra = wait.as_secs() + 1;
        let left = (u64::from(MAX_CALL_SECONDS) + extra).saturating_sub(started.elapsed().as_secs()).max(1);
        alarm::set(u32::try_from(left).unwrap_or(MAX_CALL_SECONDS));
    }
}

/// Sets the version of an answer by the handler.
pub(crate) fn set_version(version: CniVersion) {
    let at = CniVersion::ALL.iter().position(|known| *known == version);
    VERSION.store(at.unwrap_or(CniVersion::ALL.len() - 1), Ordering::Relaxed);
}

/// Announces that the answer is written now.
pub fn begin_answer() {
    ANSWERING.store(true, Ordering::Relaxed);
}

/// Builds the rest of an error object, after its version.
macro_rules! answer {
    ($what:literal, $details:literal) => {
        concat!("\"code\":11,\"msg\":\"cannot complete the call: ", $what, "\",\"details\":\"", $details, "\"}\n")
    };
}

/// Returns the answer for a signal, in two parts.
fn answer(signal: i32) -> [&'static str; 2] {
    let version = match CniVersion::ALL.get(VERSION.load(Ordering::Relaxed)) {
        Some(CniVersion::V0_3_1) => "{\"cniVersion\":\"0.3.1\",",
        Some(CniVersion::V0_4_0) => "{\"cniVersion\":\"0.4.0\",",
        Some(CniVersion::V1_0_0) => "{\"cniVersion\":\"1.0.0\",",
        _ => "{\"cniVersion\":\"1.1.0\",",
    };
    let rest = if signal == Signal::SIGXCPU as i32 {
        answer!(
            "weir-cni reached its limit of 5 seconds of processor time",
            "reduce what the pod's annotations ask for (docs/cni-plugin.md, Limits) and recreate the pod"
        )
    } else if signal == Signal::SIGALRM as i32 {
        answer!(
            "weir-cni reached its deadline of 30 seconds, to which agent_timeout_ms is added",
            "the kubelet retries; check the load of the node, and that the container runtime writes the configuration and closes stdin"
        )
    } else {
        answer!(
            "weir-cni reached its memory limit of 256 MiB",
            "reduce what the pod's annotations ask for (docs/cni-plugin.md, Limits) and recreate the pod"
        )
    };
    [version, rest]
}

/// The signal handler: the only place of the plugin that needs `unsafe`.
#[expect(
    unsafe_code,
    reason = "a handler is registered and ends the process through libc; it only calls write(2) and _exit(2)"
)]
mod signals {
    use std::sync::atomic::Ordering;

    use nix::libc;
    use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

    /// Registers the handler.
    pub(super) fn install() {
        let action = SigAction::new(SigHandler::Handler(end), SaFlags::empty(), SigSet::all());
        for signal in [Signal::SIGXCPU, Signal::SIGALRM, Signal::SIGABRT] {
            // SAFETY: `end` is async-signal-safe: it reads atomics and static text, writes, and does not return.
            let _ = unsafe { sigaction(signal, &action) };
        }
    }

    /// Answers and ends the process.
    extern "C" fn end(signal: i32) {
        if !super::ANSWERING.load(Ordering::Relaxed) {
            for part in super::answer(signal) {
                // SAFETY: the pointer and the length are those of a static text. A partial write to a pipe needs more than 4096 bytes.
                let _ = unsafe { libc::write(libc::STDOUT_FILENO, part.as_ptr().cast(), part.len()) };
            }
        }
        // SAFETY: ends the process without running any other code of it.
        unsafe { libc::_exit(1) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_error_objects_that_name_the_limit() {
        for (signal, part) in [
            (Signal::SIGXCPU, format!("{MAX_CPU_SECONDS} seconds of processor time")),
            (Signal::SIGALRM, format!("{MAX_CALL_SECONDS} seconds")),
            (Signal::SIGABRT, format!("{MAX_MEMORY_MIB} MiB")),
        ] {
            for version in CniVersion::ALL {
                set_version(version);
                let error: serde_json::Value = serde_json::from_str(&answer(signal as i32).concat()).unwrap();
                assert_eq!((&error["cniVersion"], &error["code"]), (&version.as_str().into(), &11.into()));
                assert!(error["msg"].as_str().is_some_and(|msg| msg.contains(&part)), "{error}");
                assert!(error["details"].as_str().is_some_and(|details| !details.is_empty()), "{error}");
            }
        }
    }

    #[test]
    fn a_library_call_sets_no_alarm() {
        extend_deadline(Instant::now(), Duration::from_secs(2));
        assert_eq!(alarm::cancel(), None);
    }
}
