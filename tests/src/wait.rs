//! Waiting for conditions, so that no test passes or fails by the speed of the machine.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

/// Bound of every wait, far above what anything takes on a loaded machine.
pub const TIMEOUT: Duration = Duration::from_mins(1);

const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Polls `condition` until it returns a value, at most for [`TIMEOUT`]. Its error says why there is no value yet.
///
/// # Panics
/// After the timeout, with `what` is waited for and the last reason.
#[track_caller]
pub fn wait_until<T>(what: &str, mut condition: impl FnMut() -> Result<T, String>) -> T {
    try_wait_until(what, || Ok(condition())).unwrap_or_else(|error| panic!("{error:#}"))
}

/// Like [`wait_until`], for a condition that can fail: the outer error ends the wait.
///
/// # Errors
/// When `condition` fails; after the timeout, with `what` is waited for and the last reason.
pub fn try_wait_until<T>(
    what: &str,
    mut condition: impl FnMut() -> anyhow::Result<Result<T, String>>,
) -> anyhow::Result<T> {
    let started = Instant::now();
    loop {
        let reason = match condition().with_context(|| format!("while waiting until {what}"))? {
            Ok(value) => return Ok(value),
            Err(reason) => reason,
        };
        ensure!(started.elapsed() < TIMEOUT, "timed out after {TIMEOUT:?} waiting until {what}: {reason}");
        std::thread::sleep(POLL_INTERVAL);
    }
}
