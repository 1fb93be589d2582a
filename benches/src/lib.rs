//! Helpers for the benches: samples and percentiles, calls of the plugin.
//!
//! ```text
//! benches/add.rs ──────────── processes: weir-cni ADD, iptables-restore, nft -f, and the floor (src/bin/netns-floor.rs)
//! benches/scale.rs ────────── the same with long lists of networks, and the cost of new connections
//! benches/agent.rs ────────── the node agent: memory, repair of a full node, ADD with a query
//! benches/inject.rs ───────── the injector in process: time
//! benches/inject_memory.rs ── the injector in process: allocations
//! benches/serve.rs ────────── the webhook over TLS, called by several clients at once
//! ```

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use iptables_rules::CaptureConfig;
use serde_json::Value;

/// Wall times of one method.
#[derive(Debug, Clone, Default)]
pub struct Samples(Vec<Duration>);

impl Samples {
    /// Adds a sample.
    pub fn push(&mut self, sample: Duration) {
        self.0.push(sample);
    }

    /// Returns a percentile in microseconds, or 0 without samples.
    pub fn percentile_us(&self, percent: usize) -> u128 {
        self.permille_us(percent * 10)
    }

    /// Like [`percentile_us`](Self::percentile_us), in thousandths.
    pub fn permille_us(&self, permille: usize) -> u128 {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let last = sorted.len().saturating_sub(1);
        sorted.get(last * permille.min(1000) / 1000).map_or(0, Duration::as_micros)
    }
}

impl FromIterator<Samples> for Samples {
    fn from_iter<I: IntoIterator<Item = Self>>(several: I) -> Self {
        Self(several.into_iter().flat_map(|samples| samples.0).collect())
    }
}

/// Returns the path of a binary from an environment variable that `make bench` sets.
///
/// # Errors
/// When the variable is not set, or the file does not exist.
pub fn binary(variable: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::var_os(variable).with_context(|| format!("{variable} is not set; run `make bench`"))?;
    let path = PathBuf::from(path);
    ensure!(path.is_file(), "{variable}={}: no such file", path.display());
    Ok(path)
}

/// Runs a command that must succeed.
///
/// # Errors
/// When it cannot be started, or fails.
pub fn run(command: &mut Command) -> anyhow::Result<()> {
    let status = command.status().with_context(|| format!("{command:?}"))?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}

/// Returns the standard input of `weir-cni` for a pod with this configuration.
pub fn plugin_conf(config: &CaptureConfig) -> Value {
    serde_json::json!({
        "cniVersion": "1.0.0", "name": "bench", "type": "weir-cni",
        "runtimeConfig": { "io.kubernetes.cri.pod-annotations": {
            "sidecar.istio.io/status": r#"{"initContainers":["istio-proxy"],"containers":null,"volumes":null,"imagePullSecrets":null,"revision":"default"}"#,
            "weir.dev/capture": config.to_capture_annotation(),
        }},
        "prevResult": { "cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": "/run/netns/x"}],
            "ips": [{"address": "10.1.2.3/24", "interface": 0}, {"address": "fd00::3/64", "interface": 0}] },
    })
}

/// Returns an ADD of the plugin in a namespace, with its standard input from a file.
///
/// # Errors
/// When the file cannot be opened.
pub fn add_command(plugin: &Path, conf: &Path, namespace: &Path) -> anyhow::Result<Command> {
    let mut command = Command::new(plugin);
    command
        .env_clear()
        .envs([
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "bench"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", "/opt/cni/bin"),
            ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=bench"),
        ])
        .env("CNI_NETNS", namespace)
        .stdin(File::open(conf)?)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    Ok(command)
}

/// Formats `value / base` for a table.
pub fn ratio(value: u128, base: u128) -> String {
    #[allow(clippy::cast_precision_loss, reason = "microseconds of a short run")]
    if base == 0 { "-".to_owned() } else { format!("{:.1}x", value as f64 / base as f64) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_sorted_samples() {
        let mut samples = Samples::default();
        for us in [50, 10, 40, 20, 30] {
            samples.push(Duration::from_micros(us));
        }
        assert_eq!((samples.percentile_us(0), samples.percentile_us(50), samples.percentile_us(100)), (10, 30, 50));
    }

    #[test]
    fn percentile_without_samples_is_zero() {
        assert_eq!(Samples::default().percentile_us(50), 0);
    }
}
