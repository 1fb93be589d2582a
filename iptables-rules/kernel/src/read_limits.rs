//! Limits of what is read from a network namespace. A pod with `NET_ADMIN` fills its namespace as it likes; reading it must not take the
//! memory or the time of whoever looks at it.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::time::{Duration, Instant};

/// Limits of one read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadLimits {
    /// Rules, chains, sets, addresses and routes; lines in the output of `iptables-save`. Twice [`iptables_rules::limits::MAX_RULES`].
    pub objects: usize,
    /// Bytes of netlink messages, of legacy tables, and of the output of `iptables-save`. A rule takes less than 1 KiB.
    pub bytes: usize,
    /// Time, with what the kernel needs for it. In [`within`](Self::within), of all reads together.
    pub time: Duration,
}

impl Default for ReadLimits {
    fn default() -> Self {
        Self { objects: 2 * iptables_rules::limits::MAX_RULES, bytes: 32 << 20, time: Duration::from_secs(5) }
    }
}

thread_local! {
    /// Limits of the calling thread, and when its time ends.
    static CURRENT: Cell<Option<(ReadLimits, Instant)>> = const { Cell::new(None) };
}

impl ReadLimits {
    /// Runs `work`, whose reads on this thread have these limits instead of the default ones. Like the network namespace, the limits belong
    /// to the thread: inside [`crate::netns::run_in`] they have to be set again.
    pub fn within<T>(self, work: impl FnOnce() -> T) -> T {
        /// Resets the limits, also after a panic.
        struct Reset(Option<(ReadLimits, Instant)>);
        impl Drop for Reset {
            fn drop(&mut self) {
                CURRENT.set(self.0);
            }
        }
        let _reset = Reset(CURRENT.replace(Some((self, Instant::now() + self.time))));
        work()
    }

    /// Returns the limits of the calling thread, and when its time ends.
    pub(crate) fn current() -> (Self, Instant) {
        let default = Self::default();
        CURRENT.get().unwrap_or_else(|| (default, Instant::now() + default.time))
    }
}

/// A limit that was exceeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExceededLimit {
    /// [`ReadLimits::objects`].
    Objects(usize),
    /// [`ReadLimits::bytes`].
    Bytes(usize),
    /// [`ReadLimits::time`].
    Time(Duration),
}

impl fmt::Display for ExceededLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Objects(limit) => write!(f, "more than {limit} objects"),
            Self::Bytes(limit) => write!(f, "more than {limit} bytes"),
            Self::Time(limit) => write!(f, "more than {limit:?} to read"),
        }
    }
}

impl std::error::Error for ExceededLimit {}

impl ExceededLimit {
    /// Returns the limit that an error is about.
    pub(crate) fn of(error: &io::Error) -> Option<Self> {
        error.get_ref()?.downcast_ref().copied()
    }
}

/// Rest of the limits.
#[derive(Debug)]
pub(crate) struct ReadBudget {
    limits: ReadLimits,
    deadline: Instant,
    objects: Cell<usize>,
    bytes: Cell<usize>,
}

impl ReadBudget {
    /// Returns a full budget, by the limits of the calling thread.
    pub(crate) fn new() -> Self {
        let (limits, deadline) = ReadLimits::current();
        Self { limits, deadline, objects: Cell::new(limits.objects), bytes: Cell::new(limits.bytes) }
    }

    /// Takes bytes from the budget, and checks the time.
    pub(crate) fn take_bytes(&self, bytes: usize) -> io::Result<()> {
        if Instant::now() > self.deadline {
            return Err(io::Error::other(ExceededLimit::Time(self.limits.time)));
        }
        let left = self.bytes.get().checked_sub(bytes);
        self.bytes.set(left.ok_or_else(|| io::Error::other(ExceededLimit::Bytes(self.limits.bytes)))?);
        Ok(())
    }

    /// Takes an object from the budget.
    pub(crate) fn take_object(&self) -> io::Result<()> {
        let left = self.objects.get().checked_sub(1);
        self.objects.set(left.ok_or_else(|| io::Error::other(ExceededLimit::Objects(self.limits.objects)))?);
        Ok(())
    }
}
