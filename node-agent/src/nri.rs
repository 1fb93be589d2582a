//! The agent as an NRI plugin: it puts capture rules in place when the container runtime reports a pod, without any CNI configuration.
//!
//! ```text
//! runtime ◀─ nri.sock ─▶ wire.rs: frames, messages ─▶ session.rs: calls ─▶ pods.rs: decide, plan, install ─▶ the pod's netns
//!   RegisterPlugin ◀──                                Configure: RunPodSandbox, StopPodSandbox
//!   Synchronize ──▶ pods that ran before              StateChange ──▶ a new pod, which waits for the answer
//! ```
//!
//! An error of the plugin keeps the pod from starting; a plugin that is absent or too slow is left out by the runtime
//! (docs/node-agent.md, "NRI").

mod messages;
mod metrics;
mod outcome;
mod pods;
mod session;
mod wire;

use std::path::PathBuf;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};
use weir_runtime::CancellationToken;

pub use self::messages::{LinuxNamespace, LinuxPodSandbox, PodSandbox};
pub use self::metrics::NriMetrics;
pub use self::outcome::{Occasion, PodOutcome};
pub use self::pods::{PodCapture, PodError};
pub use self::session::{PLUGIN_INDEX, PLUGIN_NAME, PodHandler, RuntimeInfo, SessionError, serve};
use crate::health::Condition;

/// Pause before the first attempt to connect again, and the longest one. A pod that starts meanwhile starts without the agent.
const MIN_PAUSE: Duration = Duration::from_millis(50);
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// Duration of a session after which the pauses start again.
const STABLE_AFTER: Duration = Duration::from_secs(10);

/// Task that keeps the agent registered at the runtime.
pub struct NriPlugin {
    /// Socket of the runtime, as mounted here.
    pub socket: PathBuf,
    /// Installs the rules.
    pub capture: PodCapture,
    /// Condition `nri`.
    pub condition: Condition,
    /// Set to true when the agent is registered for the first time.
    pub registered: watch::Sender<bool>,
}

impl NriPlugin {
    /// Registers at the runtime, and again whenever the connection ends, until shutdown.
    pub async fn run(self, shutdown: CancellationToken) {
        tokio::select! {
            () = self.connect_again() => {}
            () = shutdown.cancelled() => {}
        }
    }

    async fn connect_again(&self) {
        let mut pause = MIN_PAUSE;
        let mut last_error = String::new();
        loop {
            let begun = Instant::now();
            let error = match UnixStream::connect(&self.socket).await {
                Ok(stream) => {
                    let error = serve(stream, self).await.to_string();
                    self.capture.metrics.disconnects.inc();
                    error
                }
                Err(error) => format!("cannot connect to {}: {error}", self.socket.display()),
            };
            self.capture.metrics.connected.set(0);
            self.condition.set_failed("NotRegistered", format!("not registered at the container runtime: {error}"));
            if error != last_error {
                warn!(error, "not registered at the container runtime; retrying");
            }
            last_error = error;
            if begun.elapsed() >= STABLE_AFTER {
                pause = MIN_PAUSE;
            }
            sleep(pause).await;
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }
}

impl PodHandler for NriPlugin {
    async fn synchronize(&self, pods: Vec<PodSandbox>, limit: Duration) {
        let capture = self.capture.clone();
        // On a large node it goes on after the answer: the runtime leaves a plugin out that is too slow.
        let all = tokio::spawn(async move { capture.ensure_all(pods, limit).await });
        let _ = tokio::time::timeout(limit, all).await;
    }

    fn synchronized(&self, runtime: &RuntimeInfo) {
        let RuntimeInfo { name, version } = runtime;
        info!(runtime = name, version, "registered as an NRI plugin");
        self.capture.metrics.connected.set(1);
        self.condition.set_ok("Registered", format!("registered at {name} {version} as {PLUGIN_INDEX}-{PLUGIN_NAME}"));
        self.registered.send_replace(true);
    }

    async fn run_pod(&self, pod: PodSandbox, limit: Duration) -> Result<(), String> {
        self.capture.ensure(pod, Occasion::Run, limit).await.map(drop).map_err(|error| error.to_string())
    }

    async fn stop_pod(&self, pod: PodSandbox) {
        self.capture.forget(&pod);
    }
}
