//! Lists of excluded networks, from none to thousands: the time to install them, and the cost of a new connection. All methods in one run,
//! in new network namespaces. Needs root; `make bench` builds the static binaries.

#![allow(clippy::print_stdout, reason = "a bench prints its table")]

use std::fs::File;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use ipnet::{IpNet, Ipv4Net};
use iptables_rules::restore::{RestoreFamily, restore_text};
use iptables_rules::{CaptureConfig, plan};
use socket2::SockRef;
use weir_benches::{Samples, add_command, binary, plugin_conf, ratio, run};
use weir_lab::{Netns, Server, User, link};

const COUNTS: [u32; 5] = [0, 10, 100, 1000, 5000];
/// Counted installations of each list by each method, after one that loads code.
const ROUNDS: usize = 12;
/// Connections of one measurement; the median of the measurements counts.
const CONNECTIONS: u32 = 1500;
const MEASUREMENTS: usize = 5;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Method {
    Weir,
    WeirVisible,
    Legacy,
    Nft,
}

impl Method {
    const ALL: [Self; 4] = [Self::Weir, Self::WeirVisible, Self::Legacy, Self::Nft];

    const fn label(self) -> &'static str {
        match self {
            Self::Weir => "weir-cni ADD",
            Self::WeirVisible => "weir-cni ADD, visibility iptables",
            Self::Legacy => "iptables-legacy-restore twice",
            Self::Nft => "iptables-nft-restore twice",
        }
    }

    /// Part of the program's name.
    const fn variant(self) -> &'static str {
        if matches!(self, Self::Legacy) { "legacy" } else { "nft" }
    }
}

/// One list, in the form of every method.
struct Inputs {
    conf: PathBuf,
    conf_visible: PathBuf,
    v4: PathBuf,
    v6: PathBuf,
    _dir: tempfile::TempDir,
}

impl Inputs {
    fn with_networks(count: u32) -> anyhow::Result<Self> {
        // Networks with a gap behind each, so that they cannot be merged.
        let net = |n: u32| IpNet::from(Ipv4Net::new_assert(Ipv4Addr::from_bits((10 << 24) + n * 32), 28));
        let config =
            CaptureConfig { outbound_cidrs_exclude: (0..count).map(net).collect(), ..CaptureConfig::default() };
        let rules = plan(&config).map_err(|unsupported| anyhow::anyhow!("{unsupported:?}"))?;
        let dir = tempfile::tempdir()?;
        let write = |name: &str, text: &str| -> anyhow::Result<PathBuf> {
            let path = dir.path().join(name);
            File::create(&path)?.write_all(text.as_bytes())?;
            Ok(path)
        };
        let mut conf = plugin_conf(&config);
        let plain = write("conf.json", &conf.to_string())?;
        conf["visibility"] = "iptables".into();
        Ok(Self {
            conf: plain,
            conf_visible: write("visible.json", &conf.to_string())?,
            v4: write("v4", &restore_text(&rules, RestoreFamily::V4))?,
            v6: write("v6", &restore_text(&rules, RestoreFamily::V6))?,
            _dir: dir,
        })
    }

    /// Returns the commands of one installation. All but the plugin must be started inside the namespace.
    fn commands(&self, method: Method, plugin: &Path, pod: &Netns) -> anyhow::Result<Vec<Command>> {
        let restore = |tables: &str, input: &Path| -> anyhow::Result<Command> {
            let mut command = Command::new(format!("{tables}-{}-restore", method.variant()));
            command.args(["--noflush", "--wait"]).stdin(File::open(input)?);
            Ok(command)
        };
        Ok(match method {
            Method::Weir => vec![add_command(plugin, &self.conf, &pod.path())?],
            Method::WeirVisible => vec![add_command(plugin, &self.conf_visible, &pod.path())?],
            Method::Legacy | Method::Nft => vec![restore("iptables", &self.v4)?, restore("ip6tables", &self.v6)?],
        })
    }
}

/// Installs the list in a namespace and returns the wall time of all processes.
fn install(inputs: &Inputs, method: Method, plugin: &Path, pod: &Netns) -> anyhow::Result<Duration> {
    let mut commands = inputs.commands(method, plugin, pod)?;
    let mut work = || {
        let start = Instant::now();
        commands.iter_mut().try_for_each(run)?;
        anyhow::Ok(start.elapsed())
    };
    // The plugin rejects the namespace that it runs in.
    if matches!(method, Method::Weir | Method::WeirVisible) { work() } else { pod.run(work)? }
}

/// Returns the largest peak of resident memory of the processes of an installation, in KiB.
fn peak(inputs: &Inputs, method: Method, plugin: &Path, floor: &Path) -> anyhow::Result<u64> {
    let pod = Netns::new("memory")?;
    let mut largest = 0;
    for command in inputs.commands(method, plugin, &pod)? {
        let stdin = match (method, command.get_program().to_string_lossy().starts_with("ip6")) {
            (Method::Weir, _) => &inputs.conf,
            (Method::WeirVisible, _) => &inputs.conf_visible,
            (_, false) => &inputs.v4,
            (_, true) => &inputs.v6,
        };
        let mut under = Command::new(floor);
        under.arg("--rss").arg(command.get_program()).args(command.get_args()).stdin(File::open(stdin)?);
        under.envs(command.get_envs().filter_map(|(key, value)| Some((key, value?))));
        let output = || under.stdout(Stdio::null()).stderr(Stdio::piped()).output();
        let output = if matches!(method, Method::Weir | Method::WeirVisible) {
            let mut output = output;
            output()?
        } else {
            pod.run(output)??
        };
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "{}: {text}", method.label());
        largest = largest.max(text.lines().last().unwrap_or_default().parse().context(text.clone())?);
    }
    Ok(largest)
}

/// Creates a pod with a default route, and its peer.
fn pod_with_peer() -> anyhow::Result<(Netns, Netns)> {
    let (pod, peer) = (Netns::new("pod")?, Netns::new("peer")?);
    link::veth((&pod, "eth0"), (&peer, "eth0"))?;
    link::add_address(&pod, "eth0", "192.168.77.2/24".parse()?)?;
    link::add_address(&peer, "eth0", "192.168.77.1/24".parse()?)?;
    link::add_default_route(&pod, "192.168.77.1".parse()?)?;
    Ok((pod, peer))
}

/// Returns the time of one captured connection, from connect to close, in microseconds.
fn connection_us(pod: &Netns) -> anyhow::Result<f64> {
    let _proxy = Server::start(pod, User::PROXY, &[15001], |stream, _| drop(stream))?;
    let to = SocketAddr::from(([192, 0, 2, 1], 9000));
    let measure = || -> std::io::Result<f64> {
        let mut means = Vec::new();
        for _ in 0..MEASUREMENTS {
            let start = Instant::now();
            for _ in 0..CONNECTIONS {
                let stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
                // Close with a RST, so that no port stays in TIME_WAIT.
                SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
            }
            means.push(start.elapsed().as_secs_f64() * 1e6 / f64::from(CONNECTIONS));
        }
        means.sort_by(f64::total_cmp);
        Ok(means[MEASUREMENTS / 2])
    };
    Ok(pod.run_as(User::with_id(2000), measure)??)
}

fn main() -> anyhow::Result<()> {
    // `cargo test` runs benches with --test. Without the static binaries there is nothing to check.
    if std::env::args().any(|argument| argument == "--test") {
        return Ok(());
    }
    let (plugin, floor) = (binary("WEIR_CNI")?, binary("NETNS_FLOOR")?);
    println!("\nExcluded networks, IPv4; the rules of both families are installed ({ROUNDS} rounds)\n");
    println!("| networks | method | install us | against weir-cni | peak KiB | us per new connection | against none |");
    println!("|---:|---|---:|---:|---:|---:|---:|");
    let mut without = [0.0; Method::ALL.len()];
    for count in COUNTS {
        let inputs = Inputs::with_networks(count)?;
        let mut samples: Vec<Samples> = vec![Samples::default(); Method::ALL.len()];
        for round in 0..=ROUNDS {
            for (method, samples) in Method::ALL.iter().zip(&mut samples) {
                let took = install(&inputs, *method, &plugin, &Netns::new("install")?)?;
                if round > 0 {
                    samples.push(took);
                }
            }
        }
        let weir = samples[0].percentile_us(50);
        for ((method, samples), without) in Method::ALL.into_iter().zip(&samples).zip(&mut without) {
            let (pod, _peer) = pod_with_peer()?;
            install(&inputs, method, &plugin, &pod)?;
            let connection = connection_us(&pod)?;
            if count == 0 {
                *without = connection;
            }
            let median = samples.percentile_us(50);
            println!(
                "| {count} | {} | {median} | {} | {} | {connection:.1} | {:.2}x |",
                method.label(),
                ratio(median, weir),
                peak(&inputs, method, &plugin, &floor)?,
                connection / *without
            );
        }
    }
    Ok(())
}
