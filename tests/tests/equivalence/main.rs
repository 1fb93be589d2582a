//! One meaning: what the tracer says about a plan is what the kernel does with it, by nf_tables and by iptables.
//!
//! ```text
//! seed ──draw.rs──▶ configuration, shots ──┬─ plan ─▶ trace ──────────────────────────▶ fate ─┐
//!                                          └─ install ─┬▶ fire (world.rs, fire.rs) ─▶ sighting ┼─▶ agree? (judge.rs)
//!                                                      └▶ read back ─▶ trace ────────────▶ fate ┘
//! ```
//!
//! Every shot is a real first packet: of a TCP connection or a UDP datagram, of either family, from any owner in the pod, from outside
//! by one of three interfaces, or a stray segment. It is seen by whoever gets it, by `SO_ORIGINAL_DST`, and by the pod's connection
//! tracking, which also tells zone and mark.
//!
//! `WEIR_EQUIVALENCE_PAIRS` is the number of pairs of a configuration and a packet for each backend (600), `WEIR_EQUIVALENCE_SEED` the
//! seed, which is printed (a fixed one without it, so that a run of CI can be repeated).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may panic like tests")]

mod conntrack;
mod draw;
mod fire;
mod judge;
mod world;

use iptables_rules::config::InterceptionMode;
use iptables_rules::trace::Fate;
use iptables_rules::{CaptureConfig, RuleSet, plan, restore};
use weir_kernel::{live, nft};
use weir_tests::privileged;

use draw::Draw;
use fire::fire;
use world::World;

/// Shots at one configuration.
const SHOTS: usize = 40;
/// Pairs for each backend where nothing else is said: a few seconds.
const PAIRS: usize = 600;
/// How many disagreements are told.
const TOLD: usize = 5;

#[derive(Debug, Clone, Copy)]
enum Backend {
    Nft,
    /// Over netlink as well, in the tables and expressions of iptables-nft.
    Visible,
    Iptables,
}

impl Backend {
    const ALL: [Self; 3] = [Self::Nft, Self::Visible, Self::Iptables];

    fn install(self, world: &World, rules: &RuleSet) {
        let rules = rules.clone();
        let result = world.pod.run(move || match self {
            Self::Nft => nft::apply(&rules).map(drop).map_err(|error| error.to_string()),
            Self::Visible => nft::visible::apply(&rules, false).map(drop).map_err(|error| error.to_string()),
            Self::Iptables => {
                weir_kernel::iptables::apply(&rules, None, false).map(drop).map_err(|error| error.to_string())
            }
        });
        result.unwrap().unwrap_or_else(|error| panic!("{self:?}: {error}"));
    }

    fn remove(self, world: &World) {
        let result = world.pod.run(move || match self {
            Self::Nft => nft::remove().map(drop).map_err(|error| error.to_string()),
            Self::Visible => nft::visible::remove().map(drop).map_err(|error| error.to_string()),
            Self::Iptables => weir_kernel::iptables::remove(None).map(drop).map_err(|error| error.to_string()),
        });
        result.unwrap().unwrap_or_else(|error| panic!("{self:?}: {error}"));
    }
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable)
        .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}

/// What happened how often, so that a run shows that it met everything.
#[derive(Debug, Default)]
struct Tally {
    redirected: usize,
    tproxied: usize,
    dropped: usize,
    passed: usize,
    zoned: usize,
    tproxy_configs: usize,
    not_sent: usize,
}

#[test]
fn the_tracer_and_the_kernel_agree_for_every_backend() {
    if !privileged() {
        return;
    }
    let pairs = usize::try_from(number("WEIR_EQUIVALENCE_PAIRS", PAIRS as u64)).unwrap();
    let seed = number("WEIR_EQUIVALENCE_SEED", 20_261_127);
    eprintln!("WEIR_EQUIVALENCE_SEED={seed} WEIR_EQUIVALENCE_PAIRS={pairs}");
    let world = World::new();
    let mut tally = Tally::default();
    let mut told = Vec::new();
    let mut disagreements = 0;
    for round in 0..pairs.div_ceil(SHOTS) {
        let mut draw = Draw::new(seed.wrapping_add(round as u64));
        let config = draw.config();
        let rules = plan(&config).unwrap_or_else(|refused| panic!("round {round}: {refused:?}"));
        tally.tproxy_configs += usize::from(config.mode == InterceptionMode::Tproxy);
        let shots: Vec<_> = (0..SHOTS.min(pairs - round * SHOTS)).map(|_| draw.shot(&config)).collect();
        for backend in Backend::ALL {
            backend.install(&world, &rules);
            // The rules read back have to foretell the same as the plan.
            let live = world.pod.run(live::read).unwrap().unwrap();
            for shot in fire(&world, &rules, &shots) {
                count(&mut tally, &shot);
                let Some(objection) = judge::objection(&shot).or_else(|| judge::reading(&shot, &live)) else {
                    continue;
                };
                disagreements += 1;
                if told.len() < TOLD {
                    told.push(format!(
                        "round {round}, {backend:?}: {objection}\n  {:?}\n  {:?}\n  arrival {:?}, tracked {:?}\n  {config:?}",
                        shot.shot, shot.packet, shot.arrival, shot.entry
                    ));
                }
            }
            backend.remove(&world);
        }
    }
    eprintln!("{tally:?}");
    assert_eq!(disagreements, 0, "disagreements, the first ones:\n{}", told.join("\n\n"));
    assert!(tally.not_sent * 20 < pairs, "too many shots did not go off: {tally:?}");
    if pairs >= PAIRS {
        let met = [tally.redirected, tally.tproxied, tally.dropped, tally.passed, tally.zoned, tally.tproxy_configs];
        assert!(met.iter().all(|&times| times > 0), "a kind of outcome never came up: {tally:?}");
    }
}

fn count(tally: &mut Tally, shot: &fire::Fired) {
    let Some(trace) = &shot.trace else {
        tally.not_sent += 1;
        return;
    };
    let counter = match trace.fate {
        Fate::Redirected { .. } => &mut tally.redirected,
        Fate::Tproxied { .. } => &mut tally.tproxied,
        Fate::Dropped => &mut tally.dropped,
        Fate::Passes { .. } => &mut tally.passed,
    };
    *counter += 1;
    tally.zoned += usize::from(trace.zone != 0);
}

/// The judge has to be able to say no.
#[test]
fn a_rule_that_is_missing_is_found_out() {
    if !privileged() {
        return;
    }
    let world = World::new();
    let config = CaptureConfig::default();
    let rules = plan(&config).unwrap();
    let mut fewer = rules.clone();
    fewer.rules.retain(|rule| rule.reason != iptables_rules::ruleset::Reason::Outbound);
    let mut draw = Draw::new(1);
    let shots: Vec<_> = (0..100).map(|_| draw.shot(&config)).collect();
    Backend::Nft.install(&world, &fewer);
    let fired = fire(&world, &rules, &shots);
    assert!(fired.iter().any(|shot| judge::objection(shot).is_some()));
}
