//! `weir check`, with its processor time and memory.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde::Serialize;
use serde_json::Value;
use weir_lab::process::ChildGuard;

use crate::proc;

const TIMEOUT: Duration = Duration::from_mins(10);
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// One run of the command.
#[derive(Debug, Serialize)]
pub(crate) struct CheckRun {
    /// Time until it exited.
    pub(crate) seconds: f64,
    /// Processor time.
    pub(crate) cpu_seconds: f64,
    /// Peak resident memory, in MiB.
    pub(crate) peak_mib: f64,
    /// Findings, as `NAME: OBJECT: MESSAGE`.
    pub(crate) findings: Vec<String>,
}

/// Runs the check as an administrator.
pub(crate) fn run(weir: &Path, kubeconfig: &Path, dir: &Path) -> anyhow::Result<CheckRun> {
    let (out, log) = (dir.join("check.json"), dir.join("check.log"));
    let begun = Instant::now();
    let child = Command::new(weir)
        .args(["check", "-o", "json", "--timeout", "10m", "--kubeconfig"])
        .arg(kubeconfig)
        .stdin(Stdio::null())
        .stdout(std::fs::File::create(&out)?)
        .stderr(std::fs::File::create(&log)?)
        .spawn()
        .context("weir check")?;
    let mut child = ChildGuard(child);
    let (mut cpu, mut peak) = (Duration::ZERO, 0.0);
    while child.0.try_wait()?.is_none() {
        ensure!(begun.elapsed() < TIMEOUT, "weir check has not ended within {TIMEOUT:?}");
        // Neither can be read once it has exited.
        let pid = [child.0.id()];
        cpu = proc::cpu(&pid).unwrap_or(cpu);
        peak = proc::memory(&pid).map_or(peak, |memory| memory.peak.max(peak));
        std::thread::sleep(POLL_INTERVAL);
    }
    let seconds = begun.elapsed().as_secs_f64();
    let text = std::fs::read_to_string(&out)?;
    let document: Value = serde_json::from_str(&text)
        .with_context(|| format!("{text}{}", std::fs::read_to_string(&log).unwrap_or_default()))?;
    let findings = document["findings"].as_array().into_iter().flatten();
    let findings = findings.map(|finding| {
        let text = |key: &str| finding[key].as_str().unwrap_or_default().to_owned();
        format!("{}: {}: {}", text("name"), finding["object"], text("message"))
    });
    Ok(CheckRun { seconds, cpu_seconds: cpu.as_secs_f64(), peak_mib: peak, findings: findings.collect() })
}
