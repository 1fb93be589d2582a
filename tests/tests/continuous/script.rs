//! What happens to the node while pods come and go.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use weir_tests::agent::{Agent, until};
use weir_tests::runtime::Release;

use crate::ledger::{Ledger, Outage, Promise, Report};
use crate::node::{Build, Node};
use crate::worker;

/// Threads that create pods.
const WORKERS: usize = 3;

/// Pods go on for so long after a transition, before the next one.
const CALM: Duration = Duration::from_millis(700);

/// How long somebody overwrites the configuration, ten times a second.
const WAR: Duration = Duration::from_secs(3);

/// What can happen. In this order the first time; the first one is the only one possible on a node without us.
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
    Uninstall,
}

const ALL: [Transition; 10] = [
    Transition::Install,
    Transition::Upgrade,
    Transition::Crash,
    Transition::Stop,
    Transition::DaemonKilled,
    Transition::RebootDaemonFirst,
    Transition::NetworkUpgraded,
    Transition::RebootAgentFirst,
    Transition::Rewriter,
    Transition::Uninstall,
];

/// Lets pods come and go through every transition, for as long as is asked for.
pub(crate) fn run(release: Release) -> Report {
    let seconds = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let time = Duration::from_secs(seconds("WEIR_CONTINUOUS_SECONDS").unwrap_or(0));
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let seed = seconds("WEIR_CONTINUOUS_SEED").unwrap_or_else(now);
    eprintln!("{release:?}: WEIR_CONTINUOUS_SEED={seed}");

    let node = Node::start(release).unwrap();
    let recipes = worker::recipes().unwrap();
    let ledger = Ledger::new();
    let stop = AtomicBool::new(false);
    let workers_failed = std::thread::scope(|scope| {
        let (node, ledger, recipes, stop) = (&node, &ledger, &recipes, &stop);
        let workers: Vec<_> =
            (0..WORKERS).map(|number| scope.spawn(move || worker::work(node, ledger, recipes, stop, number))).collect();
        let mut play = Play { node, ledger, dice: Dice(seed), agent: None, build: Build::Old, placement: 0 };
        let played = play.all(Instant::now() + time);
        if let Err(error) = played {
            let agent = play.agent.as_ref().map(Agent::log).unwrap_or_default();
            ledger.finding(format!("the script stopped: {error:#}\n{agent}\n{}", node.runtime.log()));
        }
        stop.store(true, Ordering::Relaxed);
        workers.into_iter().filter_map(|worker| worker.join().unwrap().err()).collect::<Vec<_>>()
    });
    for error in workers_failed {
        ledger.finding(format!("a worker stopped: {error:#}"));
    }
    node.remove_unwanted().unwrap().into_iter().for_each(|failure| ledger.finding(failure));
    assert_eq!(node.runtime.cri.sandboxes().unwrap(), Vec::<String>::new(), "nothing is left");
    ledger.report()
}

/// The state of the play.
struct Play<'a> {
    node: &'a Node,
    ledger: &'a Ledger,
    dice: Dice,
    agent: Option<Agent>,
    build: Build,
    placement: usize,
}

impl Play<'_> {
    fn all(&mut self, end: Instant) -> anyhow::Result<()> {
        std::thread::sleep(CALM);
        for transition in ALL {
            self.one(transition)?;
        }
        let mut installed = false;
        while Instant::now() < end || installed {
            let transition = match (installed, Instant::now() < end) {
                (false, _) => Transition::Install,
                (true, true) => ALL[1 + self.dice.below(ALL.len() - 1)],
                (true, false) => Transition::Uninstall,
            };
            self.one(transition)?;
            installed = transition != Transition::Uninstall;
        }
        Ok(())
    }

    fn one(&mut self, transition: Transition) -> anyhow::Result<()> {
        let started = Instant::now();
        match transition {
            Transition::Install => self.install(),
            Transition::Upgrade => self.upgrade(),
            Transition::Crash => self.crash(),
            Transition::Stop => self.stop(),
            Transition::DaemonKilled => self.daemon_killed(),
            Transition::NetworkUpgraded => self.network_upgraded(),
            Transition::RebootDaemonFirst => self.reboot(true),
            Transition::RebootAgentFirst => self.reboot(false),
            Transition::Rewriter => self.rewriter(),
            Transition::Uninstall => self.uninstall(),
        }
        .map_err(|error| error.context(format!("{transition:?}")))?;
        eprintln!("{transition:?} took {:.1?}", started.elapsed());
        self.ledger.transition(&format!("{transition:?}"));
        std::thread::sleep(CALM);
        Ok(())
    }

    /// Another placement each time the agent is installed.
    fn placement(&self) -> &'static str {
        ["chained", "owned", "drop-in"][self.placement % 3]
    }

    fn start_agent(&mut self) -> anyhow::Result<()> {
        let mut agent = self.node.start_agent(self.build, self.placement())?;
        let ready = agent.wait_until_ready(&self.node.runtime);
        self.agent = Some(agent);
        ready
    }

    /// From here on pods can rely on us again: the runtime itself says that it would call us.
    fn kept(&self) -> anyhow::Result<()> {
        until("the runtime knows the plugin", || Ok(self.node.does_not_call_us()?.map_or(Ok(()), Err)))?;
        self.ledger.promise(Promise::Kept);
        Ok(())
    }

    fn install(&mut self) -> anyhow::Result<()> {
        let versions = self.node.cni_versions();
        self.node.write_primary(versions[self.dice.below(versions.len())])?;
        self.start_agent()?;
        self.kept()
    }

    /// A new agent with a new plugin beside the old one, then without it.
    fn upgrade(&mut self) -> anyhow::Result<()> {
        let old = self.agent.take();
        self.build = self.build.other();
        self.start_agent()?;
        if let Some(old) = old {
            old.terminate()?;
        }
        Ok(())
    }

    /// Agents that bring another plugin each, killed at some moment of their work; the last one lives.
    fn crash(&mut self) -> anyhow::Result<()> {
        for _ in 0..4 {
            if let Some(agent) = self.agent.take() {
                agent.kill()?;
            }
            self.build = self.build.other();
            self.agent = Some(self.node.start_agent(self.build, self.placement())?);
            std::thread::sleep(Duration::from_millis(self.dice.below(150) as u64));
        }
        if let Some(agent) = self.agent.take() {
            agent.kill()?;
        }
        std::thread::sleep(CALM);
        self.start_agent()
    }

    /// An agent that is told to end leaves everything as it is.
    fn stop(&mut self) -> anyhow::Result<()> {
        if let Some(agent) = self.agent.take() {
            let status = agent.terminate()?;
            anyhow::ensure!(status.success(), "the agent ended with {status}");
        }
        std::thread::sleep(CALM);
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

    /// A power cut. Then the daemon, pods and the agent come back, or the agent before the daemon.
    fn reboot(&mut self, daemon_first: bool) -> anyhow::Result<()> {
        self.ledger.outage(Outage::Reboot, || {
            self.node.runtime.hold_daemon(true)?;
            self.node.runtime.power_off()?;
            self.agent = None;
            self.node.runtime.power_on()?;
            self.node.reach_the_api_server()?;
            if !daemon_first {
                self.start_agent()?;
            }
            self.node.runtime.hold_daemon(false)?;
            self.node.runtime.wait_for_network()
        })?;
        self.remove_unwanted()?;
        if daemon_first {
            std::thread::sleep(CALM);
            self.start_agent()?;
        }
        Ok(())
    }

    /// The primary network's installer writes its file anew, in another version: an upgrade of the network.
    fn network_upgraded(&mut self) -> anyhow::Result<()> {
        let versions = self.node.cni_versions();
        let version = versions[self.dice.below(versions.len())];
        self.ledger.promise(Promise::Contended);
        self.node.write_primary(version)?;
        self.settled()
    }

    /// Somebody who wants the file as it was, ten times a second.
    fn rewriter(&mut self) -> anyhow::Result<()> {
        self.ledger.promise(Promise::Contended);
        let started = Instant::now();
        while started.elapsed() < WAR {
            self.node.write_primary("1.0.0")?;
            std::thread::sleep(Duration::from_millis(100));
        }
        self.settled()
    }

    /// After somebody else has written, and no longer does: the agent has followed, and the runtime too.
    fn settled(&mut self) -> anyhow::Result<()> {
        if let Some(agent) = &mut self.agent {
            agent.wait_until_ready(&self.node.runtime)?;
        }
        self.kept()
    }

    fn uninstall(&mut self) -> anyhow::Result<()> {
        if let Some(agent) = self.agent.take() {
            agent.terminate()?;
        }
        self.ledger.promise(Promise::None);
        self.node.forget_dead_attachments()?;
        let said = self.node.uninstall(self.build)?;
        let remains = self.node.remains()?;
        anyhow::ensure!(remains.is_empty(), "the uninstaller left {remains:?}: {said}");
        self.placement += 1;
        Ok(())
    }
}

/// Numbers that look random and are the same for the same seed (SplitMix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % u64::try_from(end).unwrap_or(1)).unwrap_or(0)
    }
}
