//! Creates of pods without a pause, as controllers send them: each tried again until it is stored, every answer looked at.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::cluster::{Cluster, PATIENCE};
use super::workload::{injected, pod};

/// How a load fared.
#[derive(Debug, Default, Clone)]
pub(crate) struct Tally {
    /// Pods that came out with the sidecar.
    pub(crate) injected: u64,
    /// Pods that were let in without it.
    pub(crate) unmeshed: Vec<Value>,
    /// Pods that were given up on.
    pub(crate) lost: u64,
    /// Answers that were errors, by their text without what differs from one to the next.
    pub(crate) failures: BTreeMap<String, u64>,
    /// When the first and the last of them came.
    pub(crate) failing: Option<(Instant, Instant)>,
    /// How long the good answers took, in microseconds.
    took: Vec<u32>,
}

impl Tally {
    pub(crate) fn failed(&self) -> u64 {
        self.failures.values().sum()
    }

    /// The time below which so many of a thousand good answers were.
    pub(crate) fn permille(&self, of_thousand: usize) -> Duration {
        let mut took = self.took.clone();
        took.sort_unstable();
        let place = took.len() * of_thousand / 1000;
        Duration::from_micros(took.get(place.min(took.len().saturating_sub(1))).copied().unwrap_or_default().into())
    }

    /// From a moment to the last failure after it: how long it took until nothing failed any more.
    pub(crate) fn recovered(&self, from: Instant) -> Duration {
        self.failing.map_or(Duration::ZERO, |(_, last)| last.saturating_duration_since(from))
    }

    /// What holds in whatever happens, where `failurePolicy` is `Fail`.
    #[track_caller]
    pub(crate) fn assert_nothing_slipped_through(&self) {
        assert!(self.unmeshed.is_empty(), "{} pods without a sidecar, as {}", self.unmeshed.len(), self.unmeshed[0]);
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
        self.took.extend(other.took);
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [half, most] = [500, 990].map(|place| self.permille(place));
        write!(
            f,
            "{} pods injected, {} unmeshed, {} lost, {} failed tries",
            self.injected,
            self.unmeshed.len(),
            self.lost,
            self.failed()
        )?;
        write!(f, "; p50 {half:.1?}, p99 {most:.1?}")?;
        self.failures.iter().try_for_each(|(text, count)| write!(f, "\n  {count} x {text}"))
    }
}

/// A load that goes on until it is ended.
#[derive(Debug)]
pub(crate) struct Load {
    over: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    workers: Vec<JoinHandle<Tally>>,
}

impl Load {
    /// So many clients at once that create pods in a namespace, without keeping them.
    pub(crate) fn start(cluster: &Cluster, namespace: &str, clients: usize) -> Self {
        let (over, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let path = format!("/api/v1/namespaces/{namespace}/pods?dryRun=All");
        let workers = (0..clients).map(|_| {
            let (cluster, over, count, path) = (cluster.clone(), Arc::clone(&over), Arc::clone(&count), path.clone());
            thread::spawn(move || {
                let mut tally = Tally::default();
                while !over.load(Ordering::Relaxed) {
                    create(&cluster, &path, &pod("web"), &mut tally);
                    count.fetch_add(1, Ordering::Relaxed);
                }
                tally
            })
        });
        let workers = workers.collect();
        Self { over, count, workers }
    }

    /// Waits until so many more pods have been created.
    #[track_caller]
    pub(crate) fn wait(&self, more: u64) {
        let goal = self.count.load(Ordering::Relaxed) + more;
        let (mut at, mut moved) = (0, Instant::now());
        while self.count.load(Ordering::Relaxed) < goal {
            let now = self.count.load(Ordering::Relaxed);
            if now != at {
                (at, moved) = (now, Instant::now());
            }
            assert!(moved.elapsed() < PATIENCE, "no pod is created any more");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends it.
    pub(crate) fn end(self) -> Tally {
        self.over.store(true, Ordering::Relaxed);
        let mut all = Tally::default();
        for worker in self.workers {
            all.add(worker.join().expect("a client of the load"));
        }
        all
    }
}

/// Creates and stores so many pods of the name `NAME-`, by so many clients at once.
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
            all.add(client.join().expect("a client of the storm"));
        }
    });
    all
}

/// One pod, until it is there; after a failure a little later, as controllers do.
fn create(cluster: &Cluster, path: &str, pod: &Value, tally: &mut Tally) {
    let begun = Instant::now();
    let mut pause = Duration::from_millis(5);
    loop {
        let tried = Instant::now();
        let why = match cluster.try_post(path, pod) {
            Ok(said) if said.code == 201 && injected(&said.body) => {
                tally.injected += 1;
                tally.took.push(u32::try_from(tried.elapsed().as_micros()).unwrap_or(u32::MAX));
                return;
            }
            Ok(said) if said.code == 201 => return tally.unmeshed.push(said.body),
            Ok(said) => format!("{} {}", said.code, said.message()),
            Err(error) => error,
        };
        let now = Instant::now();
        tally.failing = Some((tally.failing.map_or(now, |(first, _)| first), now));
        *tally.failures.entry(generalised(&why)).or_default() += 1;
        if begun.elapsed() > PATIENCE {
            tally.lost += 1;
            return;
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(500));
    }
}

/// Without numbers of ports.
fn generalised(text: &str) -> String {
    let mut digits = 0;
    let kept = text.chars().filter(|c| {
        digits = if c.is_ascii_digit() { digits + 1 } else { 0 };
        digits < 4
    });
    kept.collect()
}
