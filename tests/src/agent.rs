//! The node agent as a process on a node made of namespaces, with that node's own directories.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::ensure;
use weir_kernel::netns;

use crate::cri_runtime::{CriRuntime, children};
use crate::wait::try_wait_until;

/// Name of the node, for the agent and the pods bound to it.
pub const NODE: &str = "node-1";

/// Returns a command `weir-agent VERB` on the node, with the node's directories, `plugin` as the plugin to install and the kubeconfig in
/// the runtime's directory.
///
/// # Errors
/// While the power is off.
pub fn command(runtime: &CriRuntime, verb: &str, plugin: &Path) -> anyhow::Result<Command> {
    let mut command = runtime.command(&crate::bin("weir-agent"))?;
    let (conf, bin) = (runtime.conf_dir(), runtime.bin_dir());
    command
        .env("KUBECONFIG", runtime.dir().join("kubeconfig"))
        .env("NODE_NAME", NODE)
        .arg(verb)
        .arg("--host-root=/")
        .arg(format!("--mounted-cni-net-dir={}", conf.display()))
        .arg(format!("--cni-net-dir={}", conf.display()))
        .arg(format!("--mounted-cni-bin-dir={}", bin.display()))
        .arg(format!("--cni-bin-dir={}", bin.display()))
        .arg(format!("--plugin-source={}", plugin.display()));
    Ok(command)
}

/// A running agent. Killed when dropped.
#[derive(Debug)]
pub struct Agent {
    wrapper: Child,
    log: PathBuf,
    health: u16,
}

impl Agent {
    /// Starts an agent; `flags` override the default ones. Agents that run at the same time need different health ports.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(runtime: &CriRuntime, plugin: &Path, health: u16, flags: &[&str]) -> anyhow::Result<Self> {
        let log = runtime.dir().join(format!("agent-{health}.log"));
        let file = fs::File::options().create(true).append(true).open(&log)?;
        let netns_dirs = format!("--netns-dirs={}", runtime.netns_dir().display());
        let name = |flag: &str| flag.split('=').next().map(str::to_owned);
        let defaults = ["--monitoring-port=0", "--host-proc-dir=/proc", &netns_dirs];
        let defaults = defaults.into_iter().filter(|default| flags.iter().all(|flag| name(flag) != name(default)));
        let wrapper = command(runtime, "run", plugin)?
            .arg(format!("--health-port={health}"))
            .args(defaults)
            .args(flags)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()?;
        Ok(Self { wrapper, log, health })
    }

    /// Waits until `/readyz` responds 200.
    ///
    /// # Errors
    /// When the agent exits instead, or after the timeout; the error has its response or log.
    pub fn wait_until_ready(&mut self, runtime: &CriRuntime) -> anyhow::Result<()> {
        let health = SocketAddr::from((Ipv4Addr::LOCALHOST, self.health));
        let probe = || weir_lab::http::get(health, "/readyz");
        try_wait_until("the agent is ready", || {
            if let Some(status) = self.wrapper.try_wait()? {
                anyhow::bail!("the agent exited ({status}): {}", self.log());
            }
            match netns::run_in(&runtime.node_netns(), probe)? {
                Ok(answer) if answer.status == 200 => Ok(Ok(())),
                Ok(answer) => Ok(Err(answer.body)),
                Err(error) => Ok(Err(error.to_string())),
            }
        })
    }

    /// Sends SIGKILL.
    ///
    /// # Errors
    /// When the agent has not started.
    pub fn kill(mut self) -> anyhow::Result<()> {
        self.signal("KILL")?;
        self.wrapper.wait()?;
        Ok(())
    }

    /// Sends SIGTERM and returns the exit status.
    ///
    /// # Errors
    /// When the agent has not started, or does not exit.
    pub fn terminate(mut self) -> anyhow::Result<ExitStatus> {
        self.signal("TERM")?;
        try_wait_until("the agent exits", || Ok(self.wrapper.try_wait()?.ok_or_else(|| self.log())))
    }

    /// Sends a signal, by its name.
    ///
    /// # Errors
    /// When the agent has not started.
    pub fn signal(&self, signal: &str) -> anyhow::Result<()> {
        // The agent is the child of `nsenter`, and may not have been started yet.
        let find = || Ok(children(self.wrapper.id()).first().copied().ok_or_else(|| self.log()));
        let pid = try_wait_until("the agent has started", find)?;
        let status = Command::new("kill").args([format!("-{signal}"), pid.to_string()]).status()?;
        ensure!(status.success(), "kill {pid}: {status}");
        Ok(())
    }

    /// Returns the end of its log.
    pub fn log(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // The agent is killed with the wrapper; both may have exited already.
        let _ = self.wrapper.kill().and_then(|()| self.wrapper.wait());
    }
}
