//! Inspects a pod as soon as something changes in its network namespace: one task per pod, which sleeps until the kernel notifies it.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::unix::AsyncFd;
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tokio::time::{sleep, sleep_until};
use tracing::{info, warn};
use weir_kernel::notifications::{Drained, NotificationSocket};

use super::netns_lookup::NetnsSource;
use super::pacing::Pacing;
use super::subscription::{NetnsId, Subscription};
use super::visits::MAX_CONCURRENT;
use super::{LookResult, Repairer};

/// Most pods that are monitored, each with two sockets; others are inspected at the interval. A process may often have 1,024 files only.
const MAX_MONITORED: usize = 400;
/// Pause while the pod is inspected for another reason.
const BUSY_PAUSE: Duration = Duration::from_millis(20);
/// Pause before a namespace is inspected again that has lost the pod's addresses, and how often.
const ADDRESSES_PAUSE: Duration = Duration::from_secs(1);
const MAX_ADDRESS_CHECKS: u32 = 60;

/// The network namespace of a pod, as an inspection found it.
#[derive(Debug, Clone)]
pub(super) struct PodNetns {
    pub(super) id: NetnsId,
    pub(super) path: PathBuf,
    pub(super) source: NetnsSource,
}

impl PodNetns {
    fn is_there(&self) -> bool {
        netns_id(&self.path) == Some(self.id)
    }
}

/// Returns the identity of the namespace at a path.
pub(super) fn netns_id(path: &Path) -> Option<NetnsId> {
    fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}

#[derive(Debug)]
struct Monitor {
    netns: PodNetns,
    seen: SeenGeneration,
    /// Sockets for which no task runs yet.
    subscription: Option<Subscription>,
    task: Option<AbortHandle>,
}

impl Drop for Monitor {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// The last generation of nf_tables that an inspection has seen, so that the agent's own repairs are not inspected again.
#[derive(Debug, Clone, Default)]
struct SeenGeneration(Arc<AtomicU64>);

impl SeenGeneration {
    const KNOWN: u64 = 1 << 32;

    fn get(&self) -> Option<u32> {
        let value = self.0.load(Ordering::Acquire);
        (value & Self::KNOWN != 0).then(|| u32::try_from(value & u64::from(u32::MAX)).unwrap_or_default())
    }

    fn set(&self, generation: Option<u32>) {
        self.0.store(generation.map_or(0, |generation| Self::KNOWN | u64::from(generation)), Ordering::Release);
    }
}

/// Monitors of this node's pods, by uid; clones share them. Without a running [`Repairer::run`] there are none.
#[derive(Debug, Clone)]
pub struct Monitors {
    by_uid: Arc<Mutex<HashMap<String, Monitor>>>,
    enabled: Arc<AtomicBool>,
    /// Whether a subscription has failed, which is logged once.
    failed: Arc<AtomicBool>,
    inspections: Arc<Semaphore>,
}

impl Default for Monitors {
    fn default() -> Self {
        let inspections = Arc::new(Semaphore::new(MAX_CONCURRENT));
        Self { by_uid: Arc::default(), enabled: Arc::default(), failed: Arc::default(), inspections }
    }
}

impl Monitors {
    pub(super) fn enable(&self) {
        self.enabled.store(true, Ordering::Relaxed);
    }

    /// Returns whether the namespace of a pod is to be subscribed to.
    pub(super) fn is_wanted(&self, uid: &str, netns: NetnsId) -> bool {
        let monitors = self.lock();
        let is_new = monitors.get(uid).is_none_or(|monitor| monitor.netns.id != netns);
        is_new && self.enabled.load(Ordering::Relaxed) && monitors.len() < MAX_MONITORED
    }

    /// Keeps a subscription, which [`Repairer::start_monitors`] starts.
    pub(super) fn add(&self, uid: &str, netns: PodNetns, opened: io::Result<Subscription>, generation: Option<u32>) {
        match opened {
            Ok(subscription) => {
                let seen = SeenGeneration::default();
                seen.set(generation);
                let monitor = Monitor { netns, seen, subscription: Some(subscription), task: None };
                self.lock().insert(uid.to_owned(), monitor);
            }
            Err(error) if !self.failed.swap(true, Ordering::Relaxed) => {
                warn!(uid, %error, "cannot subscribe to changes in a network namespace; inspecting it at the interval");
            }
            Err(_) => {}
        }
    }

    /// Records which transactions an inspection has seen.
    pub(super) fn record_seen(&self, uid: &str, netns: NetnsId, generation: Option<u32>) {
        if let Some(monitor) = self.lock().get(uid).filter(|monitor| monitor.netns.id == netns) {
            monitor.seen.set(generation);
        }
    }

    /// Closes the sockets of pods that `keep` does not name; they keep the pods' namespaces alive.
    pub(super) fn retain(&self, keep: impl Fn(&str) -> bool) {
        self.lock().retain(|uid, _| keep(uid));
    }

    /// Returns the number of monitored pods.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Returns whether no pod is monitored.
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    fn remove(&self, uid: &str, netns: NetnsId) {
        let mut monitors = self.lock();
        if monitors.get(uid).is_some_and(|monitor| monitor.netns.id == netns) {
            monitors.remove(uid);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Monitor>> {
        self.by_uid.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Repairer {
    /// Starts the tasks of new monitors.
    pub(super) fn start_monitors(self: &Arc<Self>) {
        for (uid, monitor) in self.monitors.lock().iter_mut() {
            let Some(subscription) = monitor.subscription.take() else { continue };
            let task = PodMonitor {
                repairer: Arc::clone(self),
                uid: uid.clone(),
                netns: monitor.netns.clone(),
                seen: monitor.seen.clone(),
                pacing: Pacing::new(Instant::now()),
                contention: None,
            };
            monitor.task = Some(tokio::spawn(task.run(subscription)).abort_handle());
        }
        self.metrics.set_monitored(self.monitors.len());
    }
}

/// The task of one pod.
struct PodMonitor {
    repairer: Arc<Repairer>,
    uid: String,
    netns: PodNetns,
    seen: SeenGeneration,
    pacing: Pacing,
    contention: Option<ContentionGauge>,
}

/// Counts a contended pod until it is dropped.
struct ContentionGauge(prometheus_client::metrics::gauge::Gauge);

impl Drop for ContentionGauge {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl PodMonitor {
    async fn run(mut self, subscription: Subscription) {
        match Receiver::new(subscription) {
            Ok(mut receiver) => while self.follow(&mut receiver).await {},
            Err(error) => {
                warn!(uid = self.uid, %error, "cannot wait for changes in a network namespace");
            }
        }
        self.repairer.monitors.remove(&self.uid, self.netns.id);
    }

    /// Waits for a change and inspects the pod. Returns whether its namespace is to be monitored further.
    async fn follow(&mut self, receiver: &mut Receiver) -> bool {
        let quiet = self.pacing.contention_end();
        tokio::select! {
            () = receiver.changed(&self.seen) => {}
            () = sleep_until(quiet.unwrap_or_else(Instant::now).into()), if quiet.is_some() => {
                if self.pacing.end_contention(Instant::now()) {
                    self.contention = None;
                    info!(uid = self.uid, "no further contention about a pod's network namespace");
                }
                return true;
            }
        }
        let noticed = Instant::now();
        sleep_until(self.pacing.next_inspection(noticed).into()).await;
        let mut address_checks = 0;
        loop {
            // What has come meanwhile is seen by the inspection.
            receiver.drain(&self.seen);
            match self.inspect(noticed).await {
                LookResult::Inspected => return true,
                LookResult::Busy => sleep(BUSY_PAUSE).await,
                LookResult::OtherNetns if address_checks < MAX_ADDRESS_CHECKS && self.netns.is_there() => {
                    address_checks += 1;
                    sleep(ADDRESSES_PAUSE).await;
                }
                LookResult::Gone | LookResult::OtherNetns => return false,
            }
        }
    }

    async fn inspect(&mut self, noticed: Instant) -> LookResult {
        // Closed never; in the order in which they ask.
        let Ok(_permit) = self.repairer.monitors.inspections.acquire().await else { return LookResult::Gone };
        let begun = Instant::now();
        let (repairer, uid, netns) = (Arc::clone(&self.repairer), self.uid.clone(), self.netns.clone());
        let looked = tokio::task::spawn_blocking(move || repairer.look(&uid, &netns, noticed)).await;
        let is_busy = matches!(looked, Ok(LookResult::Busy));
        if !is_busy && self.pacing.record_inspection(begun, Instant::now()) {
            self.contention = Some(ContentionGauge(self.repairer.metrics.begin_contention()));
            self.repairer.report_contention(&self.uid);
        }
        looked.unwrap_or_else(|error| {
            warn!(uid = self.uid, %error, "pod inspection panicked");
            LookResult::Gone
        })
    }
}

/// Adds a socket to the reactor.
#[expect(unsafe_code, reason = "tokio has no safe way to wait for a descriptor of its caller")]
fn register(socket: NotificationSocket) -> io::Result<AsyncFd<NotificationSocket>> {
    // SAFETY: the socket owns its descriptor, returns always the same one, and closes it only when it is dropped, after its registration.
    unsafe { Ok(AsyncFd::register_with_interest(socket, tokio::io::Interest::READABLE)?) }
}

/// The sockets of a namespace, in the reactor.
struct Receiver(Vec<AsyncFd<NotificationSocket>>);

impl Receiver {
    fn new(subscription: Subscription) -> io::Result<Self> {
        let sockets = subscription.nftables.into_iter().chain([subscription.routing]);
        sockets.map(register).collect::<io::Result<_>>().map(Self)
    }

    /// Waits until something has changed that no inspection has seen.
    async fn changed(&mut self, seen: &SeenGeneration) {
        while !self.drain(seen) {
            let ready = self.0.iter().map(|socket| Box::pin(socket.ready(tokio::io::Interest::READABLE)));
            // An error of the reactor means that it shuts down.
            if futures_util::future::select_all(ready).await.0.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Reads what has come. Returns whether something has changed that no inspection has seen.
    fn drain(&self, seen: &SeenGeneration) -> bool {
        let drain = |socket: &AsyncFd<NotificationSocket>| {
            let mut changed = false;
            let _: io::Result<()> = socket.try_io(tokio::io::Interest::READABLE, |socket| {
                let Drained { changed: found, empty } = socket.drain(seen.get());
                changed = found;
                if empty { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
            });
            changed
        };
        self.0.iter().fold(false, |changed, socket| drain(socket) | changed)
    }
}
