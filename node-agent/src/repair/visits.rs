//! Visits of network namespaces: a few at a time, each on a thread of its own and within a time limit, so that one pod cannot keep the
//! agent from the others.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

/// Pods that are visited at the same time.
pub(super) const MAX_CONCURRENT: usize = 4;
/// Time for one visit. Reading and writing the rules of a pod takes a few milliseconds.
const VISIT_TIMEOUT: Duration = Duration::from_secs(5);
/// Visits that exceeded the limit and still run. With so many, no further namespace is visited.
const MAX_ABANDONED: usize = 8;

/// Error returned when a visit has no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VisitError {
    /// The visit takes too long, or an earlier one still does.
    #[error("reading its network namespace takes longer than {} s", .0.as_secs())]
    TimedOut(Duration),
    /// Too many visits take too long.
    #[error("{0} visits of other pods take too long")]
    Overloaded(usize),
    /// The visit panicked, or no thread can be started.
    #[error("cannot visit its network namespace: {0}")]
    Failed(String),
}

/// Runs visits; clones share the record of those that take too long.
#[derive(Debug, Clone)]
pub struct Visits {
    abandoned: Arc<Mutex<HashSet<String>>>,
    /// Pods that are being inspected.
    claimed: Arc<Mutex<HashSet<String>>>,
    timeout: Duration,
}

impl Default for Visits {
    fn default() -> Self {
        Self { abandoned: Arc::default(), claimed: Arc::default(), timeout: VISIT_TIMEOUT }
    }
}

impl Visits {
    /// Runs `work` and waits at most for the time limit. Then the thread goes on alone, and `key` is not visited again until it has ended.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        key: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, VisitError> {
        {
            let abandoned = self.lock();
            if abandoned.contains(key) {
                return Err(VisitError::TimedOut(self.timeout));
            }
            if abandoned.len() >= MAX_ABANDONED {
                return Err(VisitError::Overloaded(abandoned.len()));
            }
        }
        let (sender, receiver) = mpsc::sync_channel(1);
        let (this, name) = (self.clone(), key.to_owned());
        let visit = move || {
            let _ended = Ended { visits: this, key: name };
            let _ = sender.send(work());
        };
        thread::Builder::new()
            .name("visit".to_owned())
            .spawn(visit)
            .map_err(|error| VisitError::Failed(error.to_string()))?;
        match receiver.recv_timeout(self.timeout) {
            Ok(result) => Ok(result),
            Err(mpsc::RecvTimeoutError::Disconnected) => Err(VisitError::Failed("panicked".to_owned())),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                self.lock().insert(key.to_owned());
                // The thread may have ended in between; then nobody removes the key.
                match receiver.try_recv() {
                    Ok(result) => {
                        self.lock().remove(key);
                        Ok(result)
                    }
                    Err(_) => Err(VisitError::TimedOut(self.timeout)),
                }
            }
        }
    }

    /// Claims a pod until the value is dropped, so that it is not inspected twice at the same time; `None` if it is claimed.
    pub(crate) fn claim(&self, uid: &str) -> Option<Claim> {
        let mut claimed = self.claimed.lock().unwrap_or_else(PoisonError::into_inner);
        claimed.insert(uid.to_owned()).then(|| Claim { claimed: Arc::clone(&self.claimed), uid: uid.to_owned() })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashSet<String>> {
        self.abandoned.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A pod that is being inspected.
#[derive(Debug)]
pub(crate) struct Claim {
    claimed: Arc<Mutex<HashSet<String>>>,
    uid: String,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.claimed.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.uid);
    }
}

/// Marks the end of a visit, also by a panic.
struct Ended {
    visits: Visits,
    key: String,
}

impl Drop for Ended {
    fn drop(&mut self) {
        self.visits.lock().remove(&self.key);
    }
}

/// Calls `work` for every item, on at most [`MAX_CONCURRENT`] threads, and returns the results in the order of the items.
pub(super) fn map_concurrently<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let take = || {
        let mut results = Vec::new();
        while let Some((at, item)) = {
            let at = next.fetch_add(1, Ordering::Relaxed);
            items.get(at).map(|item| (at, item))
        } {
            results.push((at, work(item)));
        }
        results
    };
    let mut results = thread::scope(|scope| {
        let others = 1..MAX_CONCURRENT.min(items.len());
        // This thread works as well, so that a missing thread only costs time.
        let workers: Vec<_> = others.filter_map(|_| thread::Builder::new().spawn_scoped(scope, take).ok()).collect();
        let mut results = take();
        for worker in workers {
            match worker.join() {
                Ok(found) => results.extend(found),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        results
    });
    results.sort_unstable_by_key(|(at, _)| *at);
    results.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_visit_that_never_ends_is_abandoned_alone() {
        let visits = Visits { timeout: Duration::from_millis(50), ..Visits::default() };
        let (release, wait) = mpsc::channel::<()>();
        let stuck = Err(VisitError::TimedOut(visits.timeout));
        assert_eq!(visits.run("web", move || wait.recv().is_err()), stuck);
        let begun = Instant::now();
        assert_eq!(visits.run("web", || true), stuck, "no second thread for it");
        assert!(begun.elapsed() < Duration::from_millis(40));
        assert_eq!(visits.run("other", || 7), Ok(7));
        drop(release);
        let begun = Instant::now();
        while visits.run("web", || true) == stuck {
            assert!(begun.elapsed() < Duration::from_secs(20));
            thread::sleep(Duration::from_millis(5));
        }
        let visits = Visits::default();
        assert_eq!(visits.run("web", || panic!("a defect")), Err::<(), _>(VisitError::Failed("panicked".to_owned())));
        assert_eq!(visits.run("web", || 1), Ok(1));
    }

    #[test]
    fn a_pod_is_claimed_once_at_a_time() {
        let visits = Visits::default();
        let claim = visits.claim("web");
        assert!(claim.is_some() && visits.claim("web").is_none() && visits.claim("other").is_some());
        drop(claim);
        assert!(visits.claim("web").is_some());
    }

    #[test]
    fn abandoned_visits_are_limited() {
        let visits = Visits { timeout: Duration::from_millis(1), ..Visits::default() };
        let mut releases = Vec::new();
        for number in 0..MAX_ABANDONED {
            let (release, wait) = mpsc::channel::<()>();
            releases.push(release);
            let result = visits.run(&number.to_string(), move || wait.recv().is_err());
            assert!(matches!(result, Err(VisitError::TimedOut(_))));
        }
        assert_eq!(visits.run("next", || ()), Err(VisitError::Overloaded(MAX_ABANDONED)));
    }

    #[test]
    fn results_keep_the_order_of_the_items() {
        let items: Vec<usize> = (0..100).collect();
        let running = AtomicUsize::new(0);
        let results = map_concurrently(&items, |item| {
            assert!(running.fetch_add(1, Ordering::SeqCst) < MAX_CONCURRENT);
            thread::sleep(Duration::from_micros(100));
            running.fetch_sub(1, Ordering::SeqCst);
            item * 2
        });
        assert_eq!(results, items.iter().map(|item| item * 2).collect::<Vec<_>>());
        assert!(map_concurrently(&[] as &[usize], |item| *item).is_empty());
    }
}
