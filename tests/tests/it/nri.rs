//! The agent as an NRI plugin of real runtimes: no CNI configuration of ours, and rules before the first container.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use iptables_rules::config::Ipv6Policy;
use iptables_rules::{CaptureConfig, plan};
use serde_json::{Value, json};
use weir_apiserver::ApiServer;
use weir_kernel::{netns, nft};
use weir_tests::agent::Agent;
use weir_tests::cri::{LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceOption, PodSandboxConfig};
use weir_tests::cri_runtime::{CriRuntime, PortForward, RuntimeRelease};
use weir_tests::try_wait_until;

const NETWORK: &str = "10-test.conflist";
const MONITORING_PORT: u16 = 8001;
/// Pods that are started in either mode to compare them.
const STARTS: usize = 15;
/// The repair of rules is off, so that nothing but NRI puts them in place.
const NRI: [&str; 3] = ["--mode=nri", "--repair-enabled=false", "--monitoring-port=8001"];
/// The runtime's limit for one call of a plugin.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

/// Returns a dual-stack network without an entry of ours.
fn network(release: RuntimeRelease) -> String {
    let bridge = json!({
        "type": "bridge", "bridge": "cni0", "isGateway": true, "ipam": {
            "type": "host-local",
            "ranges": [[{ "subnet": "10.80.0.0/24" }], [{ "subnet": "fd80::/64" }]],
            "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
        },
    });
    json!({ "cniVersion": release.cni_version(), "name": "test", "plugins": [bridge] }).to_string()
}

pub(crate) fn annotations(capture: &str) -> Vec<(String, String)> {
    vec![
        ("sidecar.istio.io/status".to_owned(), r#"{"containers":["istio-proxy"],"revision":"default"}"#.to_owned()),
        ("weir.dev/capture".to_owned(), capture.to_owned()),
    ]
}

/// A runtime with an API server that its node reaches.
pub(crate) struct Node {
    pub(crate) runtime: CriRuntime,
    pub(crate) api: ApiServer,
    _forward: PortForward,
}

impl Node {
    pub(crate) fn start(release: RuntimeRelease) -> Self {
        let conf = network(release);
        let runtime = CriRuntime::start_release(release, &[(NETWORK, &conf)], None).unwrap();
        let api = ApiServer::start().unwrap();
        api.kubeconfig(runtime.dir()).unwrap();
        let forward = runtime.forward(api.port()).unwrap();
        Self { runtime, api, _forward: forward }
    }

    pub(crate) fn agent(&self, flags: &[&str]) -> Agent {
        let mut agent = Agent::start(&self.runtime, &weir_tests::bin("weir-cni"), 8000, flags).unwrap();
        agent.wait_until_ready(&self.runtime).unwrap_or_else(|error| panic!("{error:#}\n{}", self.runtime.log()));
        agent
    }

    /// Starts a sandbox and returns its id and network namespace.
    pub(crate) fn run(&self, config: &PodSandboxConfig) -> (String, PathBuf) {
        let id = self.runtime.cri.run_pod_sandbox(config);
        let id = id.unwrap_or_else(|status| panic!("{}\n{}", status.message(), self.runtime.log()));
        let status = self.runtime.cri.sandbox_status(&id).unwrap();
        (id, self.runtime.host_path(&status.netns))
    }

    pub(crate) fn remove(&self, id: &str) {
        self.runtime.cri.stop_pod_sandbox(id).unwrap();
        self.runtime.cri.remove_pod_sandbox(id).unwrap();
    }

    pub(crate) fn get(&self, path: &str) -> String {
        let ask = || weir_lab::http::get(([127, 0, 0, 1], MONITORING_PORT).into(), path);
        netns::run_in(&self.runtime.node_netns(), ask).unwrap().unwrap().body
    }

    /// Starts pods, one after the other, and returns the median time from the kubelet's call until the sandbox is there, rules included.
    fn median_start(&self, annotations: &[(String, String)]) -> Duration {
        let mut times: Vec<Duration> = (0..STARTS)
            .map(|number| {
                let pod = self.runtime.pod(&format!("timed-{number}"), annotations.iter().cloned());
                let begun = Instant::now();
                let id = self.runtime.cri.run_pod_sandbox(&pod).unwrap();
                let took = begun.elapsed();
                self.remove(&id);
                took
            })
            .collect();
        times.sort_unstable();
        times[STARTS / 2]
    }

    /// Returns a counter of pods that the runtime reported.
    fn pods(&self, occasion: &str, outcome: &str) -> u64 {
        let name = format!("weir_agent_nri_pods_total{{occasion=\"{occasion}\",outcome=\"{outcome}\"}} ");
        let metrics = self.get("/metrics");
        metrics.lines().find_map(|line| line.strip_prefix(&name)?.parse().ok()).unwrap_or(0)
    }
}

/// Returns the differences from the rules of a configuration.
pub(crate) fn drift(path: &Path, config: &CaptureConfig) -> Vec<String> {
    netns::run_in(path, || nft::verify(&plan(config).unwrap())).unwrap().unwrap()
}

fn wait_for_rules(path: &Path, agent: &Agent) {
    let config = CaptureConfig::default();
    try_wait_until("the rules are in place", || {
        let drift = drift(path, &config);
        Ok(if drift.is_empty() { Ok(()) } else { Err(format!("{drift:?}\n{}", agent.log())) })
    })
    .unwrap();
}

/// Returns whether the validation container of a pod would let it start.
pub(crate) fn passes_validation(path: &Path) -> bool {
    let capture = ["-p", "15001", "-z", "15006", "-u", "1337", "-m", "REDIRECT", "-i", "*", "-x", "", "-b", "*"];
    let validate = || {
        Command::new(weir_tests::bin("weir-iptables"))
            .args(capture)
            .args(["-d", "15090,15021,15020", "--run-validation", "--skip-rule-apply", "--probe-timeout", "1s"])
            .output()
    };
    netns::run_in(path, validate).unwrap().unwrap().status.success()
}

fn pods_start_with_rules(release: RuntimeRelease) {
    if !release.available_or_skip() {
        return;
    }
    let node = Node::start(release);
    let runtime = &node.runtime;
    let agent = node.agent(&NRI);
    let status: Value = serde_json::from_str(&node.get("/status")).unwrap();
    assert_eq!((&status["mode"], &status["modeReason"]), (&"nri".into(), &"--mode=nri".into()));
    let default = CaptureConfig::default();

    // A pod of the mesh, in either policy; one outside of it; one in the network of the host.
    let web = runtime.pod("web", annotations(r#"{"v":1}"#));
    let (id, path) = node.run(&web);
    assert_eq!(drift(&path, &default), Vec::<String>::new(), "{}", agent.log());
    assert!(passes_validation(&path));
    let (auto, auto_path) = node.run(&runtime.pod("auto", annotations(r#"{"v":1,"?ipv6Auto":true}"#)));
    let left = CaptureConfig { ipv6: Ipv6Policy::Leave, ..default.clone() };
    assert_eq!(drift(&auto_path, &left), Vec::<String>::new(), "the pod has addresses of both families");
    let (bare, bare_path) = node.run(&runtime.pod("bare", []));
    assert!(netns::run_in(&bare_path, nft::read_back).unwrap().unwrap().tables.is_empty());
    let mut host = runtime.pod("host", annotations(r#"{"v":1}"#));
    // The node has it.
    host.hostname.clear();
    let options = Some(NamespaceOption::network(true));
    host.linux = Some(LinuxPodSandboxConfig {
        security_context: Some(LinuxSandboxSecurityContext { namespace_options: options }),
        ..host.linux.unwrap()
    });
    let host = runtime.cri.run_pod_sandbox(&host).unwrap();
    assert!(netns::run_in(&runtime.node_netns(), nft::read_back).unwrap().unwrap().tables.is_empty());

    // A pod whose rules cannot be planned does not start, and leaves nothing.
    let invalid = runtime.pod("invalid", annotations(r#"{"v":1,"outboundPortsExclude":[70000]}"#));
    let refused = runtime.cri.run_pod_sandbox(&invalid).unwrap_err();
    assert!(refused.message().contains("weir: pod shop/invalid: "), "{}", refused.message());
    assert!(refused.message().contains("70000"), "{}", refused.message());
    assert!(!runtime.cri.sandboxes_of_pods().unwrap().iter().any(|(_, name)| name == "invalid"));

    // No CNI configuration, neither in files nor in the runtime's memory.
    assert_eq!(fs::read_to_string(runtime.conf_dir().join(NETWORK)).unwrap(), network(release));
    assert!(!runtime.bin_dir().join("weir-cni").exists());

    // A sandbox that is created again has new rules; the end of the earlier one changes nothing.
    for id in [&id, &auto, &bare, &host] {
        node.remove(id);
    }
    let (_, path) = node.run(&web);
    assert_eq!(drift(&path, &default), Vec::<String>::new());

    // The agent registers again at a restarted runtime. Running pods keep their rules.
    runtime.kill_daemon().unwrap();
    try_wait_until("the agent is registered again", || {
        let metrics = node.get("/metrics");
        let again = metrics.contains("weir_agent_nri_connected 1\n") && !metrics.contains("nri_disconnects_total 0\n");
        Ok(if again { Ok(()) } else { Err(agent.log()) })
    })
    .unwrap();
    assert_eq!(node.pods("synchronize", "unchanged"), 1, "{}", node.get("/metrics"));
    assert_eq!(node.pods("run", "failed"), 1);
    let (_, second) = try_wait_until("the runtime is back", || {
        let cri = runtime.connect()?;
        let id = cri.run_pod_sandbox(&runtime.pod("second", annotations(r#"{"v":1}"#)))?;
        Ok::<_, anyhow::Error>(Ok((id.clone(), runtime.host_path(&cri.sandbox_status(&id)?.netns))))
    })
    .unwrap();
    assert_eq!((drift(&second, &default), drift(&path, &default)), (Vec::new(), Vec::new()));
    assert!(agent.terminate().unwrap().success());
    assert_eq!(drift(&path, &default), Vec::<String>::new(), "rules stay when the agent ends");
}

#[test]
fn containerd_1_7_pods_start_with_rules() {
    pods_start_with_rules(RuntimeRelease::V1_7);
}

#[test]
fn containerd_2_1_pods_start_with_rules() {
    pods_start_with_rules(RuntimeRelease::V2_1);
}

#[test]
fn crio_pods_start_with_rules() {
    pods_start_with_rules(RuntimeRelease::CriO);
}

/// Runtimes leave out a plugin that is absent or hangs. The pod's validation container does not.
fn absent_agents_are_noticed(release: RuntimeRelease) {
    if !release.available_or_skip() {
        return;
    }
    let node = Node::start(release);
    let runtime = &node.runtime;
    let pod = |name: &str| runtime.pod(name, annotations(r#"{"v":1}"#));

    // Killed.
    node.agent(&NRI).kill().unwrap();
    let (_, killed) = node.run(&pod("killed"));
    assert_ne!(drift(&killed, &CaptureConfig::default()), Vec::<String>::new(), "the runtime leaves the agent out");
    assert!(!passes_validation(&killed));
    let agent = node.agent(&NRI);
    wait_for_rules(&killed, &agent);
    assert!(passes_validation(&killed));

    // Hanging: the runtime waits for its limit, and closes the connection.
    agent.signal("STOP").unwrap();
    let begun = Instant::now();
    let (_, hanging) = node.run(&pod("hanging"));
    assert!((REQUEST_TIMEOUT..3 * REQUEST_TIMEOUT).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    assert!(!passes_validation(&hanging));
    agent.signal("CONT").unwrap();
    wait_for_rules(&hanging, &agent);
}

#[test]
fn containerd_2_1_leaves_out_an_absent_agent() {
    absent_agents_are_noticed(RuntimeRelease::V2_1);
}

#[test]
fn crio_leaves_out_an_absent_agent() {
    absent_agents_are_noticed(RuntimeRelease::CriO);
}

/// From the CNI plugin to NRI: whoever comes second finds the rules in place, and the entry goes when NRI works.
fn modes_are_switched(release: RuntimeRelease) {
    if !release.available_or_skip() {
        return;
    }
    let node = Node::start(release);
    let runtime = &node.runtime;
    let entries = || -> usize {
        let text = fs::read(runtime.conf_dir().join(NETWORK)).unwrap();
        serde_json::from_slice::<Value>(&text).unwrap()["plugins"].as_array().unwrap().len()
    };
    let capture = r#"{"v":1,"?ipv6Auto":true}"#;
    let config = CaptureConfig { ipv6: Ipv6Policy::Leave, ..CaptureConfig::default() };
    let cni = node.agent(&["--repair-enabled=false"]);
    assert_eq!(entries(), 2);
    // The runtime takes a moment to load the entry.
    let (id, path) = try_wait_until("the runtime calls the plugin", || {
        let (id, path) = node.run(&runtime.pod("first", annotations(capture)));
        let drift = drift(&path, &config);
        if drift.is_empty() {
            return Ok::<_, anyhow::Error>(Ok((id, path)));
        }
        node.remove(&id);
        Ok(Err(format!("{drift:?}")))
    })
    .unwrap();
    let (by_cni, without) = (node.median_start(&annotations(capture)), node.median_start(&[]));
    assert!(cni.terminate().unwrap().success());

    // NRI, as `auto` chooses it here. It finds the rules in place, and removes the entry.
    let with_entry = fs::read(runtime.conf_dir().join(NETWORK)).unwrap();
    let nri = node.agent(&["--mode=auto", NRI[1], NRI[2]]);
    let status: Value = serde_json::from_str(&node.get("/status")).unwrap();
    assert_eq!(status["modeReason"], "the container runtime serves NRI");
    assert_eq!(node.pods("synchronize", "unchanged"), 1, "{}", nri.log());
    try_wait_until("the entry is removed", || Ok(if entries() == 1 { Ok(()) } else { Err(nri.log()) })).unwrap();
    let run_until = |outcome: &str| {
        try_wait_until("the runtime has loaded its configuration", || {
            let (id, path) = node.run(&runtime.pod("next", annotations(capture)));
            assert_eq!(drift(&path, &config), Vec::<String>::new(), "no pod without rules in between");
            node.remove(&id);
            Ok(if node.pods("run", outcome) > 0 { Ok(()) } else { Err(nri.log()) })
        })
        .unwrap();
    };
    run_until("installed");
    let by_nri = node.median_start(&annotations(capture));
    eprintln!(
        "{release:?}: a sandbox takes {without:.1?} without rules, {by_cni:.1?} by CNI, {by_nri:.1?} by NRI (medians)"
    );
    // Both: somebody brings the entry back. The plugin comes first, and nothing is done twice.
    // In one step, so that no runtime reads a part; inside of the folder, as containerd ignores files from elsewhere.
    let written = runtime.conf_dir().join("restored");
    fs::write(&written, with_entry).unwrap();
    fs::rename(&written, runtime.conf_dir().join(NETWORK)).unwrap();
    run_until("unchanged");
    assert_eq!(node.pods("run", "replaced"), 0);
    // A pod of the plugin ends without the entry.
    fs::write(runtime.conf_dir().join(NETWORK), network(release)).unwrap();
    assert_eq!(drift(&path, &config), Vec::<String>::new());
    node.remove(&id);
    assert_eq!(runtime.cri.sandboxes().unwrap(), Vec::<String>::new());

    // Back: rules of NRI's pods stay, and the entry returns.
    let (_, last) = node.run(&runtime.pod("last", annotations(capture)));
    assert!(nri.terminate().unwrap().success());
    let _cni = node.agent(&["--repair-enabled=false"]);
    assert_eq!((entries(), drift(&last, &config)), (2, Vec::new()));
}

#[test]
fn containerd_2_1_is_switched_between_modes() {
    modes_are_switched(RuntimeRelease::V2_1);
}

#[test]
fn crio_is_switched_between_modes() {
    modes_are_switched(RuntimeRelease::CriO);
}
