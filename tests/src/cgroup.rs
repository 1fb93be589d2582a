//! A control group with limits, of version 1 or 2.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Where control groups are mounted.
const ROOT: &str = "/sys/fs/cgroup";
/// Period of the limit of processor time, in microseconds.
const PERIOD_US: u64 = 100_000;

/// A control group; it is removed with the value, once its processes have ended.
#[derive(Debug)]
pub struct Cgroup {
    dir: PathBuf,
    is_v2: bool,
}

impl Cgroup {
    /// Creates a group whose processes together get at most `bytes` of memory, without swap.
    ///
    /// # Errors
    /// When control groups are not writable, or have no such controller.
    pub fn with_memory(bytes: u64) -> io::Result<Self> {
        let group = Self::create("memory")?;
        group.write(if group.is_v2 { "memory.max" } else { "memory.limit_in_bytes" }, &bytes.to_string())?;
        // Where swap is not accounted for, there is no such file.
        let _ = if group.is_v2 {
            group.write("memory.swap.max", "0")
        } else {
            group.write("memory.memsw.limit_in_bytes", &bytes.to_string())
        };
        Ok(group)
    }

    /// Creates a group whose processes together get this share of one processor, in percent.
    ///
    /// # Errors
    /// When control groups are not writable, or have no such controller.
    pub fn with_processor(percent: u64) -> io::Result<Self> {
        let (group, quota) = (Self::create("cpu")?, PERIOD_US / 100 * percent);
        if group.is_v2 {
            group.write("cpu.max", &format!("{quota} {PERIOD_US}"))?;
        } else {
            group.write("cpu.cfs_period_us", &PERIOD_US.to_string())?;
            group.write("cpu.cfs_quota_us", &quota.to_string())?;
        }
        Ok(group)
    }

    fn create(controller: &str) -> io::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let root = Path::new(ROOT);
        let is_v2 = root.join("cgroup.controllers").exists();
        if is_v2 {
            fs::write(root.join("cgroup.subtree_control"), format!("+{controller}"))?;
        }
        let parent = if is_v2 { root.to_owned() } else { root.join(controller) };
        let dir = parent.join(format!("weir-test-{}-{}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
        fs::create_dir(&dir)?;
        Ok(Self { dir, is_v2 })
    }

    fn write(&self, file: &str, text: &str) -> io::Result<()> {
        fs::write(self.dir.join(file), text)
    }

    /// Moves a process into the group; processes that it starts from now on are in it too.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn add(&self, pid: u32) -> io::Result<()> {
        self.write("cgroup.procs", &pid.to_string())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // A group with processes cannot be removed: they have been killed, and end soon.
        for _ in 0..100 {
            if fs::remove_dir(&self.dir).is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
