//! How work grows with its input, as processor time of the calling thread: other load of the machine does not count.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Factor between the two sizes that are compared.
const FACTOR: usize = 4;
/// Growth at which work is no longer linear: between [`FACTOR`] (or a little more: logarithms, caches) and its square.
const LIMIT: u32 = 9;
/// Times below this are noise.
const FLOOR: Duration = Duration::from_millis(4);
/// Measurements of each size, where the first one is over the limit; the shortest counts.
const ATTEMPTS: usize = 3;

/// Returns the processor time that the calling thread takes for this.
pub fn processor_time(work: impl FnOnce()) -> Duration {
    let now = || clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from);
    let before = now();
    work();
    now().saturating_sub(before)
}

/// Checks that work grows with its input, and no faster.
#[derive(Debug, Default)]
pub struct Growth {
    findings: Vec<String>,
}

impl Growth {
    /// Measures `work` on an input of `size`, which `input` makes, against a quarter of it.
    pub fn check<T>(&mut self, what: &str, size: usize, input: impl Fn(usize) -> T, work: impl Fn(&T)) {
        let time = |input: &T| processor_time(|| work(input));
        let (small, large) = (input(size / FACTOR), input(size));
        let (mut least, mut most) = (time(&small), time(&large));
        let is_linear = |least: Duration, most: Duration| most <= least.max(FLOOR) * LIMIT;
        for _ in 1..ATTEMPTS {
            if is_linear(least, most) {
                return;
            }
            (least, most) = (least.min(time(&small)), most.min(time(&large)));
        }
        if !is_linear(least, most) {
            self.findings.push(format!("{what}: {least:?} for {}, {most:?} for {size}", size / FACTOR));
        }
    }

    /// Asserts that all work that was checked takes linear time.
    ///
    /// # Panics
    /// When it does not, with the processor time of both sizes.
    pub fn assert_linear(self) {
        assert!(self.findings.is_empty(), "not linear: {}", self.findings.join("\n"));
    }
}
