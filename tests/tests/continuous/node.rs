//! A node: containerd with a primary network, two versions of the plugin to install from, and agents that run on it.

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
use weir_tests::runtime::{Forward, Release, Runtime};

use crate::ledger::Rules;

/// How often the agent visits all pods.
const REPAIR_INTERVAL: Duration = Duration::from_secs(5);

/// Name of the primary network's file.
const PRIMARY: &str = "10-primary.conflist";

/// Which build of the plugin an agent brings: same behaviour, other bytes.
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

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) runtime: Runtime,
    release: Release,
    /// Names of the pods that should be there, or are about to be.
    wanted: Mutex<HashSet<String>>,
    /// How often the primary network's file was written.
    generation: AtomicU64,
    /// What the agent watches; pods are put there as a cluster would.
    pub(crate) api: ApiServer,
    /// Its way into the node's network, while the power is on.
    way: Mutex<Option<Forward>>,
}

impl Node {
    pub(crate) fn start(release: Release) -> anyhow::Result<Self> {
        let primary = primary(release.cni_version(), 0);
        let runtime = Runtime::start_release(release, &[(PRIMARY, &primary)], None)?;
        let plugin = fs::read(weir_tests::bin("weir-cni"))?;
        for (build, tail) in [(Build::Old, "old"), (Build::New, "new")] {
            // What follows the sections of an executable is never looked at.
            fs::write(source(&runtime, build), [&plugin[..], tail.as_bytes()].concat())?;
        }
        let api = ApiServer::start()?;
        api.kubeconfig(runtime.folder())?;
        let node = Self {
            runtime,
            release,
            wanted: Mutex::default(),
            generation: AtomicU64::new(0),
            api,
            way: Mutex::default(),
        };
        node.reach_the_api_server()?;
        Ok(node)
    }

    /// Writes the primary network's file as its own installer does: without our entry, and in one step.
    pub(crate) fn write_primary(&self, cni_version: &str) -> anyhow::Result<()> {
        let temporary = self.runtime.conf_dir().join("primary.tmp");
        let generation = self.generation.fetch_add(1, Ordering::Relaxed) + 1;
        fs::write(&temporary, primary(cni_version, generation))?;
        Ok(fs::rename(temporary, self.runtime.conf_dir().join(PRIMARY))?)
    }

    /// CNI versions that the primary network can have here.
    pub(crate) fn cni_versions(&self) -> &'static [&'static str] {
        let all = ["1.0.0", "0.4.0", "0.3.1", "1.1.0"].as_slice();
        if self.release == Release::V2_1 { all } else { &all[..3] }
    }

    /// Why the runtime would not call our plugin for a pod that starts now; `None` where it would, as a part of the network that was
    /// written last. Before that it may still have an older state in memory.
    pub(crate) fn does_not_call_us(&self) -> anyhow::Result<Option<String>> {
        let loaded = self.runtime.cri.loaded_plugins()?;
        let newest = format!("\"generation\":{}", self.generation.load(Ordering::Relaxed));
        let is_newest = |plugin: &LoadedPlugin| plugin.source.replace([' ', '\n'], "").contains(&newest);
        let calls =
            loaded.first().is_some_and(is_newest) && loaded.last().is_some_and(|plugin| plugin.kind == "weir-cni");
        Ok((!calls).then(|| format!("{newest} is not loaded with us at its end, but {loaded:?}")))
    }

    /// Gives the node a way to the API server; it is lost when the power is.
    pub(crate) fn reach_the_api_server(&self) -> anyhow::Result<()> {
        let mut way = self.way.lock().unwrap_or_else(PoisonError::into_inner);
        *way = None;
        *way = Some(self.runtime.forward(self.api.port())?);
        Ok(())
    }

    /// A pod is wanted from now on, or no longer.
    pub(crate) fn want(&self, pod: &str, wanted: bool) {
        let mut pods = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        if wanted {
            pods.insert(pod.to_owned());
        } else {
            pods.remove(pod);
        }
    }

    /// Removes the sandboxes of pods that nobody wants, as a kubelet does when it starts: calls that an outage cut off left them behind.
    /// Returns why some could not be removed.
    pub(crate) fn remove_unwanted(&self) -> anyhow::Result<Vec<String>> {
        let mut failures = Vec::new();
        for (id, pod) in self.runtime.cri.sandboxes_of_pods()? {
            // Asked after the list was made: a pod is wanted before it is there.
            if self.wanted.lock().unwrap_or_else(PoisonError::into_inner).contains(&pod) {
                continue;
            }
            for call in [cri::Client::stop_pod_sandbox, cri::Client::remove_pod_sandbox] {
                // One that has just been removed by its worker is no failure.
                if let Err(status) = call(&self.runtime.cri, &id)
                    && self.runtime.cri.sandboxes()?.contains(&id)
                {
                    failures.push(format!("failure: removing what was left of {pod}: {}", status.message()));
                }
            }
        }
        Ok(failures)
    }

    /// Forgets attachments of sandboxes that the runtime does not know: a call that was cut off by an outage leaves what libcni has
    /// cached of it, and nobody but the verb GC ever removes that. An uninstaller would wait for them.
    pub(crate) fn forget_dead_attachments(&self) -> anyhow::Result<()> {
        let alive = self.runtime.cri.sandboxes()?;
        for entry in fs::read_dir(self.runtime.folder().join("lib-cni/results")).into_iter().flatten() {
            let entry = entry?;
            // NETWORK-SANDBOX-INTERFACE
            let name = entry.file_name().to_string_lossy().into_owned();
            if !alive.iter().any(|id| name.contains(id)) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    /// What differs from the original in the two folders, for after an uninstallation.
    pub(crate) fn remains(&self) -> anyhow::Result<Vec<String>> {
        let mut remains = Vec::new();
        for folder in [self.runtime.conf_dir(), self.runtime.bin_dir()] {
            for entry in fs::read_dir(&folder)? {
                let entry = entry?;
                let name = entry.file_name().to_string_lossy().into_owned();
                // Everything in the plugin folder but ours is a link to the machine's own plugins.
                let foreign =
                    folder == self.runtime.bin_dir() && entry.file_type()?.is_symlink() && !name.contains("weir");
                if !foreign && name != PRIMARY {
                    remains.push(entry.path().display().to_string());
                }
            }
        }
        if fs::read_to_string(self.runtime.conf_dir().join(PRIMARY))?.contains("weir") {
            remains.push(format!("our entry in {PRIMARY}"));
        }
        Ok(remains)
    }

    /// Starts an agent; it is ready when [`Agent::wait_until_ready`] says so.
    pub(crate) fn start_agent(&self, build: Build, placement: &str) -> anyhow::Result<Agent> {
        // Two at once need ports of their own.
        let health = if build == Build::Old { 8000 } else { 8001 };
        let interval = format!("--repair-interval={}s", REPAIR_INTERVAL.as_secs());
        let placement = format!("--cni-placement={placement}");
        Agent::start(&self.runtime, &source(&self.runtime, build), health, &[&interval, &placement])
    }

    /// Takes everything off the node again, as the uninstalling Job does.
    /// What it said.
    pub(crate) fn uninstall(&self, build: Build) -> anyhow::Result<String> {
        let plugin = source(&self.runtime, build);
        let output = agent::command(&self.runtime, "uninstall", &plugin)?.arg("--wait=30s").output()?;
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        ensure!(output.status.success(), "uninstall: {said}");
        Ok(said)
    }

    /// The rules of a pod beside those that it should have; `None`: no table at all.
    pub(crate) fn rules(&self, netns: &str, expected: Option<&RuleSet>) -> anyhow::Result<Rules> {
        let found = netns::within(&self.runtime.path_from_here(netns), || match expected {
            Some(expected) => nft::verify(expected),
            None => Ok(nft::read_back()?.tables.iter().map(|_| "a table of ours".to_owned()).collect()),
        })??;
        Ok(if found.is_empty() { Rules::Right } else { Rules::Wrong(found) })
    }
}

fn source(runtime: &Runtime, build: Build) -> PathBuf {
    Path::new(runtime.folder()).join(format!("weir-cni-{build:?}"))
}

/// A primary network like that of many clusters; room for more pods than any run makes. `generation` means nothing to the plugin.
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
