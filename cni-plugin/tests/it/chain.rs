//! A chain of the reference plugins bridge, host-local and portmap with ours, called as libcni does, in a network namespace that stands for
//! the host.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use weir_lab::process::{self, Output};
use weir_lab::{Dial, Netns, TcpEcho, User, privilege};

use crate::call::{CAPABILITY, STATUS};

const BOUND: Duration = Duration::from_secs(20);

/// The plugins of a conflist.
struct Chain {
    host: Netns,
    pod: Netns,
    version: &'static str,
    plugins: Vec<Value>,
    reference: PathBuf,
}

/// Returns the directory of the reference plugins, where they are installed.
pub(crate) fn reference_plugins() -> Option<PathBuf> {
    let found = ["/opt/cni/bin", "/usr/lib/cni"].map(PathBuf::from).into_iter().find(|dir| dir.join("bridge").exists());
    if found.is_none() {
        weir_lab::skip_or_fail("the reference CNI plugins are not installed (Debian: containernetworking-plugins)");
    }
    found
}

impl Chain {
    fn new(version: &'static str, state: &Path, reference: PathBuf) -> Self {
        let ranges = json!([[{ "subnet": "10.87.0.0/24" }], [{ "subnet": "fd00:87::/64" }]]);
        let plugins = vec![
            json!({
                "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
                "ipam": { "type": "host-local", "ranges": ranges, "dataDir": state,
                          "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }] },
            }),
            json!({ "type": "portmap", "capabilities": { "portMappings": true } }),
            json!({ "type": "weir-cni", "capabilities": { CAPABILITY: true }, "exclude_namespaces": ["kube-system"] }),
        ];
        let host = Netns::new("host").unwrap();
        host.set_sysctl("net/ipv4/ip_forward", "1").unwrap();
        Self { host, pod: Netns::new("pod").unwrap(), version, plugins, reference }
    }

    /// Calls one plugin, with the keys that libcni adds to its entry.
    fn call(&self, verb: &str, plugin: &Value, prev: Option<&Value>) -> Output {
        let mut conf = plugin.clone();
        conf["cniVersion"] = self.version.into();
        conf["name"] = "testnet".into();
        if let Some(prev) = prev {
            conf["prevResult"] = prev.clone();
        }
        if plugin["capabilities"][CAPABILITY] == true {
            conf["runtimeConfig"] = json!({ CAPABILITY: { STATUS.0: STATUS.1 } });
        }
        if plugin["capabilities"]["portMappings"] == true {
            conf["runtimeConfig"] =
                json!({ "portMappings": [{ "hostPort": 18080, "containerPort": 8080, "protocol": "tcp" }] });
        }
        let name = plugin["type"].as_str().unwrap();
        let program =
            if name == "weir-cni" { PathBuf::from(env!("CARGO_BIN_EXE_weir-cni")) } else { self.reference.join(name) };
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", "c0ffee")
            .env("CNI_NETNS", self.pod.path())
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", &self.reference)
            .env(
                "CNI_ARGS",
                "K8S_POD_NAME=web-1;K8S_POD_INFRA_CONTAINER_ID=c0ffee;IgnoreUnknown=1;K8S_POD_NAMESPACE=shop",
            );
        self.host.run(|| process::run(&mut command, conf.to_string().as_bytes(), BOUND)).unwrap().unwrap()
    }

    /// Calls ADD of all plugins and returns their results; each gets the result of the one before.
    fn add(&self) -> Vec<Value> {
        let mut results: Vec<Value> = Vec::new();
        for plugin in &self.plugins {
            let output = self.call("ADD", plugin, results.last());
            assert!(output.status.success(), "{}: {}", plugin["type"], String::from_utf8_lossy(&output.stdout));
            results.push(serde_json::from_slice(&output.stdout).unwrap());
        }
        results
    }

    /// Calls CHECK in the order of the list, or DEL in reverse, with the last result.
    fn all(&self, verb: &str, prev: Option<&Value>) {
        let mut plugins: Vec<&Value> = self.plugins.iter().collect();
        match verb {
            "DEL" => plugins.reverse(),
            // CHECK of portmap 1.1.1 fails for dual-stack pods: it expects their IPv4 rules in ip6tables.
            "CHECK" => plugins.retain(|plugin| plugin["type"] != "portmap"),
            _ => {}
        }
        for plugin in plugins {
            let output = self.call(verb, plugin, prev);
            assert!(output.status.success(), "{verb} {}: {}", plugin["type"], String::from_utf8_lossy(&output.stdout));
        }
    }
}

fn addresses(result: &Value) -> Vec<IpAddr> {
    let ips = result["ips"].as_array().unwrap();
    ips.iter().map(|ip| ip["address"].as_str().unwrap().split('/').next().unwrap().parse().unwrap()).collect()
}

#[test]
fn traffic_is_captured_behind_the_reference_plugins() {
    let Some(reference) = reference_plugins() else { return };
    if !privilege::available_or_skip() {
        return;
    }
    for version in ["0.4.0", "1.0.0"] {
        let state = tempfile::tempdir().unwrap();
        let chain = Chain::new(version, state.path(), reference.clone());
        let results = chain.add();
        assert_eq!(results[2], results[1], "the result of portmap passes through");
        let addresses = addresses(&results[2]);
        assert_eq!(addresses.len(), 2, "{addresses:?}");

        let _proxy = TcpEcho::start(&chain.pod, User::PROXY, &[15001, 15006]).unwrap();
        let _app = TcpEcho::start(&chain.pod, User::with_id(1000), &[8080]).unwrap();
        for address in addresses {
            let app = SocketAddr::new(address, 8080);
            let seen = Dial::new(User::ROOT, app).connect_in(&chain.host).unwrap().unwrap();
            assert_eq!((seen.port, seen.original_dst), (15006, Some(app)), "inbound to {address}");
            let gateway: IpAddr = if address.is_ipv4() { "10.87.0.1" } else { "fd00:87::1" }.parse().unwrap();
            let peer = SocketAddr::new(gateway, 9);
            let seen = Dial::new(User::with_id(1000), peer).connect_in(&chain.pod).unwrap().unwrap();
            assert_eq!((seen.port, seen.original_dst), (15001, Some(peer)), "outbound from {address}");
        }

        chain.all("CHECK", Some(&results[2]));
        chain.all("DEL", Some(&results[2]));
        chain.all("DEL", None);
    }
}
