//! The agent is upgraded while a hundred pods start: every meshed one has its rules, and none fails.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use iptables_rules::CaptureConfig;
use iptables_rules::config::Ipv6Policy;
use serde_json::{Value, json};
use weir_tests::agent::{Agent, NODE};
use weir_tests::cri_runtime::{BUSYBOX, RuntimeRelease};
use weir_tests::{try_wait_until, wait_until};

use crate::nri::{Node, annotations, drift};

const PODS: usize = 100;
/// Threads that start them, each one pod after the other.
const KUBELETS: usize = 4;
/// Longest time that the plugin waits for an agent, instead of 2 s: the machine may be busy with other tests.
const PATIENCE: &str = "--agent-timeout=20s";

fn flags(mode: &'static str, monitoring: &'static str) -> [&'static str; 4] {
    [mode, "--repair-enabled=false", monitoring, PATIENCE]
}

/// Stores a pod as Istio's injector makes it: what it captures is in its containers, which only the API server shows, so that the plugin
/// asks the agent.
fn store(node: &Node, name: &str, annotations: &[(String, String)]) {
    let map: serde_json::Map<String, Value> =
        annotations.iter().map(|(key, value)| (key.clone(), value.clone().into())).collect();
    let containers = ["app", "istio-proxy"].map(|name| json!({ "name": name, "image": BUSYBOX }));
    node.api.put(
        "pods",
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "namespace": "shop", "name": name, "uid": format!("{name}-uid"), "annotations": map },
            "spec": { "nodeName": NODE, "containers": containers },
            "status": { "phase": "Pending" },
        }),
    );
}

/// Starts a pod, which is in the mesh or not; returns what is wrong with it.
fn start_pod(node: &Node, number: usize) -> Result<(), String> {
    let (name, is_meshed) = (format!("pod-{number}"), number.is_multiple_of(2));
    let annotations = if is_meshed { annotations("")[..1].to_vec() } else { Vec::new() };
    if is_meshed {
        store(node, &name, &annotations);
    }
    let cri = node.runtime.connect().map_err(|error| format!("{error:#}"))?;
    let id =
        cri.run_pod_sandbox(&node.runtime.pod(&name, annotations)).map_err(|status| status.message().to_owned())?;
    if is_meshed {
        let status = cri.sandbox_status(&id).map_err(|error| format!("{error:#}"))?;
        let config = CaptureConfig { ipv6: Ipv6Policy::Leave, ..CaptureConfig::default() };
        let drift = drift(&node.runtime.host_path(&status.netns), &config);
        if !drift.is_empty() {
            return Err(format!("{name}: {drift:?}"));
        }
    }
    Ok(())
}

/// Says that the upgrade is over when it is dropped.
struct Over<'a>(&'a AtomicUsize);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(1, Ordering::Relaxed);
    }
}

/// Starts all pods while `upgrade` runs: it begins when a quarter has started, and must be over before the last quarter starts.
fn start_pods_during(node: &Node, upgrade: impl FnOnce() -> Agent) -> Agent {
    let (next, started) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let upgraded = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let kubelet = || {
            let mut wrong = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                while number >= PODS * 3 / 4 && upgraded.load(Ordering::Relaxed) == 0 {
                    std::thread::sleep(Duration::from_millis(10));
                }
                if number >= PODS {
                    return wrong;
                }
                wrong.extend(start_pod(node, number).err());
                started.fetch_add(1, Ordering::Relaxed);
            }
        };
        let kubelets: Vec<_> = (0..KUBELETS).map(|_| scope.spawn(kubelet)).collect();
        // Also after a panic: else the threads would wait for ever.
        let over = Over(&upgraded);
        wait_until("a quarter of the pods has started", || match started.load(Ordering::Relaxed) {
            count if count < PODS / 4 => Err(format!("{count}")),
            _ => Ok(()),
        });
        let agent = upgrade();
        drop(over);
        let wrong: Vec<String> = kubelets.into_iter().flat_map(|kubelet| kubelet.join().unwrap()).collect();
        assert_eq!(wrong, Vec::<String>::new(), "{}\n{}", agent.log(), node.runtime.log());
        agent
    })
}

/// The plugin asks an agent that is being replaced again, until its time is up.
fn pods_wait_for_the_next_agent(release: RuntimeRelease) {
    if !release.available_or_skip() {
        return;
    }
    let node = Node::start(release);
    let flags = flags("--mode=cni", "--monitoring-port=8001");
    let first = node.agent(&flags);
    // The runtime takes a moment to load the entry.
    let mut attempts = 1000..;
    try_wait_until("the runtime calls the plugin", || Ok(start_pod(&node, attempts.next().unwrap_or_default() * 2)))
        .unwrap();
    drop(start_pods_during(&node, || {
        first.kill().unwrap();
        node.agent(&flags)
    }));
}

#[test]
fn pods_of_containerd_2_1_wait_for_the_next_agent() {
    pods_wait_for_the_next_agent(RuntimeRelease::V2_1);
}

#[test]
fn pods_of_crio_wait_for_the_next_agent() {
    pods_wait_for_the_next_agent(RuntimeRelease::CriO);
}

/// Two NRI plugins at the same time: whoever comes second finds the rules in place.
fn next_nri_plugin_takes_over(release: RuntimeRelease) {
    if !release.available_or_skip() {
        return;
    }
    let node = Node::start(release);
    let first = node.agent(&flags("--mode=nri", "--monitoring-port=8001"));
    drop(start_pods_during(&node, || {
        let flags = flags("--mode=nri", "--monitoring-port=8002");
        let mut second = Agent::start(&node.runtime, &weir_tests::bin("weir-cni"), 8003, &flags).unwrap();
        second.wait_until_ready(&node.runtime).unwrap();
        assert!(first.terminate().unwrap().success());
        second
    }));
}

#[test]
fn next_nri_plugin_of_containerd_2_1_takes_over() {
    next_nri_plugin_takes_over(RuntimeRelease::V2_1);
}

#[test]
fn next_nri_plugin_of_crio_takes_over() {
    next_nri_plugin_takes_over(RuntimeRelease::CriO);
}
