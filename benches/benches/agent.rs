//! The node agent: its memory by the number of pods, the time to restore an overwritten CNI configuration, the repair of a full node, the
//! time from a deletion to the repair, and the cost of a query in an ADD. Needs root. An argument selects one of them.
//!
//! The agent runs as a process with a fake API server; pods are as large as in a cluster (12 KiB of JSON and more). The repair is measured
//! in process: one pass over 110 namespaces, first without rules, then with all rules in place; then with the interval of an hour, so that
//! only notifications lead to repairs.

#![allow(clippy::print_stdout, reason = "a bench prints its table")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use iptables_rules::backend::Backend;
use serde_json::{Value, json};
use weir_agent::events;
use weir_agent::metrics::MetricsRegistry;
use weir_agent::pods::{PodCache, PodFacts};
use weir_agent::repair::{
    Monitors, NetnsPaths, PodStates, RepairMetrics, RepairOptions, Repairer, RuleState, VerifiedRules, Visits,
};
use weir_agent::socket::Attachments;
use weir_apiserver::ApiServer;
use weir_benches::Samples;
use weir_lab::Netns;
use weir_protocol::agent::CallReport;
use weir_runtime::CancellationToken;

const ROUNDS: usize = 200;
/// Pods of a full node.
const FULL: usize = 110;
const TIMEOUT: Duration = Duration::from_mins(1);
const CAPTURE: &str = r#"{"v":1,"proxyUids":[1337]}"#;
const STATUS: &str = r#"{"initContainers":["istio-validation"],"containers":["istio-proxy"],"revision":"default"}"#;

/// Returns a meshed pod with all fields that a cluster adds.
fn pod(number: usize) -> Value {
    let ip = format!("10.1.{}.{}", number / 250, number % 250 + 1);
    let env: Vec<Value> = (0..40).map(|n| json!({"name": format!("SETTING_{n}"), "value": "x".repeat(60)})).collect();
    let fields: serde_json::Map<String, Value> =
        (0..120).map(|n| (format!("f:field{n}"), json!({"f:name": {}, "f:value": {}}))).collect();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "namespace": "shop", "name": format!("web-{number:04}"), "uid": format!("00000000-0000-4000-9000-{number:012}"), "resourceVersion": "1",
            "labels": {"app": "web", "pod-template-hash": "5d4f8"},
            "annotations": {"sidecar.istio.io/status": STATUS, "weir.dev/capture": CAPTURE},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "rs", "controller": true}],
            "managedFields": [{"manager": "kube-controller-manager", "operation": "Update", "fieldsV1": fields}],
        },
        "spec": {"nodeName": "n1", "containers": [
            {"name": "app", "image": "registry.example/app:1", "env": env},
            {"name": "istio-proxy", "image": "docker.io/istio/proxyv2:1.28", "args": ["proxy", "sidecar"], "env": env}]},
        "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
            "containerStatuses": [{"name": "app", "containerID": format!("containerd://{number:064x}")}]},
    })
}

/// The agent as a process.
struct Agent {
    child: Child,
    dir: tempfile::TempDir,
    monitoring: u16,
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Agent {
    /// Starts an agent and waits until it has listed the pods of its node.
    fn start(binary: &Path, plugin: &Path, server: &ApiServer, pods: usize) -> anyhow::Result<Self> {
        let agent = Self::spawn(binary, plugin, |command, root| {
            command.env("KUBECONFIG", server.kubeconfig(root)?).env("NODE_NAME", "n1");
            Ok(())
        })?;
        let begun = Instant::now();
        while agent.listed() != Some(pods) {
            ensure!(begun.elapsed() < TIMEOUT, "the agent has listed {:?} of {pods} pods", agent.listed());
            thread::sleep(Duration::from_millis(20));
        }
        Ok(agent)
    }

    /// Starts an agent on a node that is a directory.
    fn spawn(
        binary: &Path,
        plugin: &Path,
        prepare: impl FnOnce(&mut Command, &Path) -> anyhow::Result<()>,
    ) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let root = dir.path();
        for dir in ["etc/cni/net.d", "opt/cni/bin"] {
            fs::create_dir_all(root.join(dir))?;
        }
        let monitoring = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut command = Command::new(binary);
        prepare(&mut command, root)?;
        let child = command
            .arg(format!("--host-root={}", root.display()))
            .arg(format!("--plugin-source={}", plugin.display()))
            .arg(format!("--cni-agent-run-dir={}", root.join("run").display()))
            .args([
                format!("--monitoring-port={monitoring}"),
                "--health-port=0".to_owned(),
                "--host-proc-dir=/proc".to_owned(),
            ])
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| binary.display().to_string())?;
        Ok(Self { child, dir, monitoring })
    }

    /// Returns the number of pods that it has listed.
    fn listed(&self) -> Option<usize> {
        let answer = weir_lab::http::get(([127, 0, 0, 1], self.monitoring).into(), "/pods").ok()?;
        let listing: Value = serde_json::from_str(&answer.body).ok()?;
        listing["pods"].as_array().filter(|_| listing["synced"] == true).map(Vec::len)
    }

    /// Returns `VmRSS` and `VmHWM`, in KiB.
    fn memory(&self) -> anyhow::Result<[u64; 2]> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).context("no such field")?;
            line.trim_start_matches(':').trim_end_matches("kB").trim().parse::<u64>().context("a number")
        };
        Ok([field("VmRSS")?, field("VmHWM")?])
    }
}

fn main() -> anyhow::Result<()> {
    let binary = |name: &str| -> anyhow::Result<PathBuf> {
        Ok(std::env::var_os(name).with_context(|| format!("{name} is not set; run `make bench`"))?.into())
    };
    let (agent, plugin) = (binary("WEIR_AGENT")?, binary("WEIR_CNI")?);
    let selected = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let is_selected = |name: &str| selected.as_deref().is_none_or(|selected| selected == name);
    if is_selected("memory") {
        memory(&agent, &plugin)?;
    }
    if is_selected("restore") {
        restore(&agent, &plugin)?;
    }
    if is_selected("repair") {
        repair()?;
    }
    if is_selected("notified") {
        notified()?;
    }
    if is_selected("add") {
        add(&agent, &plugin)?;
    }
    Ok(())
}

fn memory(agent: &Path, plugin: &Path) -> anyhow::Result<()> {
    println!(
        "the agent with pods of {} KiB of JSON: resident after the first list, after ten changes of each, and at most (KiB)",
        pod(0).to_string().len() / 1024
    );
    for pods in [0, 30, 110, 250] {
        let server = ApiServer::start()?;
        for number in 0..pods {
            server.put("pods", pod(number));
        }
        let agent = Agent::start(agent, plugin, &server, pods)?;
        let [listed, _] = agent.memory()?;
        // Ten rounds of changes, as rollouts make them.
        for _ in 0..10 {
            for number in 0..pods {
                server.put("pods", pod(number));
            }
        }
        thread::sleep(Duration::from_secs(1));
        let [resident, peak] = agent.memory()?;
        println!("  {pods:4} pods  {listed:7}  {resident:7}  {peak:7}");
    }
    Ok(())
}

/// Measures the time until the entry is back after the installer of the network has rewritten its file. Each agent restores the first five
/// at once and backs off after that, so there is a new agent for every five.
fn restore(agent: &Path, plugin: &Path) -> anyhow::Result<()> {
    const AGENTS: usize = 20;
    const TIMES: usize = 5;
    let network = r#"{"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "bridge", "bridge": "cni0"}]}"#;
    let mut times = Samples::default();
    for _ in 0..AGENTS {
        let agent =
            Agent::spawn(agent, plugin, |_, root| Ok(fs::write(root.join("etc/cni/net.d/10-net.conflist"), network)?))?;
        let file = agent.dir.path().join("etc/cni/net.d/10-net.conflist");
        let restored = |begun: Instant| -> anyhow::Result<Duration> {
            while !fs::read_to_string(&file)?.contains("weir-cni") {
                ensure!(begun.elapsed() < TIMEOUT, "the entry was not restored within {TIMEOUT:?}");
                thread::sleep(Duration::from_micros(50));
            }
            Ok(begun.elapsed())
        };
        restored(Instant::now())?;
        for _ in 0..TIMES {
            // Let the agent finish: it checks what it has just written once more.
            thread::sleep(Duration::from_millis(100));
            let new = agent.dir.path().join("etc/cni/net.d/.new");
            fs::write(&new, network)?;
            fs::rename(&new, &file)?;
            times.push(restored(Instant::now())?);
        }
    }
    let [p10, median, p90, maximum] = [10, 50, 90, 100].map(|percent| times.percentile_us(percent));
    println!("configuration overwritten to restored, {} times (us): p10, median, p90, maximum", AGENTS * TIMES);
    println!("  {p10:6} {median:6} {p90:6} {maximum:6}");
    Ok(())
}

/// A repairer of a node with pods, whose namespaces the plugin has reported. The directory has their names.
fn repairer(count: usize) -> anyhow::Result<(Repairer, Vec<Netns>, tempfile::TempDir)> {
    let dir = tempfile::tempdir()?;
    fs::create_dir(dir.path().join("netns"))?;
    let (pods, attachments, states) = (PodCache::default(), Attachments::default(), PodStates::default());
    let (mut namespaces, mut all) = (Vec::new(), Vec::new());
    for number in 0..count {
        let netns = Netns::new("pod")?;
        let object = pod(number);
        let address = format!("{}/32", object["status"]["podIP"].as_str().context("an address")?);
        let added = netns.run(|| Command::new("ip").args(["addr", "add", &address, "dev", "lo"]).status())??;
        ensure!(added.success(), "no address");
        symlink(netns.path(), dir.path().join(format!("netns/cni-{number}")))?;
        let uid = object["metadata"]["uid"].as_str().context("a uid")?.to_owned();
        let (verb, netns_path) = ("ADD".to_owned(), netns.path().display().to_string());
        attachments.apply(&CallReport { v: 1, verb, uid, netns: netns_path, ..CallReport::default() });
        all.push(PodFacts::from_pod(serde_json::from_value(object)?, &[]));
        namespaces.push(netns);
    }
    pods.replace(all);
    let netns_paths = NetnsPaths {
        host_proc: "/proc".into(),
        host_root: dir.path().to_owned(),
        netns_dirs: vec!["/netns".into()],
        runtime_dirs: Vec::new(),
    };
    let options = RepairOptions { in_place: true, interval: TIMEOUT * 60, backend: Backend::Auto, netns_paths };
    let (events, _publisher) = events::channel(&MetricsRegistry::default());
    let metrics = RepairMetrics::default();
    let (visits, monitors) = (Visits::default(), Monitors::default());
    let verified = VerifiedRules::default();
    let repairer = Repairer { pods, attachments, options, states, metrics, events, visits, monitors, verified };
    Ok((repairer, namespaces, dir))
}

fn repair() -> anyhow::Result<()> {
    let (mut repairer, namespaces, _dir) = repairer(FULL)?;
    println!("one pass over {FULL} pods (ms)");
    let pass = |repairer: &Repairer, what: &str| -> anyhow::Result<()> {
        let begun = Instant::now();
        repairer.inspect_pods(true);
        let took = begun.elapsed();
        ensure!(repairer.states.all().iter().all(|pod| pod.state == RuleState::Ok), "not all rules are restored");
        println!("  {what:60} {:8.1}", took.as_secs_f64() * 1e3);
        Ok(())
    };
    pass(&repairer, "no rules; namespaces known from call reports")?;
    pass(&repairer, "all in place")?;
    for netns in &namespaces {
        netns.run(|| Command::new("nft").args(["flush", "table", "inet", "weir"]).status())??;
    }
    pass(&repairer, "all flushed")?;
    for netns in &namespaces {
        netns.run(|| Command::new("nft").args(["flush", "table", "inet", "weir"]).status())??;
    }
    repairer.attachments = Attachments::default();
    pass(&repairer, "all flushed; namespaces searched in /proc and by name")
}

/// Measures the time from the deletion of a pod's rules to the repair, with nothing but notifications, and what monitoring costs while
/// nothing happens.
fn notified() -> anyhow::Result<()> {
    println!("deletion of a pod's table to its repair (us): median, p99, maximum; all pods at once (ms)");
    let mut idle = None;
    for (count, attacks) in [(1, 60), (FULL, 500), (250, 1000)] {
        let (repairer, namespaces, _dir) = repairer(count)?;
        let (states, monitors) = (repairer.states.clone(), repairer.monitors.clone());
        let repairs = || states.all().iter().map(|pod| pod.repairs as usize).sum::<usize>();
        let wait = |expected: usize| -> anyhow::Result<()> {
            let begun = Instant::now();
            while repairs() < expected {
                ensure!(begun.elapsed() < TIMEOUT, "{} of {expected} repairs", repairs());
                thread::sleep(Duration::from_micros(200));
            }
            Ok(())
        };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let shutdown = CancellationToken::new();
        let running = runtime.spawn(repairer.run(None, shutdown.clone()));
        wait(count)?;
        while monitors.len() < count {
            thread::sleep(Duration::from_millis(1));
        }
        thread::sleep(Duration::from_secs(1));
        if count == FULL {
            let before = voluntary_switches()?;
            thread::sleep(TIMEOUT);
            // This thread slept once.
            idle = Some(voluntary_switches()?.saturating_sub(before + 1));
        }
        let mut times = Samples::default();
        let mut done = count;
        for attack in 0..attacks {
            let begun = namespaces[attack * 7 % count].run(|| {
                let begun = Instant::now();
                weir_kernel::nft::remove().map(|_| begun)
            })??;
            done += 1;
            wait(done)?;
            times.push(begun.elapsed());
            // As often as the budget of a pod allows for ever.
            thread::sleep(Duration::from_millis(600) / u32::try_from(count)?);
        }
        thread::sleep(Duration::from_secs(2));
        let begun = Instant::now();
        for netns in &namespaces {
            netns.run(weir_kernel::nft::remove)??;
        }
        wait(done + count)?;
        let all = begun.elapsed();
        let [median, p99, maximum] = [50, 99, 100].map(|percent| times.percentile_us(percent));
        println!("  {count:4} pods  {median:7} {p99:7} {maximum:7} {:8.1}", all.as_secs_f64() * 1e3);
        shutdown.cancel();
        runtime.block_on(running)?;
    }
    println!("wake-ups of all threads in 60 s without changes, {FULL} pods: {idle:?}");
    Ok(())
}

/// Returns how often the threads of this process have waited for something.
fn voluntary_switches() -> anyhow::Result<u64> {
    let mut sum = 0;
    for task in fs::read_dir("/proc/self/task")? {
        let status = fs::read_to_string(task?.path().join("status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        sum += line.context("no such field")?.trim().parse::<u64>()?;
    }
    Ok(sum)
}

/// A kind of ADD.
struct AddCase {
    label: &'static str,
    annotations: Value,
    agent: bool,
}

fn add(agent: &Path, plugin: &Path) -> anyhow::Result<()> {
    let server = ApiServer::start()?;
    let mut istio = pod(0);
    istio["metadata"]["annotations"] = json!({"sidecar.istio.io/status": STATUS});
    server.put("pods", istio);
    for number in 1..FULL {
        server.put("pods", pod(number));
    }
    let agent = Agent::start(agent, plugin, &server, FULL)?;
    let socket = agent.dir.path().join("run/agent.sock");
    let annotated = json!({"sidecar.istio.io/status": STATUS, "weir.dev/capture": CAPTURE});
    let cases = [
        AddCase { label: "annotation weir.dev/capture, no agent", annotations: annotated.clone(), agent: false },
        AddCase { label: "annotation weir.dev/capture, reported to the agent", annotations: annotated, agent: true },
        AddCase {
            label: "query over the socket",
            annotations: json!({"sidecar.istio.io/status": STATUS}),
            agent: true,
        },
    ];
    let mut times: Vec<Samples> = cases.iter().map(|_| Samples::default()).collect();
    for round in 0..ROUNDS + 10 {
        for (case, times) in cases.iter().zip(&mut times) {
            let netns = Netns::new("add")?;
            let mut conf = json!({
                "cniVersion": "1.0.0", "name": "n", "type": "weir-cni", "prevResult": {"cniVersion": "1.0.0"},
                "capabilities": {"io.kubernetes.cri.pod-annotations": true},
                "runtimeConfig": {"io.kubernetes.cri.pod-annotations": case.annotations},
            });
            if case.agent {
                conf["agent_socket"] = json!(socket);
            }
            let input = agent.dir.path().join("conf");
            fs::write(&input, conf.to_string())?;
            let mut command = Command::new(plugin);
            command
                .env_clear()
                .env("CNI_COMMAND", "ADD")
                .env("CNI_CONTAINERID", "c0ffee")
                .env("CNI_IFNAME", "eth0")
                .env("CNI_NETNS", netns.path())
                .env("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0000;K8S_POD_UID=00000000-0000-4000-9000-000000000000")
                .stdin(fs::File::open(&input)?)
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            let begun = Instant::now();
            let status = command.status()?;
            let took = begun.elapsed();
            if !status.success() {
                bail!("{}: {status}", case.label);
            }
            if round >= 10 {
                times.push(took);
            }
        }
    }
    println!("weir-cni ADD as a process, {ROUNDS} rounds interleaved (us): p10, median, p90");
    for (case, times) in cases.iter().zip(&times) {
        let [p10, median, p90] = [10, 50, 90].map(|percent| times.percentile_us(percent));
        println!("  {:52} {p10:6} {median:6} {p90:6}", case.label);
    }
    Ok(())
}
