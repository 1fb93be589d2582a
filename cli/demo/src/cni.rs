//! Runs a list of CNI plugins as a container runtime does (CNI specification 1.0.0, sections 2, 3 and 5).

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::{Map, Value, json};
use weir_lab::{Netns, process};

/// Newest version that Debian 12's plugins support.
pub(crate) const VERSION: &str = "1.0.0";
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Capability for the pod's annotations.
const ANNOTATIONS: &str = "io.kubernetes.cri.pod-annotations";

/// Subnets that only exist in the demo's namespaces.
pub(crate) const SUBNETS: [&str; 2] = ["10.88.0.0/24", "fd88::/64"];

/// Returns the plugins of the demo's network, as in a conflist: `bridge` with dual-stack addresses, `portmap`, and `weir-cni` last.
pub(crate) fn plugins(data_dir: &Path) -> Vec<Value> {
    vec![
        json!({
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": true,
            "ipam": {
                "type": "host-local",
                "dataDir": data_dir,
                "ranges": SUBNETS.map(|subnet| json!([{ "subnet": subnet }])),
                "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
            },
        }),
        json!({ "type": "portmap", "capabilities": { "portMappings": true } }),
        json!({ "type": "weir-cni", "capabilities": { (ANNOTATIONS): true } }),
    ]
}

/// A pod's attachment to the network.
pub(crate) struct Attachment<'a> {
    /// Namespace that plugins run in.
    pub(crate) node: &'a Netns,
    pub(crate) pod: &'a Netns,
    /// Directories with plugins.
    pub(crate) cni_path: &'a [PathBuf],
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
    pub(crate) annotations: &'a Value,
}

/// A finished call of one plugin.
pub(crate) struct Call {
    pub(crate) plugin: String,
    /// Run time of its process.
    pub(crate) took: Duration,
    pub(crate) result: Option<Value>,
}

impl Attachment<'_> {
    /// Runs ADD; every plugin gets the result of the previous one.
    pub(crate) fn add(&self, plugins: &[Value]) -> anyhow::Result<Vec<Call>> {
        let mut calls: Vec<Call> = Vec::new();
        for plugin in plugins {
            let previous = calls.last().and_then(|call| call.result.as_ref());
            calls.push(self.call("ADD", plugin, previous)?);
        }
        Ok(calls)
    }

    /// Runs CHECK against the result of ADD.
    pub(crate) fn check(&self, plugins: &[Value], result: &Value) -> anyhow::Result<()> {
        plugins.iter().try_for_each(|plugin| self.call("CHECK", plugin, Some(result)).map(|_| ()))
    }

    /// Runs DEL, last plugin first.
    pub(crate) fn del(&self, plugins: &[Value], result: &Value) -> anyhow::Result<()> {
        plugins.iter().rev().try_for_each(|plugin| self.call("DEL", plugin, Some(result)).map(|_| ()))
    }

    pub(crate) fn call(&self, verb: &str, plugin: &Value, previous: Option<&Value>) -> anyhow::Result<Call> {
        let name = plugin["type"].as_str().context("a plugin has no type")?;
        let binary = self
            .cni_path
            .iter()
            .map(|dir| dir.join(name))
            .find(|path| path.is_file())
            .with_context(|| format!("plugin {name} not found"))?;
        let stdin = serde_json::to_vec(&self.configuration(plugin, previous))?;
        let mut command = Command::new(binary);
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", format!("weir-demo-{}", std::process::id()))
            .env("CNI_NETNS", self.pod.path())
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", std::env::join_paths(self.cni_path)?)
            .env(
                "CNI_ARGS",
                format!("IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={}", self.namespace, self.name)
                    + ";K8S_POD_INFRA_CONTAINER_ID=weir-demo;K8S_POD_UID=2f1c8b1e-7a37-4e0c-9a52-5f8b0e6d3c11",
            );
        let output = self.node.run(|| process::run(&mut command, &stdin, CALL_TIMEOUT))??;
        if !output.status.success() {
            anyhow::bail!("{name} {verb}: {}", plugin_error(&output));
        }
        let result = if verb == "ADD" {
            Some(
                serde_json::from_slice(&output.stdout)
                    .with_context(|| format!("{name} ADD: the result is not JSON"))?,
            )
        } else {
            None
        };
        Ok(Call { plugin: name.to_owned(), took: output.took, result })
    }

    /// Returns the network configuration that a plugin reads: its entry of the conflist, completed by the runtime.
    fn configuration(&self, plugin: &Value, previous: Option<&Value>) -> Value {
        let mut configuration = plugin.clone();
        configuration["cniVersion"] = json!(VERSION);
        configuration["name"] = json!("weir-demo");
        let mut runtime = Map::new();
        if plugin["capabilities"][ANNOTATIONS] == true {
            runtime.insert(ANNOTATIONS.to_owned(), self.annotations.clone());
        }
        if !runtime.is_empty() {
            configuration["runtimeConfig"] = Value::Object(runtime);
        }
        if let Some(previous) = previous {
            configuration["prevResult"] = previous.clone();
        }
        configuration
    }
}

/// Returns the error of a plugin: JSON on standard output by the specification, else whatever it wrote.
fn plugin_error(output: &process::Output) -> String {
    let text = |field: &Value| field.as_str().unwrap_or_default().to_owned();
    match serde_json::from_slice::<Value>(&output.stdout) {
        Ok(error) if error["msg"].is_string() => {
            let details = text(&error["details"]);
            format!(
                "{}{}{details} (code {})",
                text(&error["msg"]),
                if details.is_empty() { "" } else { ": " },
                error["code"]
            )
        }
        _ => {
            let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            format!("{}: {} {}", output.status, stdout.trim(), stderr.trim())
        }
    }
}
