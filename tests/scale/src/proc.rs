//! Processor time and memory of processes, from /proc.

use std::fs;
use std::time::Duration;

use anyhow::Context as _;

/// `_SC_CLK_TCK` of Linux on every platform that Rust has.
const TICKS_PER_SECOND: f64 = 100.0;

/// Returns the processor time of processes so far, user and system.
pub(crate) fn cpu(pids: &[u32]) -> anyhow::Result<Duration> {
    let one = |pid: &u32| -> anyhow::Result<Duration> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The name of the program is in parentheses and may hold anything.
        let (_, fields) = stat.rsplit_once(')').context("no stat")?;
        let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<f64>).sum::<Result<f64, _>>()?;
        Ok(Duration::from_secs_f64(ticks / TICKS_PER_SECOND))
    };
    pids.iter().map(one).sum()
}

/// Resident memory of a process, in MiB.
#[derive(Debug, Clone, Copy, Default, serde::Serialize)]
pub(crate) struct Memory {
    /// `VmRSS`.
    pub(crate) now: f64,
    /// `VmHWM`.
    pub(crate) peak: f64,
}

/// Returns the memory of the process that has most of it.
pub(crate) fn memory(pids: &[u32]) -> anyhow::Result<Memory> {
    let mut most = Memory::default();
    for pid in pids {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            let kib = line.and_then(|line| line.trim().strip_suffix(" kB")).with_context(|| format!("no {name}"))?;
            anyhow::Ok(kib.parse::<f64>()? / 1024.0)
        };
        most = Memory { now: most.now.max(field("VmRSS")?), peak: most.peak.max(field("VmHWM")?) };
    }
    Ok(most)
}
