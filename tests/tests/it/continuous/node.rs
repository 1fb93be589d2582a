//! A node: containerd with a primary network, two builds of the plugin to install, and agents.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::ensure;
use iptables_rules::RuleSet;
use serde_json::json;
use weir_apiserver::ApiServer;
use weir_kernel::{netns, nft};
use weir_tests::agent::{self, Agent};
use weir_tests::cri::{self, LoadedPlugin};
use weir_tests::cri_runtime::{CriRuntime, PortForward, RuntimeRelease};

use super::ledger::Rules;

/// `--repair-interval` of the agent.
const REPAIR_INTERVAL: Duration = Duration::from_secs(5);

/// File name of the primary network.
const PRIMARY: &str = "10-primary.conflist";

/// A build of the plugin: both behave the same, but have different bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Build {
    Old,
    New,
}

impl Build {
    pub(crate) fn other(self) -> Self {
        if self == Self::Old { Self::New } else { Self::Old }
    }
}

/// How rules get into new pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Cni,
    Nri,
}

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) runtime: CriRuntime,
    release: RuntimeRelease,
    /// Names of the pods that exist, or are about to.
    wanted: Mutex<HashSet<String>>,
    /// How often the file of the primary network was written.
    generation: AtomicU64,
    /// The API server that the agent watches.
    pub(crate) api: ApiServer,
    /// Makes the API server reachable from the node, while the power is on.
    forward: Mutex<Option<PortForward>>,
}

impl Node {
    pub(crate) fn start(release: RuntimeRelease) -> anyhow::Result<Self> {
        let primary = primary(release.cni_version(), 0);
        let runtime = CriRuntime::start_release(release, &[(PRIMARY, &primary)], None)?;
        let plugin = fs::read(weir_tests::bin("weir-cni"))?;
        for (build, tail) in [(Build::Old, "old"), (Build::New, "new")] {
            // Bytes after the sections of an executable are ignored.
            fs::write(source(&runtime, build), [&plugin[..], tail.as_bytes()].concat())?;
        }
        let api = ApiServer::start()?;
        api.kubeconfig(runtime.dir())?;
        let node = Self {
            runtime,
            release,
            wanted: Mutex::default(),
            generation: AtomicU64::new(0),
            api,
            forward: Mutex::default(),
        };
        node.forward_api_server()?;
        Ok(node)
    }

    /// Writes the file of the primary network as its own installer does: without our entry, atomically.
    pub(crate) fn write_primary(&self, cni_version: &str) -> anyhow::Result<()> {
        let temporary = self.runtime.conf_dir().join("primary.tmp");
        let generation = self.generation.fetch_add(1, Ordering::Relaxed) + 1;
        fs::write(&temporary, primary(cni_version, generation))?;
        Ok(fs::rename(temporary, self.runtime.conf_dir().join(PRIMARY))?)
    }

    /// Returns the CNI versions that the runtime supports.
    pub(crate) fn cni_versions(&self) -> &'static [&'static str] {
        let all = ["1.0.0", "0.4.0", "0.3.1", "1.1.0"].as_slice();
        if self.release == RuntimeRelease::V2_1 { all } else { &all[..3] }
    }

    /// Returns why the runtime would not call our plugin for a pod that starts now; `None` where it has loaded the latest network with the
    /// plugin in it.
    pub(crate) fn why_plugin_not_loaded(&self) -> anyhow::Result<Option<String>> {
        let loaded = self.runtime.cri.loaded_plugins()?;
        let newest = format!("\"generation\":{}", self.generation.load(Ordering::Relaxed));
        let is_newest = |plugin: &LoadedPlugin| plugin.source.replace([' ', '\n'], "").contains(&newest);
        let calls =
            loaded.first().is_some_and(is_newest) && loaded.last().is_some_and(|plugin| plugin.kind == "weir-cni");
        Ok((!calls).then(|| format!("{newest} with our plugin last is not loaded, but {loaded:?}")))
    }

    /// Makes the API server reachable from the node, until the power is off.
    pub(crate) fn forward_api_server(&self) -> anyhow::Result<()> {
        let mut forward = self.forward.lock().unwrap_or_else(PoisonError::into_inner);
        *forward = None;
        *forward = Some(self.runtime.forward(self.api.port())?);
        Ok(())
    }

    /// Sets whether a pod should exist.
    pub(crate) fn set_wanted(&self, pod: &str, wanted: bool) {
        let mut pods = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        if wanted {
            pods.insert(pod.to_owned());
        } else {
            pods.remove(pod);
        }
    }

    /// Removes sandboxes that interrupted calls have left, as a kubelet does when it starts. Returns the failures.
    pub(crate) fn remove_unwanted(&self) -> anyhow::Result<Vec<String>> {
        let mut failures = Vec::new();
        for (id, pod) in self.runtime.cri.sandboxes_of_pods()? {
            // Checked after the list: a pod is wanted before it exists.
            if self.wanted.lock().unwrap_or_else(PoisonError::into_inner).contains(&pod) {
                continue;
            }
            for call in [cri::Client::stop_pod_sandbox, cri::Client::remove_pod_sandbox] {
                // Its worker may just have removed it.
                if let Err(status) = call(&self.runtime.cri, &id)
                    && self.runtime.cri.sandboxes()?.contains(&id)
                {
                    failures.push(format!("failure: removing what was left of {pod}: {}", status.message()));
                }
            }
        }
        Ok(failures)
    }

    /// Removes libcni's cached attachments of sandboxes that the runtime does not know. Interrupted calls leave them, only the verb GC
    /// removes them, and `weir-agent uninstall` would wait for them.
    pub(crate) fn remove_stale_attachments(&self) -> anyhow::Result<()> {
        let alive = self.runtime.cri.sandboxes()?;
        for entry in fs::read_dir(self.runtime.dir().join("lib-cni/results")).into_iter().flatten() {
            let entry = entry?;
            // NETWORK-SANDBOX-INTERFACE
            let name = entry.file_name().to_string_lossy().into_owned();
            if !alive.iter().any(|id| name.contains(id)) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    /// Returns what an uninstall has left in the two directories.
    pub(crate) fn leftovers(&self) -> anyhow::Result<Vec<String>> {
        let mut leftovers = Vec::new();
        for dir in [self.runtime.conf_dir(), self.runtime.bin_dir()] {
            for entry in fs::read_dir(&dir)? {
                let entry = entry?;
                let name = entry.file_name().to_string_lossy().into_owned();
                // All other files in the plugin directory are links to the machine's plugins.
                let foreign =
                    dir == self.runtime.bin_dir() && entry.file_type()?.is_symlink() && !name.contains("weir");
                if !foreign && name != PRIMARY {
                    leftovers.push(entry.path().display().to_string());
                }
            }
        }
        if fs::read_to_string(self.runtime.conf_dir().join(PRIMARY))?.contains("weir") {
            leftovers.push(format!("our entry in {PRIMARY}"));
        }
        Ok(leftovers)
    }

    /// Returns whether the runtime serves NRI.
    pub(crate) fn serves_nri(&self) -> bool {
        self.release != RuntimeRelease::Installed
    }

    /// Starts an agent, without waiting until it is ready.
    pub(crate) fn start_agent(&self, build: Build, mode: Mode, placement: &str) -> anyhow::Result<Agent> {
        // Two agents may run at once.
        let health = if build == Build::Old { 8000 } else { 8001 };
        let interval = format!("--repair-interval={}s", REPAIR_INTERVAL.as_secs());
        let placement = format!("--cni-placement={placement}");
        let mode = if mode == Mode::Nri { "--mode=nri" } else { "--mode=cni" };
        Agent::start(&self.runtime, &source(&self.runtime, build), health, &[&interval, &placement, mode])
    }

    /// Runs `weir-agent uninstall` and returns its output.
    pub(crate) fn uninstall(&self, build: Build) -> anyhow::Result<String> {
        let plugin = source(&self.runtime, build);
        let output = agent::command(&self.runtime, "uninstall", &plugin)?.arg("--wait=30s").output()?;
        let output_text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        ensure!(output.status.success(), "uninstall: {output_text}");
        Ok(output_text)
    }

    /// Compares the rules of a pod with the expected ones; `None` means no table.
    pub(crate) fn rules(&self, netns: &str, expected: Option<&RuleSet>) -> anyhow::Result<Rules> {
        let found = netns::run_in(&self.runtime.host_path(netns), || match expected {
            Some(expected) => nft::verify(expected),
            None => Ok(nft::read_back()?.tables.iter().map(|_| "a table of ours".to_owned()).collect()),
        })??;
        Ok(if found.is_empty() { Rules::Complete } else { Rules::Differ(found) })
    }
}

fn source(runtime: &CriRuntime, build: Build) -> PathBuf {
    Path::new(runtime.dir()).join(format!("weir-cni-{build:?}"))
}

/// Returns a primary network with enough addresses for any run. `generation` identifies what the runtime has loaded.
fn primary(cni_version: &str, generation: u64) -> String {
    let list = json!({
        "cniVersion": cni_version, "name": "k8s-pod-network", "plugins": [
            { "type": "bridge", "bridge": "cni0", "isGateway": true, "generation": generation, "ipam": {
                "type": "host-local",
                "ranges": [[{ "subnet": "10.64.0.0/12" }], [{ "subnet": "fd77::/64" }]],
                "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
            } },
            { "type": "portmap", "capabilities": { "portMappings": true } },
        ],
    });
    format!("{list:#}\n")
}
