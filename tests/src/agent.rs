//! The node agent as a process on a node made of namespaces, with that node's own folders.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use weir_kernel::netns;

use crate::runtime::{Runtime, children};

/// For an agent to be ready or to end, and for other things that a loaded machine takes its time for.
pub const BOUND: Duration = Duration::from_mins(1);

/// Name of the node, for the agent and for the pods that are bound to it.
pub const NODE: &str = "node-1";

/// A call of `weir-agent VERB` on the node, with the node's folders, `plugin` as what is installed, and the kubeconfig in the runtime's
/// folder if there is one.
///
/// # Errors
/// While the power is off.
pub fn command(runtime: &Runtime, verb: &str, plugin: &Path) -> anyhow::Result<Command> {
    let mut command = runtime.command(&crate::bin("weir-agent"))?;
    let (conf, bin) = (runtime.conf_dir(), runtime.bin_dir());
    command
        .env("KUBECONFIG", runtime.folder().join("kubeconfig"))
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

/// An agent that runs. Killed when dropped.
#[derive(Debug)]
pub struct Agent {
    wrapper: Child,
    log: PathBuf,
    health: u16,
}

impl Agent {
    /// Starts one with further flags, or other ones in place of its usual ones. Two at once need different health ports, as they are on the
    /// same network.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(runtime: &Runtime, plugin: &Path, health: u16, flags: &[&str]) -> anyhow::Result<Self> {
        let log = runtime.folder().join(format!("agent-{health}.log"));
        let file = fs::File::options().create(true).append(true).open(&log)?;
        let netns_dirs = format!("--netns-dirs={}", runtime.netns_dir().display());
        let name = |flag: &str| flag.split('=').next().map(str::to_owned);
        let usual = ["--monitoring-port=0", "--host-proc-dir=/proc", &netns_dirs];
        let usual = usual.into_iter().filter(|usual| flags.iter().all(|flag| name(flag) != name(usual)));
        let wrapper = command(runtime, "run", plugin)?
            .arg(format!("--health-port={health}"))
            .args(usual)
            .args(flags)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()?;
        Ok(Self { wrapper, log, health })
    }

    /// Waits until `/readyz` answers 200.
    ///
    /// # Errors
    /// When it ends instead, or takes too long; its answer or its log is in the text.
    pub fn wait_until_ready(&mut self, runtime: &Runtime) -> anyhow::Result<()> {
        let health = SocketAddr::from((Ipv4Addr::LOCALHOST, self.health));
        let ask = || weir_lab::http::get(health, "/readyz");
        until("the agent is ready", || {
            if let Some(status) = self.wrapper.try_wait()? {
                anyhow::bail!("the agent ended ({status}): {}", self.log());
            }
            match netns::within(&runtime.node_netns(), ask)? {
                Ok(answer) if answer.status == 200 => Ok(Ok(())),
                Ok(answer) => Ok(Err(answer.body)),
                Err(error) => Ok(Err(error.to_string())),
            }
        })
    }

    /// SIGKILL, to the agent itself.
    ///
    /// # Errors
    /// When it has not started.
    pub fn kill(mut self) -> anyhow::Result<()> {
        self.signal("KILL")?;
        self.wrapper.wait()?;
        Ok(())
    }

    /// SIGTERM, and its exit status.
    ///
    /// # Errors
    /// When it has not started, or does not end.
    pub fn terminate(mut self) -> anyhow::Result<ExitStatus> {
        self.signal("TERM")?;
        until("the agent ends", || Ok(self.wrapper.try_wait()?.ok_or_else(|| self.log())))
    }

    fn signal(&self, signal: &str) -> anyhow::Result<()> {
        // It is the child of `nsenter`; an agent that was just started may not be there yet.
        let find = || Ok(children(self.wrapper.id()).first().copied().ok_or_else(|| self.log()));
        let pid = until("the agent has started", find)?;
        let status = Command::new("kill").args([format!("-{signal}"), pid.to_string()]).status()?;
        ensure!(status.success(), "kill {pid}: {status}");
        Ok(())
    }

    /// The end of its log.
    pub fn log(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // One that ended is what is wanted. The wrapper's death takes the agent with it.
        let _ = self.wrapper.kill().and_then(|()| self.wrapper.wait());
    }
}

/// Asks until there is a value, within [`BOUND`].
///
/// # Errors
/// What asking fails with; after the bound, the last reason why there was no value.
pub fn until<T>(what: &str, mut ask: impl FnMut() -> anyhow::Result<Result<T, String>>) -> anyhow::Result<T> {
    let started = Instant::now();
    loop {
        let why = match ask().with_context(|| format!("until {what}"))? {
            Ok(value) => return Ok(value),
            Err(why) => why,
        };
        ensure!(started.elapsed() < BOUND, "{what}: not within {BOUND:?}: {why}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
