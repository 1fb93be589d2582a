//! A node with the agent's binary, honest pods and those of a hostile tenant.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use weir_apiserver::ApiServer;
use weir_lab::Netns;
use weir_tests::cgroup::Cgroup;

use super::{free_addr, largest_pod, peak_memory, pod};

/// Memory limit of the agent's manifests.
const MEMORY_LIMIT: u64 = 128 << 20;
/// Rules that the hostile pod fills its own table with.
const HOSTILE_RULES: usize = 300_000;
/// Pods of the largest size on the node.
const LARGEST_PODS: usize = 12;
const STATUS: &str = r#"{"initContainers":["istio-validation"],"containers":["istio-proxy"],"revision":"default"}"#;
const CAPTURE: &str = r#"{"v":1,"outboundPortsExclude":[15020]}"#;

pub(super) struct Node {
    api: ApiServer,
    agent: Child,
    pub(super) health: SocketAddr,
    pub(super) monitoring: SocketAddr,
    pods: BTreeMap<usize, Netns>,
    pub(super) hostile: Netns,
    next: usize,
    dir: tempfile::TempDir,
    /// Held by its drop.
    _memory: Option<Cgroup>,
}

impl Node {
    /// Starts the agent; the node has a hostile pod with a full table, and the largest pods that etcd takes.
    pub(super) fn start() -> Self {
        let (api, dir) = (ApiServer::start().unwrap(), tempfile::tempdir().unwrap());
        let root = dir.path();
        for folder in ["etc/cni/net.d", "opt/cni/bin", "netns"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        for number in 0..LARGEST_PODS {
            api.put("pods", largest_pod(&format!("large-{number}"), number % 4 == 0));
        }
        let hostile = netns("10.9.0.1");
        fill(&hostile);
        symlink(hostile.path(), root.join("netns/cni-hostile")).unwrap();
        api.put("pods", meshed("hostile", "10.9.0.1"));
        let (health, monitoring) = (free_addr(), free_addr());
        let agent = Command::new(weir_tests::bin("weir-agent"))
            .env_clear()
            .env("KUBECONFIG", api.kubeconfig(root).unwrap())
            .env("NODE_NAME", "node-1")
            .args(["run", "--host-proc-dir=/proc", "--netns-dirs=/netns", "--repair-interval=5s"])
            .arg(format!("--host-root={}", root.display()))
            .arg(format!("--plugin-source={}", weir_tests::bin("weir-cni").display()))
            .arg(format!("--cni-agent-run-dir={}", root.join("run").display()))
            .arg(format!("--monitoring-port={}", monitoring.port()))
            .arg(format!("--health-port={}", health.port()))
            .stdout(Stdio::null())
            .stderr(fs::File::create(root.join("log")).unwrap())
            .spawn()
            .unwrap();
        let memory = super::confined(Cgroup::with_memory(MEMORY_LIMIT), agent.id());
        let mut node =
            Self { api, agent, health, monitoring, pods: BTreeMap::new(), hostile, next: 0, dir, _memory: memory };
        let begun = Instant::now();
        while !weir_lab::http::get(health, "/readyz").is_ok_and(|answer| answer.body.contains("[+]pods:")) {
            assert!(begun.elapsed() < 4 * weir_tests::TIMEOUT, "the agent is not ready: {}", node.log());
            assert!(node.is_running(), "the agent has exited: {}", node.log());
            std::thread::sleep(Duration::from_millis(50));
        }
        node
    }

    pub(super) fn is_running(&mut self) -> bool {
        self.agent.try_wait().unwrap().is_none()
    }

    pub(super) fn peak_memory(&self) -> u64 {
        peak_memory(self.agent.id())
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Starts an honest pod; returns how long its ADD took, or why it failed.
    pub(super) fn add_pod(&mut self) -> Result<Duration, String> {
        let number = self.next;
        self.next += 1;
        let ip = format!("10.8.{}.{}", number / 250, number % 250 + 1);
        let name = format!("web-{number}");
        let netns = netns(&ip);
        symlink(netns.path(), self.dir.path().join(format!("netns/cni-{number}"))).unwrap();
        self.api.put("pods", meshed(&name, &ip));
        let conf = json!({
            "cniVersion": "1.0.0", "name": "n", "type": "weir-cni", "prevResult": {"cniVersion": "1.0.0"},
            "capabilities": {"io.kubernetes.cri.pod-annotations": true}, "agent_socket": self.dir.path().join("run/agent.sock"),
            "runtimeConfig": {"io.kubernetes.cri.pod-annotations": {"sidecar.istio.io/status": STATUS, "weir.dev/capture": CAPTURE}},
        });
        let input = self.dir.path().join("conf");
        fs::write(&input, conf.to_string()).unwrap();
        let begun = Instant::now();
        let output = Command::new(weir_tests::bin("weir-cni"))
            .env_clear()
            .envs([("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", name.as_str()), ("CNI_IFNAME", "eth0")])
            .env("CNI_NETNS", netns.path())
            .env("CNI_ARGS", format!("K8S_POD_NAMESPACE=shop;K8S_POD_NAME={name};K8S_POD_UID=uid-{name}"))
            .stdin(fs::File::open(&input).unwrap())
            .output()
            .unwrap();
        let took = begun.elapsed();
        if !output.status.success() || !has_rules(&netns) {
            return Err(format!("{name}: {}", String::from_utf8_lossy(&output.stdout)));
        }
        self.pods.insert(number, netns);
        Ok(took)
    }

    /// Ends the oldest honest pod where there are more than `kept`.
    pub(super) fn delete_oldest(&mut self, kept: usize) {
        if self.pods.len() > kept
            && let Some((number, _)) = self.pods.pop_first()
        {
            let _ = fs::remove_file(self.dir.path().join(format!("netns/cni-{number}")));
            self.api.remove("pods", "shop", &format!("web-{number}"));
        }
    }

    /// Changes a large pod, which its author may do as often as they like.
    pub(super) fn change_large_pod(&self, round: usize) {
        let mut large = largest_pod(&format!("large-{}", round % LARGEST_PODS), round.is_multiple_of(4));
        large["metadata"]["labels"] = json!({"round": round.to_string()});
        self.api.put("pods", large);
    }

    /// Removes the rules of the oldest honest pod; returns how long the agent takes to restore them.
    pub(super) fn restore(&self) -> Result<Duration, String> {
        let Some((number, netns)) = self.pods.first_key_value() else { return Err("no pod".to_owned()) };
        nft(netns, "delete table inet weir");
        let begun = Instant::now();
        while !has_rules(netns) {
            if begun.elapsed() > weir_tests::TIMEOUT {
                return Err(format!("web-{number} is not restored: {}", self.log().lines().last().unwrap_or_default()));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(begun.elapsed())
    }

    /// Returns the honest pods without rules.
    pub(super) fn pods_without_rules(&self) -> Vec<usize> {
        self.pods.iter().filter(|(_, netns)| !has_rules(netns)).map(|(number, _)| *number).collect()
    }

    pub(super) fn hostile_netns(&self) -> PathBuf {
        self.hostile.path()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.agent.kill().and_then(|()| self.agent.wait());
    }
}

fn meshed(name: &str, ip: &str) -> Value {
    let mut object = pod(name);
    object["metadata"]["uid"] = format!("uid-{name}").into();
    object["metadata"]["annotations"] = json!({"sidecar.istio.io/status": STATUS, "weir.dev/capture": CAPTURE});
    object["spec"]["nodeName"] = "node-1".into();
    object["spec"]["containers"].as_array_mut().unwrap().push(json!({"name": "istio-proxy", "image": "proxyv2"}));
    object["status"] = json!({"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]});
    object
}

/// Creates the network namespace of a pod.
fn netns(ip: &str) -> Netns {
    let netns = Netns::new("pod").unwrap();
    let added = netns.run(|| Command::new("ip").args(["addr", "add", &format!("{ip}/32"), "dev", "lo"]).status());
    assert!(added.unwrap().unwrap().success(), "no address");
    netns
}

fn has_rules(netns: &Netns) -> bool {
    let listed = netns.run(|| Command::new("nft").args(["list", "table", "inet", "weir"]).output()).unwrap().unwrap();
    listed.status.success() && String::from_utf8_lossy(&listed.stdout).contains("redirect to :15001")
}

fn nft(netns: &Netns, script: &str) {
    let status = netns.run(|| {
        let mut child = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn()?;
        child.stdin.take().map(|mut stdin| stdin.write_all(script.as_bytes())).transpose()?;
        child.wait()
    });
    assert!(status.unwrap().unwrap().success(), "nft failed");
}

/// Fills a table with the name of Weir's.
fn fill(netns: &Netns) {
    let mut script = "add table inet weir\nadd chain inet weir many\n".to_owned();
    for number in 0..HOSTILE_RULES {
        let _ = writeln!(script, "add rule inet weir many meta mark {number} accept");
    }
    nft(netns, &script);
}
