//! `weir-cni` ADD as a process, and the alternatives: interleaved in one run, each time in a new network namespace. Needs root; `make bench`
//! builds the static binaries.
//!
//! Runtimes call the plugin with `lo` up; containerd may also call it while `lo` is down or coming up. Wall time is from spawn to wait. The alternatives are started inside the namespace (no `nsenter`) and install both families, as
//! `weir-cni` does.

#![allow(clippy::print_stdout, reason = "a bench prints its table")]

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;
use iptables_rules::restore::{RestoreFamily, restore_text};
use iptables_rules::{CaptureConfig, plan};
use weir_benches::{Samples, add_command, binary, plugin_conf, ratio, run};
use weir_kernel::netns;

const ROUNDS: usize = 100;
const CONCURRENT: usize = 200;
const WORKERS: usize = 8;

/// A named namespace, removed when dropped.
struct Namespace(String);

impl Namespace {
    fn create() -> anyhow::Result<Self> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("weir-bench-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        run(Command::new("ip").args(["netns", "add", &name]))?;
        Ok(Self(name))
    }

    fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.0)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // The tool reports a failure itself.
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

fn set_loopback_up(namespace: &Path) -> anyhow::Result<()> {
    netns::run_in(namespace, || run(Command::new("ip").args(["link", "set", "lo", "up"])))?
}

/// Inputs and binaries.
struct Bench {
    plugin: PathBuf,
    floor: PathBuf,
    conf: PathBuf,
    v4: PathBuf,
    v6: PathBuf,
    nft: PathBuf,
    _dir: tempfile::TempDir,
}

#[derive(Clone, Copy)]
enum Method {
    Floor,
    WeirDown,
    WeirComingUp,
    Weir,
    LegacyRestore,
    NftRestore,
    NftFile,
}

impl Method {
    const ALL: [Self; 7] = [
        Self::Floor,
        Self::Weir,
        Self::WeirDown,
        Self::WeirComingUp,
        Self::LegacyRestore,
        Self::NftRestore,
        Self::NftFile,
    ];

    const fn label(self) -> &'static str {
        match self {
            Self::Floor => "enter the namespace and exit (static)",
            Self::Weir => "weir-cni ADD, v4 + v6 (static)",
            Self::WeirDown => "the same, lo down",
            Self::WeirComingUp => "the same, lo coming up during the call",
            Self::LegacyRestore => "iptables-legacy-restore + ip6tables-legacy-restore",
            Self::NftRestore => "iptables-nft-restore + ip6tables-nft-restore",
            Self::NftFile => "nft -f, v4 + v6",
        }
    }
}

impl Bench {
    fn prepare() -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let config = CaptureConfig::default();
        let rules = plan(&config).map_err(|unsupported| anyhow::anyhow!("{unsupported:?}"))?;
        let write = |name: &str, text: &[u8]| -> anyhow::Result<PathBuf> {
            let path = dir.path().join(name);
            File::create(&path)?.write_all(text)?;
            Ok(path)
        };
        let conf = plugin_conf(&config);
        Ok(Self {
            plugin: binary("WEIR_CNI")?,
            floor: binary("NETNS_FLOOR")?,
            conf: write("conf.json", conf.to_string().as_bytes())?,
            v4: write("v4", restore_text(&rules, RestoreFamily::V4).as_bytes())?,
            v6: write("v6", restore_text(&rules, RestoreFamily::V6).as_bytes())?,
            nft: write("rules.nft", weir_kernel::nft::to_nft_script(&rules)?.as_bytes())?,
            _dir: dir,
        })
    }

    /// Installs the rules in a namespace and returns the time.
    fn install(&self, method: Method, namespace: &Path) -> anyhow::Result<Duration> {
        let restore = |binary: &str, input: &Path| -> anyhow::Result<()> {
            run(Command::new(binary).args(["--noflush", "--wait"]).stdin(File::open(input)?))
        };
        let timed = |work: &dyn Fn() -> anyhow::Result<()>| -> anyhow::Result<Duration> {
            let start = Instant::now();
            work()?;
            Ok(start.elapsed())
        };
        match method {
            Method::Floor => timed(&|| run(Command::new(&self.floor).arg(namespace))),
            Method::Weir | Method::WeirDown | Method::WeirComingUp => {
                let mut command = add_command(&self.plugin, &self.conf, namespace)?;
                let start = Instant::now();
                let mut child = command.spawn()?;
                if matches!(method, Method::WeirComingUp) {
                    set_loopback_up(namespace)?;
                }
                let status = child.wait()?;
                let took = start.elapsed();
                ensure!(status.success(), "weir-cni: {status}");
                Ok(took)
            }
            Method::LegacyRestore => netns::run_in(namespace, || {
                timed(&|| {
                    restore("iptables-legacy-restore", &self.v4)
                        .and_then(|()| restore("ip6tables-legacy-restore", &self.v6))
                })
            })?,
            Method::NftRestore => netns::run_in(namespace, || {
                timed(&|| {
                    restore("iptables-nft-restore", &self.v4).and_then(|()| restore("ip6tables-nft-restore", &self.v6))
                })
            })?,
            Method::NftFile => {
                netns::run_in(namespace, || timed(&|| run(Command::new("nft").arg("-f").arg(&self.nft))))?
            }
        }
    }

    fn sequential(&self) -> anyhow::Result<()> {
        let mut samples: Vec<Samples> = vec![Samples::default(); Method::ALL.len()];
        for round in 0..=ROUNDS {
            for (method, samples) in Method::ALL.iter().zip(&mut samples) {
                let namespace = Namespace::create()?;
                if !matches!(method, Method::WeirDown | Method::WeirComingUp) {
                    set_loopback_up(&namespace.path())?;
                }
                let took = self.install(*method, &namespace.path())?;
                // The first round loads code and kernel modules.
                if round > 0 {
                    samples.push(took);
                }
            }
        }
        println!("\nOne pod, process start to exit, {ROUNDS} fresh namespaces each (us)\n");
        println!(
            "| method | p10 | median | p90 | against the floor | against weir-cni |\n|---|---:|---:|---:|---:|---:|"
        );
        let (floor, weir) = (samples[0].percentile_us(50), samples[1].percentile_us(50));
        for (method, samples) in Method::ALL.iter().zip(&samples) {
            let median = samples.percentile_us(50);
            println!(
                "| {} | {} | {median} | {} | {} | {} |",
                method.label(),
                samples.percentile_us(10),
                samples.percentile_us(90),
                ratio(median, floor),
                ratio(median, weir)
            );
        }
        Ok(())
    }

    fn concurrent(&self) -> anyhow::Result<()> {
        println!(
            "\n{CONCURRENT} namespaces, {WORKERS} at once\n\n| method | total ms | p50 us | p99 us | against weir-cni |\n|---|---:|---:|---:|---:|"
        );
        let mut weir_total = 0;
        for method in [Method::Weir, Method::WeirDown, Method::LegacyRestore, Method::NftRestore, Method::NftFile] {
            let namespaces = (0..CONCURRENT).map(|_| Namespace::create()).collect::<anyhow::Result<Vec<_>>>()?;
            if !matches!(method, Method::WeirDown) {
                namespaces.iter().try_for_each(|namespace| set_loopback_up(&namespace.path()))?;
            }
            let next = AtomicUsize::new(0);
            let start = Instant::now();
            let per_worker: Vec<anyhow::Result<Vec<Duration>>> = std::thread::scope(|scope| {
                let workers: Vec<_> = (0..WORKERS)
                    .map(|_| {
                        scope.spawn(|| {
                            let mut took = Vec::new();
                            while let Some(namespace) = namespaces.get(next.fetch_add(1, Ordering::Relaxed)) {
                                took.push(self.install(method, &namespace.path())?);
                            }
                            Ok(took)
                        })
                    })
                    .collect();
                workers
                    .into_iter()
                    .map(|w| w.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a worker panicked"))))
                    .collect()
            });
            let total = start.elapsed().as_millis();
            let mut samples = Samples::default();
            for took in per_worker {
                took?.into_iter().for_each(|sample| samples.push(sample));
            }
            if matches!(method, Method::Weir) {
                weir_total = total;
            }
            println!(
                "| {} | {total} | {} | {} | {} |",
                method.label(),
                samples.percentile_us(50),
                samples.percentile_us(99),
                ratio(total, weir_total)
            );
        }
        Ok(())
    }

    fn footprint(&self) -> anyhow::Result<()> {
        let namespace = Namespace::create()?;
        let plugin = add_command(&self.plugin, &self.conf, &namespace.path())?;
        let mut under = Command::new(&self.floor);
        under.arg("--rss").arg(&self.plugin).env_clear().stdin(File::open(&self.conf)?);
        under.envs(plugin.get_envs().filter_map(|(key, value)| Some((key, value?))));
        let output = under.output()?;
        ensure!(
            output.status.success(),
            "weir-cni failed under the memory measurement: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        println!(
            "\nweir-cni: {} KiB peak resident, {} bytes on disk",
            String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or_default(),
            self.plugin.metadata()?.len()
        );
        Ok(())
    }
}

fn main() -> anyhow::Result<()> {
    // `cargo test` runs benches with --test. Without the static binaries there is nothing to check.
    if std::env::args().any(|arg| arg == "--test") {
        return Ok(());
    }
    let bench = Bench::prepare()?;
    bench.sequential()?;
    bench.concurrent()?;
    bench.footprint()
}
