//! One run: install, fill, observe, check.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use crate::agents::{Agent, serve_reports};
use crate::api::Api;
use crate::check;
use crate::control_plane::ControlPlane;
use crate::install::{AGENT_NAMESPACE, Installation, WATCHER};
use crate::metrics::Scrape;
use crate::nodes::{self, Heartbeats};
use crate::plan::{Size, is_opted_in, namespace, namespace_name, node_name};
use crate::pods::{Census, Latencies, replace, start};
use crate::report::{AgentLoad, Creation, Process, Report, Webhook as WebhookFigures, machine};
use crate::watches::{WatchCounts, watch};
use crate::webhook::Webhook;
use crate::{each, proc, wait_until};

const TIMEOUT: Duration = Duration::from_mins(2);
/// Failures that are kept; beyond it the run is given up.
const MAX_FAILURES: usize = 100;
const CALLS: &str = "apiserver_admission_webhook_admission_duration_seconds";
const REJECTIONS: [&str; 2] =
    ["apiserver_admission_webhook_rejection_count", "apiserver_admission_webhook_fail_open_count"];

/// What a run needs.
#[derive(Debug)]
pub(crate) struct Options {
    /// Size of the cluster.
    pub(crate) size: Size,
    /// Directory of kube-apiserver and etcd.
    pub(crate) assets: PathBuf,
    /// Directory of the project's binaries.
    pub(crate) binaries: PathBuf,
    /// Directory for files and logs.
    pub(crate) dir: PathBuf,
}

/// Runs everything in the network namespace of this thread.
pub(crate) async fn run(options: &Options) -> anyhow::Result<Report> {
    let Options { size, binaries, dir, .. } = options;
    let begun = Instant::now();
    let log = |text: &str| eprintln!("{:>5.0} s  {text}", begun.elapsed().as_secs_f64());
    let plane = ControlPlane::start(&options.assets, dir).await?;
    let heartbeats = Arc::new(Heartbeats::default());
    let (installation, webhook) = install(options, &plane, &heartbeats).await?;
    log("installed");

    let mut agents = Vec::new();
    for number in 0..size.agents {
        agents.push(Agent::start(&plane, &installation, binaries, dir, number).await?);
    }
    let counts = start_watches(&plane, *size).await?;
    log("agents and watches started");

    let run = Run { size: *size, plane: &plane, webhook: &webhook, agents: &agents };
    let created = run.create_pods().await?;
    log(&format!("{} pods created", size.pods));
    let agent_pods_wrong = run.wrong_agent_pods(0).await?;
    let usage = run.usage()?;
    tokio::time::sleep(Duration::from_secs(size.idle_seconds)).await;
    let after = run.usage()?;
    log("observed");
    let churn_before = run.usage()?;
    let replaced = run.replace_pods().await?;
    let churn = run.agent_load(&churn_before, &run.usage()?, replaced);
    log(&format!("{replaced} pods replaced"));
    let (weir, kubeconfig, check_dir) = (binaries.join("weir"), plane.server.kubeconfig().to_owned(), dir.clone());
    let check = tokio::task::spawn_blocking(move || check::run(&weir, &kubeconfig, &check_dir)).await??;
    log("checked");
    let census = Census::take(&plane.api, *size).await?;

    let [server, etcd] = plane.server.pids();
    let process = |pid: u32, index: usize| -> anyhow::Result<Process> {
        Ok(Process {
            processors_at_creation: created.processors[index],
            processors_idle: (after.cpu[index] - usage.cpu[index]) / after.at.duration_since(usage.at).as_secs_f64(),
            memory: proc::memory(&[pid])?,
        })
    };
    Ok(Report {
        machine: machine(),
        size: *size,
        webhook: WebhookFigures { memory: proc::memory(&webhook.pids())?, ..created.webhook },
        creation: created.creation,
        idle: run.agent_load(&usage, &after, 0),
        churn,
        agent_memory: proc::memory(&run.agent_pids())?,
        watches: counts.figures(),
        heartbeats: [&heartbeats.renewed, &heartbeats.failed].map(|counter| counter.load(Ordering::Relaxed)),
        agent_pods_wrong: [agent_pods_wrong, run.wrong_agent_pods(1).await?].concat(),
        census,
        check,
        server: process(server, 0)?,
        etcd: process(etcd, 1)?,
    })
}

/// Installs Weir in a cluster with namespaces and nodes, and waits until the API server calls the webhook.
async fn install(
    options: &Options,
    plane: &ControlPlane,
    heartbeats: &Arc<Heartbeats>,
) -> anyhow::Result<(Installation, Webhook)> {
    let Options { size, binaries, dir, .. } = options;
    let installation = Installation::apply(&plane.api, &binaries.join("weir")).await?;
    each(0..size.namespaces, async |number| plane.create_namespace(&namespace(number)).await).await?;
    each(0..size.nodes, async |number| nodes::create(&plane.api, number).await).await?;
    for number in 0..size.nodes {
        let phase = fraction(number, size.nodes);
        tokio::spawn(nodes::beat(plane.api.clone(), number, phase, Arc::clone(heartbeats)));
    }
    let webhook = Webhook::start(plane, &installation, &binaries.join("weir-webhook"), dir).await?;
    serve_reports(size.pods / size.nodes).await?;
    installation.add_pods(&plane.api, size.nodes).await?;
    installation.add_endpoints(&plane.api).await?;
    wait_until("the webhook is called", TIMEOUT, async || probe(&plane.api, *size).await).await?;
    Ok((installation, webhook))
}

#[expect(clippy::cast_precision_loss, reason = "some thousands")]
fn fraction(part: usize, whole: usize) -> f64 {
    part as f64 / whole as f64
}

/// Creates a dry-run pod, which is to be injected.
async fn probe(api: &Api, size: Size) -> anyhow::Result<()> {
    let pod = size.pod(0);
    let created = api.post(&format!("{}?dryRun=All", pod.collection()), &pod.object(0)).await?;
    ensure!(created["metadata"]["annotations"]["sidecar.istio.io/status"].is_string(), "not injected");
    Ok(())
}

/// Starts a watch for each node without an agent, and waits until all are open.
async fn start_watches(plane: &ControlPlane, size: Size) -> anyhow::Result<Arc<WatchCounts>> {
    let kubeconfig = plane.account_kubeconfig(WATCHER, AGENT_NAMESPACE, WATCHER, plane.server.url()).await?;
    let counts = Arc::new(WatchCounts::default());
    let api = Api::new(&kubeconfig).await?;
    for number in size.agents..size.nodes {
        tokio::spawn(watch(api.clone(), node_name(number), Arc::clone(&counts)));
    }
    let wanted = (size.nodes - size.agents) as u64;
    wait_until("all watches are started", TIMEOUT, async || {
        let started = counts.started.load(Ordering::Relaxed);
        ensure!(started == wanted, "{started} of {wanted}");
        Ok(())
    })
    .await?;
    Ok(counts)
}

/// A filled cluster.
struct Run<'a> {
    size: Size,
    plane: &'a ControlPlane,
    webhook: &'a Webhook,
    agents: &'a [Agent],
}

/// Figures of the creation.
struct Created {
    creation: Creation,
    webhook: WebhookFigures,
    /// Processor time of API server and etcd, as a part of one processor.
    processors: [f64; 2],
}

/// What was used up to a moment.
struct Usage {
    at: Instant,
    /// Processor time of API server, etcd, webhook and agents, in seconds.
    cpu: [f64; 4],
    requests: BTreeMap<String, u64>,
    bytes: u64,
}

impl Run<'_> {
    fn agent_pids(&self) -> Vec<u32> {
        self.agents.iter().map(Agent::pid).collect()
    }

    fn usage(&self) -> anyhow::Result<Usage> {
        let [server, etcd] = self.plane.server.pids();
        let seconds = |pids: &[u32]| proc::cpu(pids).map(|time| time.as_secs_f64());
        Ok(Usage {
            at: Instant::now(),
            cpu: [seconds(&[server])?, seconds(&[etcd])?, seconds(&self.webhook.pids())?, seconds(&self.agent_pids())?],
            requests: self.plane.agent_requests()?,
            bytes: self.agents.iter().map(Agent::bytes).sum(),
        })
    }

    async fn server_metrics(&self) -> anyhow::Result<Scrape> {
        let text = self.plane.api.send("GET", "/metrics", "text/plain", Vec::new()).await?;
        Ok(Scrape::parse(&String::from_utf8_lossy(&text), &[CALLS, REJECTIONS[0], REJECTIONS[1]]))
    }

    async fn create_pods(&self) -> anyhow::Result<Created> {
        let (latencies, failures) = (Latencies::default(), std::sync::Mutex::new(Vec::new()));
        let (usage, server, own) = (self.usage()?, self.server_metrics().await?, self.webhook.scrape()?);
        each(0..self.size.pods, async |number| {
            let result = start(&self.plane.api, self.size.pod(number), 0, &latencies).await;
            if let Err(error) = result {
                let mut failures = failures.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                failures.push(format!("{error:#}"));
                ensure!(failures.len() < MAX_FAILURES, "too many failures, the last one: {error:#}");
            }
            Ok(())
        })
        .await?;
        let (after, server_after, own_after) = (self.usage()?, self.server_metrics().await?, self.webhook.scrape()?);
        let seconds = after.at.duration_since(usage.at).as_secs_f64();
        let cpu = |index: usize| after.cpu[index] - usage.cpu[index];
        let reviews = own_after.sum("sidecar_injection_time_seconds_count", &[])
            - own.sum("sidecar_injection_time_seconds_count", &[]);
        let quantile = |scrape: &Scrape, since: &Scrape, metric: &str, labels: &[&str], quantile: f64| {
            let value = scrape.quantile(since, metric, labels, quantile);
            value.map(|seconds| seconds * 1e3).with_context(|| format!("{metric} has counted nothing"))
        };
        let calls = ["type=\"admit\"", "operation=\"CREATE\""];
        Ok(Created {
            creation: Creation {
                seconds,
                pods_per_second: fraction(self.size.pods, 1) / seconds,
                p50_ms: latencies.permille(500),
                p99_ms: latencies.permille(990),
                failures: failures.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner),
            },
            webhook: WebhookFigures {
                reviews,
                server_p50_ms: quantile(&server_after, &server, CALLS, &calls, 0.5)?,
                server_p99_ms: quantile(&server_after, &server, CALLS, &calls, 0.99)?,
                rejected: REJECTIONS.iter().map(|name| server_after.sum(name, &[]) - server.sum(name, &[])).sum(),
                own_p50_ms: quantile(&own_after, &own, "sidecar_injection_time_seconds", &[], 0.5)?,
                own_p99_ms: quantile(&own_after, &own, "sidecar_injection_time_seconds", &[], 0.99)?,
                cpu_us_per_review: cpu(2) * 1e6 / reviews,
                ..WebhookFigures::default()
            },
            processors: [cpu(0) / seconds, cpu(1) / seconds],
        })
    }

    /// Replaces each pod of the agents' nodes once; returns how many there are.
    async fn replace_pods(&self) -> anyhow::Result<usize> {
        let latencies = Latencies::default();
        let numbers: Vec<usize> =
            (0..self.size.pods).filter(|number| self.size.pod(*number).node < self.agents.len()).collect();
        each(numbers.iter().copied(), async |number| {
            replace(&self.plane.api, self.size.pod(number), 0, &latencies).await
        })
        .await?;
        Ok(numbers.len())
    }

    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    fn agent_load(&self, before: &Usage, after: &Usage, replaced: usize) -> AgentLoad {
        let seconds = after.at.duration_since(before.at).as_secs_f64();
        let per_hour = |value: f64| value / self.agents.len() as f64 / seconds * 3600.0;
        let mut requests = after.requests.clone();
        for (kind, count) in &mut requests {
            *count -= before.requests.get(kind).copied().unwrap_or(0);
        }
        requests.retain(|_, count| *count > 0);
        let bytes = (after.bytes - before.bytes) as f64;
        AgentLoad {
            seconds,
            requests_per_hour: per_hour(requests.values().sum::<u64>() as f64),
            requests,
            bytes_per_hour: per_hour(bytes),
            bytes_per_pod: if replaced == 0 { 0.0 } else { bytes / replaced as f64 },
            cpu_seconds_per_hour: per_hour(after.cpu[3] - before.cpu[3]),
        }
    }

    /// Waits until every agent knows exactly the meshed pods of its node, of this generation; returns what is wrong after the timeout.
    async fn wrong_agent_pods(&self, generation: usize) -> anyhow::Result<Vec<String>> {
        let mut wrong = Vec::new();
        for (node, agent) in self.agents.iter().enumerate() {
            let pods = (0..self.size.pods).map(|number| self.size.pod(number));
            let pods = pods.filter(|pod| pod.node == node && is_opted_in(pod.namespace));
            let wanted: BTreeSet<String> =
                pods.map(|pod| format!("{}/{}", namespace_name(pod.namespace), pod.name(generation))).collect();
            let mut difference = Vec::new();
            let known = wait_until("the agent knows the pods of its node", Duration::from_secs(30), async || {
                let known = agent.pods()?;
                ensure!(known == wanted, "{:?}", known.symmetric_difference(&wanted).take(5).collect::<Vec<_>>());
                Ok(())
            });
            difference.extend(known.await.err().map(|error| format!("{}: {error:#}", node_name(node))));
            wrong.append(&mut difference);
        }
        Ok(wrong)
    }
}
