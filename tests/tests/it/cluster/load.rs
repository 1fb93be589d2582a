//! Creates pods without a pause, as controllers do: each is retried until it is stored, and every response is checked.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::Value;
use weir_tests::TIMEOUT;

use super::api_server::Cluster;
use super::workload::{is_injected, pod};

/// The results of a load.
#[derive(Debug, Default, Clone)]
pub(crate) struct Tally {
    /// Pods admitted with the sidecar.
    pub(crate) injected: u64,
    /// Pods admitted without the sidecar.
    pub(crate) unmeshed: Vec<Value>,
    /// Pods that were not admitted within the timeout.
    pub(crate) lost: u64,
    /// Failed attempts, by their text without port numbers.
    pub(crate) failures: BTreeMap<String, u64>,
    /// When the first and the last attempt failed.
    pub(crate) failing: Option<(Instant, Instant)>,
    /// Latencies of successful creates, in microseconds.
    latencies: Vec<u32>,
}

impl Tally {
    pub(crate) fn failed(&self) -> u64 {
        self.failures.values().sum()
    }

    /// Returns a latency that so many of a thousand successful creates did not exceed.
    pub(crate) fn permille(&self, of_thousand: usize) -> Duration {
        let mut sorted = self.latencies.clone();
        sorted.sort_unstable();
        let index = sorted.len() * of_thousand / 1000;
        Duration::from_micros(sorted.get(index.min(sorted.len().saturating_sub(1))).copied().unwrap_or_default().into())
    }

    /// Returns the time from `from` to the last failure.
    pub(crate) fn recovery_time(&self, from: Instant) -> Duration {
        self.failing.map_or(Duration::ZERO, |(_, last)| last.saturating_duration_since(from))
    }

    /// Asserts what must always hold with `failurePolicy: Fail`.
    #[track_caller]
    pub(crate) fn assert_no_bypass(&self) {
        assert!(
            self.unmeshed.is_empty(),
            "{} pods without a sidecar, such as {}",
            self.unmeshed.len(),
            self.unmeshed[0]
        );
        assert_eq!(self.lost, 0, "{self}");
        assert!(self.injected > 0, "{self}");
    }

    fn add(&mut self, other: Self) {
        self.injected += other.injected;
        self.unmeshed.extend(other.unmeshed);
        self.lost += other.lost;
        for (text, count) in other.failures {
            *self.failures.entry(text).or_default() += count;
        }
        self.failing = match (self.failing, other.failing) {
            (Some(one), Some(two)) => Some((one.0.min(two.0), one.1.max(two.1))),
            (one, two) => one.or(two),
        };
        self.latencies.extend(other.latencies);
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [half, most] = [500, 990].map(|place| self.permille(place));
        write!(
            f,
            "{} pods injected, {} unmeshed, {} lost, {} failed attempts",
            self.injected,
            self.unmeshed.len(),
            self.lost,
            self.failed()
        )?;
        write!(f, "; p50 {half:.1?}, p99 {most:.1?}")?;
        self.failures.iter().try_for_each(|(text, count)| write!(f, "\n  {count} x {text}"))
    }
}

/// A load that goes on until it is stopped.
#[derive(Debug)]
pub(crate) struct Load {
    stopped: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    workers: Vec<JoinHandle<Tally>>,
}

impl Load {
    /// Starts clients that create pods in a namespace with `dryRun=All`.
    pub(crate) fn start(cluster: &Cluster, namespace: &str, clients: usize) -> Self {
        let (stopped, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let path = format!("/api/v1/namespaces/{namespace}/pods?dryRun=All");
        let workers = (0..clients).map(|_| {
            let (cluster, stopped, count, path) =
                (cluster.clone(), Arc::clone(&stopped), Arc::clone(&count), path.clone());
            thread::spawn(move || {
                let mut tally = Tally::default();
                while !stopped.load(Ordering::Relaxed) {
                    create(&cluster, &path, &pod("web"), &mut tally);
                    count.fetch_add(1, Ordering::Relaxed);
                }
                tally
            })
        });
        let workers = workers.collect();
        Self { stopped, count, workers }
    }

    /// Waits until `more` pods have been created.
    #[track_caller]
    pub(crate) fn wait(&self, more: u64) {
        let goal = self.count.load(Ordering::Relaxed) + more;
        let (mut at, mut moved) = (0, Instant::now());
        while self.count.load(Ordering::Relaxed) < goal {
            let now = self.count.load(Ordering::Relaxed);
            if now != at {
                (at, moved) = (now, Instant::now());
            }
            assert!(moved.elapsed() < TIMEOUT, "no pod was created for {TIMEOUT:?}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Stops the load and returns its results.
    pub(crate) fn stop(self) -> Tally {
        self.stopped.store(true, Ordering::Relaxed);
        let mut all = Tally::default();
        for worker in self.workers {
            all.add(worker.join().expect("a client panicked"));
        }
        all
    }
}

/// Creates and stores `pods` pods with generated names, from `clients` clients at once.
pub(crate) fn storm(cluster: &Cluster, namespace: &str, clients: usize, pods: usize) -> Tally {
    let left = Mutex::new(pods);
    let path = format!("/api/v1/namespaces/{namespace}/pods");
    let mut generated = pod("web");
    generated["metadata"] = serde_json::json!({"generateName": "web-"});
    let next = || {
        let mut left = left.lock().unwrap_or_else(PoisonError::into_inner);
        let some = *left > 0;
        *left -= usize::from(some);
        some
    };
    let mut all = Tally::default();
    thread::scope(|scope| {
        let client = || {
            let mut tally = Tally::default();
            while next() {
                create(cluster, &path, &generated, &mut tally);
            }
            tally
        };
        let clients: Vec<_> = (0..clients).map(|_| scope.spawn(client)).collect();
        for client in clients {
            all.add(client.join().expect("a client panicked"));
        }
    });
    all
}

/// Creates one pod, with retries and backoff, as controllers do.
fn create(cluster: &Cluster, path: &str, pod: &Value, tally: &mut Tally) {
    let begun = Instant::now();
    let mut backoff = Duration::from_millis(5);
    loop {
        let attempted = Instant::now();
        let why = match cluster.try_post(path, pod) {
            Ok(response) if response.code == 201 && is_injected(&response.body) => {
                tally.injected += 1;
                tally.latencies.push(u32::try_from(attempted.elapsed().as_micros()).unwrap_or(u32::MAX));
                return;
            }
            Ok(response) if response.code == 201 => return tally.unmeshed.push(response.body),
            Ok(response) => format!("{} {}", response.code, response.message()),
            Err(error) => error,
        };
        let now = Instant::now();
        tally.failing = Some((tally.failing.map_or(now, |(first, _)| first), now));
        *tally.failures.entry(without_ports(&why)).or_default() += 1;
        if begun.elapsed() > TIMEOUT {
            tally.lost += 1;
            return;
        }
        thread::sleep(backoff);
        backoff = (backoff * 2).min(Duration::from_millis(500));
    }
}

/// Removes port numbers from a text.
fn without_ports(text: &str) -> String {
    let mut digits = 0;
    let kept = text.chars().filter(|c| {
        digits = if c.is_ascii_digit() { digits + 1 } else { 0 };
        digits < 4
    });
    kept.collect()
}
