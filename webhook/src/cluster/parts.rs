//! The tasks beside the ports: started by name, missed where they end, ended within a bound.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::error;
use weir_runtime::health::Weight;
use weir_runtime::stop::{self, Stop, Stopper};

use crate::server::health::Health;

/// For every part to end after it was told to.
const GRACE: Duration = Duration::from_secs(5);

/// What runs as a task; it ends when it is told to, and not before.
pub type Part = Pin<Box<dyn Future<Output = ()> + Send>>;

/// All parts.
#[derive(Debug)]
pub struct Parts {
    health: Arc<Health>,
    stopper: Stopper,
    stop: Stop,
    tasks: JoinSet<()>,
}

impl Parts {
    /// None yet.
    pub fn new(health: Arc<Health>) -> Self {
        let (stopper, stop) = stop::pair();
        Self { health, stopper, stop, tasks: JoinSet::new() }
    }

    /// What parts hear their end from.
    pub fn stop(&self) -> Stop {
        self.stop.clone()
    }

    /// Where parts register their conditions.
    pub fn health(&self) -> &Arc<Health> {
        &self.health
    }

    /// Starts one. If it ends by itself, which is a defect, reviews are answered nevertheless, and readiness and log name it.
    pub fn spawn(&mut self, name: &'static str, part: Part) {
        let (health, stop) = (Arc::clone(&self.health), self.stop());
        self.tasks.spawn(async move {
            // Its panic is in the log, with the place.
            let _ = AssertUnwindSafe(part).catch_unwind().await;
            if !stop.is_requested() {
                error!(part = name, "a part has ended, which is a defect; a restart is needed");
                let reason = "this part has ended, which is a defect: restart the pod";
                drop(health.register(name, Weight::Advisory, reason));
            }
        });
    }

    /// Tells all to end, waits for them within a bound, and cuts the rest.
    pub async fn finish(mut self) {
        self.stopper.stop();
        if timeout(GRACE, async { while self.tasks.join_next().await.is_some() {} }).await.is_err() {
            error!(parts = self.tasks.len(), "parts did not end in time and are cut");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use arc_swap::ArcSwap;

    use super::*;

    fn parts() -> Parts {
        Parts::new(Arc::new(Health::new(Arc::new(ArcSwap::from_pointee(None)))))
    }

    #[tokio::test]
    async fn names_a_part_that_panics_and_goes_on() {
        let mut parts = parts();
        parts.spawn("fragile", Box::pin(async { panic!("of the test") }));
        parts.tasks.join_next().await.unwrap().unwrap();
        let state = parts.health.readiness(SystemTime::now());
        assert!(state.detail.contains("[!]fragile: this part has ended"), "{}", state.detail);
    }

    #[tokio::test]
    async fn ends_all_when_told_to() {
        let mut parts = parts();
        let stop = parts.stop();
        parts.spawn("waits", Box::pin(async move { stop.requested().await }));
        let health = Arc::clone(parts.health());
        parts.finish().await;
        assert!(!health.readiness(SystemTime::now()).detail.contains("waits"));
    }
}
