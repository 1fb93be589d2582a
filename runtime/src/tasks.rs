//! Named background tasks, their shutdown within a bound, and the signals that ask for it.

use std::io;
use std::panic::AssertUnwindSafe;
use std::task::Poll;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tracing::error;

use crate::health::{Health, ReadinessImpact};

/// Background tasks that run until shutdown. Dropping it aborts them.
///
/// A task that exits earlier is logged, becomes a failed condition of its name (`TaskExited`), and is reported by
/// [`next_exit`](Self::next_exit).
#[derive(Debug)]
pub struct Tasks {
    health: Health,
    tracker: TaskTracker,
    shutdown: CancellationToken,
    abort: DropGuard,
    exits: (mpsc::UnboundedSender<&'static str>, mpsc::UnboundedReceiver<&'static str>),
}

impl Tasks {
    /// Creates an empty set whose early exits show up in `health`.
    pub fn new(health: Health) -> Self {
        Self {
            health,
            tracker: TaskTracker::new(),
            shutdown: CancellationToken::new(),
            abort: CancellationToken::new().drop_guard(),
            exits: mpsc::unbounded_channel(),
        }
    }

    /// Returns the token that is cancelled when shutdown begins.
    pub fn shutdown_token(&self) -> CancellationToken {
        self.shutdown.clone()
    }

    /// Starts a task that is expected to run until the shutdown token is cancelled.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let (health, shutdown) = (self.health.clone(), self.shutdown.clone());
        let (abort, exits) = (self.abort_token(), self.exits.0.clone());
        self.tracker.spawn(async move {
            // The panic hook has logged a panic, with its location.
            let ended = abort.run_until_cancelled(AssertUnwindSafe(task).catch_unwind()).await;
            if ended.is_some() && !shutdown.is_cancelled() {
                error!(task = name, "background task ended unexpectedly; restart the pod");
                let message = "task ended unexpectedly; restart the pod";
                drop(health.register(name, ReadinessImpact::Advisory, "TaskExited", message));
                let _ = exits.send(name);
            }
        });
    }

    /// Waits for a task to exit before shutdown; returns its name.
    pub async fn next_exit(&mut self) -> &'static str {
        match self.exits.1.recv().await {
            Some(name) => name,
            // Unreachable: this struct holds a sender.
            None => std::future::pending().await,
        }
    }

    /// Cancels the shutdown token, waits at most `grace` for all tasks to exit, and aborts the others.
    pub async fn shut_down(self, grace: Duration) {
        self.shutdown.cancel();
        self.tracker.close();
        if timeout(grace, self.tracker.wait()).await.is_err() {
            error!(tasks = self.tracker.len(), "tasks did not stop within the grace period; aborting");
        }
    }

    fn abort_token(&self) -> CancellationToken {
        self.abort.token().clone()
    }
}

/// SIGTERM and SIGINT.
#[derive(Debug)]
pub struct TerminationSignals([Signal; 2]);

impl TerminationSignals {
    /// Installs handlers for both signals.
    ///
    /// # Errors
    /// A handler cannot be installed.
    pub fn new() -> io::Result<Self> {
        Ok(Self([signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?]))
    }

    /// Waits for the next of the two signals.
    pub async fn recv(&mut self) {
        std::future::poll_fn(|context| {
            let received = self.0.iter_mut().any(|signal| signal.poll_recv(context).is_ready());
            if received { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn reports_a_task_that_panics() {
        let health = Health::default();
        let mut tasks = Tasks::new(health.clone());
        tasks.spawn("fragile", async { panic!("of the test") });
        assert_eq!(tasks.next_exit().await, "fragile");
        let text = health.readiness().to_text();
        assert_eq!(text, "[!]fragile: task ended unexpectedly; restart the pod\n");
    }

    #[tokio::test(start_paused = true)]
    async fn shutdown_waits_for_tasks_and_aborts_the_stuck_ones() {
        let health = Health::default();
        let tasks = Tasks::new(health.clone());
        let (shutdown, (held, mut dropped)) = (tasks.shutdown_token(), mpsc::channel::<()>(1));
        tasks.spawn("prompt", async move { shutdown.cancelled().await });
        tasks.spawn("stuck", async move {
            let _held = held;
            std::future::pending::<()>().await;
        });
        tasks.shut_down(Duration::from_secs(5)).await;
        assert_eq!(dropped.recv().await, None, "the stuck task is gone");
        assert_eq!(health.readiness().to_text(), "");
    }
}
