//! The transitions of the node while pods come and go.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use weir_tests::agent::Agent;
use weir_tests::cri_runtime::RuntimeRelease;
use weir_tests::try_wait_until;

use super::ledger::{Guarantee, Ledger, Outage, Report};
use super::node::{Build, Mode, Node};
use super::worker;

/// Threads that create pods.
const WORKERS: usize = 3;

/// Time between two transitions, in which pods come and go.
const TRANSITION_INTERVAL: Duration = Duration::from_millis(700);

/// How long the configuration is overwritten, ten times a second.
const CONTENTION_TIME: Duration = Duration::from_secs(3);

/// A transition of the node. `Install` is the only one possible on a node without the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transition {
    Install,
    Upgrade,
    Crash,
    Stop,
    DaemonKilled,
    NetworkUpgraded,
    RebootDaemonFirst,
    RebootAgentFirst,
    Rewriter,
    ToNri,
    NriUpgrade,
    NriCrash,
    NriDaemonKilled,
    ToCni,
    Uninstall,
}

/// All transitions, in the order of the first round.
const ALL: [Transition; 15] = [
    Transition::Install,
    Transition::Upgrade,
    Transition::Crash,
    Transition::Stop,
    Transition::DaemonKilled,
    Transition::RebootDaemonFirst,
    Transition::NetworkUpgraded,
    Transition::RebootAgentFirst,
    Transition::Rewriter,
    Transition::ToNri,
    Transition::NriUpgrade,
    Transition::NriCrash,
    Transition::NriDaemonKilled,
    Transition::ToCni,
    Transition::Uninstall,
];

impl Transition {
    /// Returns the mode in which it is possible on a node with the agent.
    fn mode(self) -> Mode {
        match self {
            Self::NriUpgrade | Self::NriCrash | Self::NriDaemonKilled | Self::ToCni => Mode::Nri,
            _ => Mode::Cni,
        }
    }
}

/// Runs all transitions while pods come and go, and returns the report.
pub(crate) fn run(release: RuntimeRelease) -> Report {
    let seconds = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let time = Duration::from_secs(seconds("WEIR_CONTINUOUS_SECONDS").unwrap_or(0));
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let seed = seconds("WEIR_CONTINUOUS_SEED").unwrap_or_else(now);
    eprintln!("{release:?}: WEIR_CONTINUOUS_SEED={seed}");

    let node = Node::start(release).unwrap();
    let templates = worker::pod_templates().unwrap();
    let ledger = Ledger::new();
    let stop = AtomicBool::new(false);
    let worker_errors = std::thread::scope(|scope| {
        let (node, ledger, templates, stop) = (&node, &ledger, &templates, &stop);
        let workers: Vec<_> = (0..WORKERS)
            .map(|number| scope.spawn(move || worker::run(node, ledger, templates, stop, number)))
            .collect();
        let mut script =
            Script { node, ledger, rng: Rng(seed), agent: None, build: Build::Old, mode: Mode::Cni, placement: 0 };
        let result = script.run_all(Instant::now() + time);
        if let Err(error) = result {
            let agent = script.agent.as_ref().map(Agent::log).unwrap_or_default();
            ledger.finding(format!("the script failed: {error:#}\n{agent}\n{}", node.runtime.log()));
        }
        stop.store(true, Ordering::Relaxed);
        workers.into_iter().filter_map(|worker| worker.join().unwrap().err()).collect::<Vec<_>>()
    });
    for error in worker_errors {
        ledger.finding(format!("a worker failed: {error:#}"));
    }
    node.remove_unwanted().unwrap().into_iter().for_each(|failure| ledger.finding(failure));
    assert_eq!(node.runtime.cri.sandboxes().unwrap(), Vec::<String>::new(), "no sandbox is left");
    ledger.report()
}

/// The state of a run.
struct Script<'a> {
    node: &'a Node,
    ledger: &'a Ledger,
    rng: Rng,
    agent: Option<Agent>,
    build: Build,
    mode: Mode,
    placement: usize,
}

impl Script<'_> {
    fn run_all(&mut self, end: Instant) -> anyhow::Result<()> {
        std::thread::sleep(TRANSITION_INTERVAL);
        let all = ALL.into_iter().filter(|transition| {
            self.node.serves_nri() || (transition.mode() == Mode::Cni && *transition != Transition::ToNri)
        });
        let all: Vec<Transition> = all.collect();
        for transition in &all {
            self.run_one(*transition)?;
        }
        let mut installed = false;
        while Instant::now() < end || installed {
            let transition = match (installed, self.mode, Instant::now() < end) {
                (false, ..) => Transition::Install,
                (true, mode, true) => {
                    let possible: Vec<_> = all[1..].iter().filter(|transition| transition.mode() == mode).collect();
                    *possible[self.rng.below(possible.len())]
                }
                (true, Mode::Nri, false) => Transition::ToCni,
                (true, Mode::Cni, false) => Transition::Uninstall,
            };
            self.run_one(transition)?;
            installed = transition != Transition::Uninstall;
        }
        Ok(())
    }

    fn run_one(&mut self, transition: Transition) -> anyhow::Result<()> {
        let started = Instant::now();
        match transition {
            Transition::Install => self.install(),
            Transition::Upgrade | Transition::NriUpgrade => self.upgrade(),
            Transition::Crash => self.crash(),
            Transition::Stop => self.stop(),
            Transition::DaemonKilled => self.daemon_killed(),
            Transition::NetworkUpgraded => self.network_upgraded(),
            Transition::RebootDaemonFirst => self.reboot(true),
            Transition::RebootAgentFirst => self.reboot(false),
            Transition::Rewriter => self.rewriter(),
            Transition::ToNri => self.switch_to_nri(),
            Transition::NriCrash => self.nri_crash(),
            Transition::NriDaemonKilled => self.nri_daemon_killed(),
            Transition::ToCni => self.switch_to_cni(),
            Transition::Uninstall => self.uninstall(),
        }
        .map_err(|error| error.context(format!("{transition:?}")))?;
        eprintln!("{transition:?} took {:.1?}", started.elapsed());
        self.ledger.transition(&format!("{transition:?}"));
        std::thread::sleep(TRANSITION_INTERVAL);
        Ok(())
    }

    /// Returns another placement for each installation.
    fn placement(&self) -> &'static str {
        ["chained", "owned", "drop-in"][self.placement % 3]
    }

    fn start_agent(&mut self) -> anyhow::Result<()> {
        let mut agent = self.node.start_agent(self.build, self.mode, self.placement())?;
        let ready = agent.wait_until_ready(&self.node.runtime);
        self.agent = Some(agent);
        ready
    }

    /// Waits until the runtime has loaded the plugin; from then on the guarantee is full.
    fn restore_guarantee(&self) -> anyhow::Result<()> {
        try_wait_until("the runtime has loaded the plugin", || {
            Ok(self.node.why_plugin_not_loaded()?.map_or(Ok(()), Err))
        })?;
        self.ledger.set_guarantee(Guarantee::Full);
        Ok(())
    }

    fn install(&mut self) -> anyhow::Result<()> {
        let versions = self.node.cni_versions();
        self.node.write_primary(versions[self.rng.below(versions.len())])?;
        self.start_agent()?;
        self.restore_guarantee()
    }

    /// Starts a new agent with a new plugin beside the old one, then stops the old one.
    fn upgrade(&mut self) -> anyhow::Result<()> {
        let old = self.agent.take();
        self.build = self.build.other();
        self.start_agent()?;
        if let Some(old) = old {
            old.terminate()?;
        }
        Ok(())
    }

    /// Starts agents with different plugins and kills them at random moments; the last one stays.
    fn crash(&mut self) -> anyhow::Result<()> {
        for _ in 0..4 {
            if let Some(agent) = self.agent.take() {
                agent.kill()?;
            }
            self.build = self.build.other();
            self.agent = Some(self.node.start_agent(self.build, self.mode, self.placement())?);
            std::thread::sleep(Duration::from_millis(self.rng.below(150) as u64));
        }
        if let Some(agent) = self.agent.take() {
            agent.kill()?;
        }
        std::thread::sleep(TRANSITION_INTERVAL);
        self.start_agent()
    }

    /// Stops the agent, which leaves everything in place, and starts it again.
    fn stop(&mut self) -> anyhow::Result<()> {
        if let Some(agent) = self.agent.take() {
            let status = agent.terminate()?;
            anyhow::ensure!(status.success(), "the agent exited with {status}");
        }
        std::thread::sleep(TRANSITION_INTERVAL);
        self.start_agent()
    }

    fn daemon_killed(&mut self) -> anyhow::Result<()> {
        self.ledger.outage(Outage::Daemon, || {
            self.node.runtime.kill_daemon()?;
            self.node.runtime.wait_for_network()
        })?;
        self.remove_unwanted()
    }

    fn remove_unwanted(&self) -> anyhow::Result<()> {
        self.node.remove_unwanted()?.into_iter().for_each(|failure| self.ledger.finding(failure));
        Ok(())
    }

    /// Cuts the power. Then the daemon and pods start before the agent, or the agent before the daemon.
    fn reboot(&mut self, daemon_first: bool) -> anyhow::Result<()> {
        self.ledger.outage(Outage::Reboot, || {
            self.node.runtime.pause_daemon(true)?;
            self.node.runtime.power_off()?;
            self.agent = None;
            self.node.runtime.power_on()?;
            self.node.forward_api_server()?;
            if !daemon_first {
                self.start_agent()?;
            }
            self.node.runtime.pause_daemon(false)?;
            self.node.runtime.wait_for_network()
        })?;
        self.remove_unwanted()?;
        if daemon_first {
            std::thread::sleep(TRANSITION_INTERVAL);
            self.start_agent()?;
        }
        Ok(())
    }

    /// Upgrades the primary network: its installer rewrites its file, in another version.
    fn network_upgraded(&mut self) -> anyhow::Result<()> {
        let versions = self.node.cni_versions();
        let version = versions[self.rng.below(versions.len())];
        self.ledger.set_guarantee(Guarantee::Contended);
        self.node.write_primary(version)?;
        self.wait_for_recovery()
    }

    /// Overwrites the file of the primary network again and again.
    fn rewriter(&mut self) -> anyhow::Result<()> {
        self.ledger.set_guarantee(Guarantee::Contended);
        let started = Instant::now();
        while started.elapsed() < CONTENTION_TIME {
            self.node.write_primary("1.0.0")?;
            std::thread::sleep(Duration::from_millis(100));
        }
        self.wait_for_recovery()
    }

    /// Waits until the agent has restored the configuration, and the runtime has loaded it.
    fn wait_for_recovery(&mut self) -> anyhow::Result<()> {
        if let Some(agent) = &mut self.agent {
            agent.wait_until_ready(&self.node.runtime)?;
        }
        self.restore_guarantee()
    }

    /// Replaces the agent by one that is an NRI plugin. The entry of the former one works until the new one removes it.
    fn switch_to_nri(&mut self) -> anyhow::Result<()> {
        self.mode = Mode::Nri;
        self.stop()
    }

    /// The runtime goes on without an NRI plugin that is gone: the next one gives rules to pods that were started meanwhile.
    fn nri_crash(&mut self) -> anyhow::Result<()> {
        self.ledger.set_guarantee(Guarantee::Contended);
        if let Some(agent) = self.agent.take() {
            agent.kill()?;
        }
        std::thread::sleep(TRANSITION_INTERVAL);
        self.start_agent()?;
        self.ledger.set_guarantee(Guarantee::Full);
        Ok(())
    }

    /// A runtime that is started again has no NRI plugin until the agent has registered.
    fn nri_daemon_killed(&mut self) -> anyhow::Result<()> {
        self.ledger.set_guarantee(Guarantee::Contended);
        self.daemon_killed()?;
        if let Some(agent) = &mut self.agent {
            agent.wait_until_ready(&self.node.runtime)?;
        }
        self.ledger.set_guarantee(Guarantee::Full);
        Ok(())
    }

    fn switch_to_cni(&mut self) -> anyhow::Result<()> {
        self.ledger.set_guarantee(Guarantee::Contended);
        self.mode = Mode::Cni;
        self.stop()?;
        self.restore_guarantee()
    }

    fn uninstall(&mut self) -> anyhow::Result<()> {
        if let Some(agent) = self.agent.take() {
            agent.terminate()?;
        }
        self.ledger.set_guarantee(Guarantee::None);
        self.node.remove_stale_attachments()?;
        let output = self.node.uninstall(self.build)?;
        let leftovers = self.node.leftovers()?;
        anyhow::ensure!(leftovers.is_empty(), "uninstall left {leftovers:?}: {output}");
        self.placement += 1;
        Ok(())
    }
}

/// A random number generator (SplitMix64).
struct Rng(u64);

impl Rng {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % u64::try_from(end).unwrap_or(1)).unwrap_or(0)
    }
}
