//! The long-running process: ports first, then every part as a task, and a bounded end.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{error, info, warn};

use crate::args::{NodeArgs, RunArgs};
use crate::events::{self, Events, Told};
use crate::health::Health;
use crate::http;
use crate::install::disk::RealDisk;
use crate::install::keep;
use crate::install::settings::Settings;
use crate::logging::LevelHandle;
use crate::metrics::Metrics;
use crate::node;
use crate::notice::{self, Notice, Notices};
use crate::stop::{self, Stop};

/// For every part to end after it was told to.
const GRACE: Duration = Duration::from_secs(10);

/// What every part gets.
#[derive(Debug, Clone)]
pub struct Context {
    /// Where it registers its conditions.
    pub health: Health,
    /// Where it registers its metrics.
    pub metrics: Metrics,
    /// Where it says what the administrator should hear.
    pub notices: Notices,
    /// When it has to end.
    pub stop: Stop,
}

/// Why the agent ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A port that cannot be had.
    #[error("cannot listen on port {port}: {reason}")]
    Bind {
        /// As configured.
        port: u16,
        /// The kernel's reason.
        reason: std::io::Error,
    },
    /// Signals cannot be waited for.
    #[error("cannot wait for signals: {0}")]
    Signals(std::io::Error),
    /// A part that should never end has ended. The plugin goes on without the agent, and the kubelet starts it anew.
    #[error("the part '{0}' has ended, which is a defect")]
    Ended(&'static str),
}

/// Runs until SIGTERM or SIGINT. Nothing is removed from the node: plugin and configuration serve without an agent.
///
/// # Errors
/// See [`RunError`].
pub async fn run(args: RunArgs, settings: Settings, levels: Option<LevelHandle>) -> Result<(), RunError> {
    let mut signals = [SignalKind::terminate(), SignalKind::interrupt()]
        .into_iter()
        .map(signal)
        .collect::<Result<Vec<Signal>, _>>()
        .map_err(RunError::Signals)?;
    let (stopper, stop) = stop::pair();
    let (notices, told) = notice::channel();
    let context = Context { health: Health::default(), metrics: Metrics::default(), notices, stop: stop.clone() };

    let mut parts = Parts::default();
    let connect = node::connector().await;
    let about_pods = node::node(&args, &connect, &context);
    let RunArgs { install: _, log: _, node: NodeArgs { node_name, .. }, monitoring_port, health_port, check_interval } =
        args;
    let monitoring = http::monitoring(context.metrics.clone(), levels).merge(about_pods.router);
    for (name, port, router) in [
        ("health port", health_port, http::health(context.health.clone())),
        ("monitoring port", monitoring_port, monitoring),
    ] {
        if port != 0 {
            let listener = http::bind(port).await.map_err(|reason| RunError::Bind { port, reason })?;
            parts.spawn(name, http::serve(listener, router, stop.clone()));
        }
    }
    parts.spawn("install", keep::keep(settings, RealDisk, check_interval, context));
    for (name, part) in about_pods.parts {
        parts.spawn(name, part);
    }
    parts.spawn("notices", tell_notices(told, about_pods.events, node_name, stop.clone()));
    info!(version = env!("CARGO_PKG_VERSION"), health_port, monitoring_port, "running");

    let ended = tokio::select! {
        ended = parts.ended() => Err(RunError::Ended(ended)),
        () = any(&mut signals) => Ok(()),
    };
    info!("stopping; plugin and configuration stay in place");
    stopper.stop();
    parts.finish().await;
    ended
}

/// Until one of the signals arrives.
async fn any(signals: &mut [Signal]) {
    std::future::poll_fn(|context| {
        let arrived = signals.iter_mut().any(|signal| signal.poll_recv(context).is_ready());
        if arrived { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}

/// Tells notices to the log, and as events on the node.
async fn tell_notices(mut told: mpsc::Receiver<Notice>, events: Events, node: String, stop: Stop) {
    loop {
        let notice = tokio::select! {
            notice = told.recv() => notice,
            () = stop.requested() => return,
        };
        // The context holds a sender for as long as the agent runs.
        let Some(Notice { reason, message }) = notice else { return };
        if reason.is_warning() {
            warn!(reason = reason.name(), "{message}");
        } else {
            info!(reason = reason.name(), "{message}");
        }
        if !node.is_empty() {
            let about = events::node_reference(&node);
            events.tell(Told { about, warning: reason.is_warning(), reason: reason.name(), note: message });
        }
    }
}

/// The tasks of the agent, by name.
#[derive(Debug, Default)]
struct Parts {
    tasks: JoinSet<&'static str>,
}

impl Parts {
    fn spawn(&mut self, name: &'static str, part: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(async move {
            part.await;
            name
        });
    }

    /// Until one part ends, and which.
    async fn ended(&mut self) -> &'static str {
        match self.tasks.join_next().await {
            Some(Ok(name)) => name,
            // Its panic is in the log, with the place.
            Some(Err(_)) => "one that panicked",
            None => std::future::pending().await,
        }
    }

    /// Waits for all, within [`GRACE`], and cuts the rest.
    async fn finish(mut self) {
        if timeout(GRACE, async { while self.tasks.join_next().await.is_some() {} }).await.is_err() {
            error!(parts = self.tasks.len(), "parts did not end in time and are cut");
            self.tasks.abort_all();
        }
    }
}
