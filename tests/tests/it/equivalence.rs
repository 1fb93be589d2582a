//! The tracer predicts what the kernel does with packets: random configurations and packets, for every backend.
//!
//! ```text
//! seed ─ generator.rs ─▶ configuration, probes ─┬─ plan ─▶ trace ───────────────────────────▶ disposition ─┐
//!                                               └─ install ─┬─ send (world.rs, probes.rs) ──▶ arrivals ────┼─▶ equal? (compare.rs)
//!                                                           └─ read back ─▶ trace ──────────▶ disposition ─┘
//! ```
//!
//! Every probe is a real first packet: of a TCP connection or a UDP datagram, IPv4 or IPv6, from any owner in the pod, from outside by one
//! of three interfaces, or a stray segment. It is observed by its receiver, `SO_ORIGINAL_DST`, and the pod's connection tracking, which
//! also has zone and mark.
//!
//! `WEIR_EQUIVALENCE_PAIRS` (600) is the number of pairs of configuration and packet for each backend. `WEIR_EQUIVALENCE_SEED` is the seed,
//! which is printed. Its default is fixed, so that CI can be repeated.

mod compare;
mod conntrack;
mod generator;
mod probes;
mod world;

use iptables_rules::compare::Equivalence;
use iptables_rules::config::InterceptionMode;
use iptables_rules::trace::Disposition;
use iptables_rules::{CaptureConfig, RuleSet, plan};
use weir_kernel::{netns_state, nft};
use weir_tests::privileged;

use self::generator::Generator;
use self::probes::send_all;
use self::world::World;

const PROBES_PER_CONFIG: usize = 40;
/// Default number of pairs for each backend, which take a few seconds.
const DEFAULT_PAIRS: usize = 600;
/// Mismatches that are printed.
const MAX_PRINTED: usize = 5;

#[derive(Debug, Clone, Copy)]
enum Backend {
    Nft,
    /// nf_tables rules in the tables and expressions of iptables-nft.
    IptablesCompat,
    Iptables,
}

impl Backend {
    const ALL: [Self; 3] = [Self::Nft, Self::IptablesCompat, Self::Iptables];

    fn install(self, world: &World, rules: &RuleSet) {
        let rules = rules.clone();
        let result = world.pod.run(move || match self {
            Self::Nft => nft::apply(&rules).map(drop).map_err(|error| error.to_string()),
            Self::IptablesCompat => {
                nft::iptables_compat::apply(&rules, false).map(drop).map_err(|error| error.to_string())
            }
            Self::Iptables => {
                weir_kernel::iptables::apply(&rules, None, false).map(drop).map_err(|error| error.to_string())
            }
        });
        result.unwrap().unwrap_or_else(|error| panic!("{self:?}: {error}"));
    }

    fn remove(self, world: &World) {
        let result = world.pod.run(move || match self {
            Self::Nft => nft::remove().map(drop).map_err(|error| error.to_string()),
            Self::IptablesCompat => nft::iptables_compat::remove().map(drop).map_err(|error| error.to_string()),
            Self::Iptables => weir_kernel::iptables::remove(None).map(drop).map_err(|error| error.to_string()),
        });
        result.unwrap().unwrap_or_else(|error| panic!("{self:?}: {error}"));
    }
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable)
        .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{variable} must be a number: {text}")))
}

/// Counts of outcomes, which show that a run covers all of them.
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
fn tracer_predicts_the_kernel_for_every_backend() {
    if !privileged() {
        return;
    }
    let pairs = usize::try_from(number("WEIR_EQUIVALENCE_PAIRS", DEFAULT_PAIRS as u64)).unwrap();
    let seed = number("WEIR_EQUIVALENCE_SEED", 20_261_127);
    eprintln!("WEIR_EQUIVALENCE_SEED={seed} WEIR_EQUIVALENCE_PAIRS={pairs}");
    let world = World::new();
    let mut tally = Tally::default();
    let mut printed = Vec::new();
    let mut mismatches = 0;
    for round in 0..pairs.div_ceil(PROBES_PER_CONFIG) {
        let mut generator = Generator::new(seed.wrapping_add(round as u64));
        let config = generator.config();
        let rules = plan(&config).unwrap_or_else(|refused| panic!("round {round}: {refused:?}"));
        tally.tproxy_configs += usize::from(config.mode == InterceptionMode::Tproxy);
        let probes: Vec<_> =
            (0..PROBES_PER_CONFIG.min(pairs - round * PROBES_PER_CONFIG)).map(|_| generator.probe(&config)).collect();
        for backend in Backend::ALL {
            backend.install(&world, &rules);
            // The rules that are read back must predict the same as the plan.
            let live = world.pod.run(netns_state::read).unwrap().unwrap();
            for probe in send_all(&world, &rules, &probes) {
                count(&mut tally, &probe);
                let Some(mismatch) = compare::mismatch(&probe).or_else(|| compare::read_back_mismatch(&probe, &live))
                else {
                    continue;
                };
                mismatches += 1;
                if printed.len() < MAX_PRINTED {
                    printed.push(format!(
                        "round {round}, {backend:?}: {mismatch}\n  {:?}\n  {:?}\n  arrival {:?}, tracked {:?}\n  {config:?}",
                        probe.probe, probe.packet, probe.arrival, probe.entry
                    ));
                }
            }
            backend.remove(&world);
        }
    }
    eprintln!("{tally:?}");
    assert_eq!(mismatches, 0, "mismatches, the first ones:\n{}", printed.join("\n\n"));
    assert!(tally.not_sent * 20 < pairs, "too many probes could not be sent: {tally:?}");
    if pairs >= DEFAULT_PAIRS {
        let counts = [tally.redirected, tally.tproxied, tally.dropped, tally.passed, tally.zoned, tally.tproxy_configs];
        assert!(counts.iter().all(|&times| times > 0), "an outcome never occurred: {tally:?}");
    }
}

fn count(tally: &mut Tally, probe: &probes::ProbeResult) {
    let Some(trace) = &probe.trace else {
        tally.not_sent += 1;
        return;
    };
    let counter = match trace.disposition {
        Disposition::Redirected { .. } => &mut tally.redirected,
        Disposition::Tproxied { .. } => &mut tally.tproxied,
        Disposition::Dropped => &mut tally.dropped,
        Disposition::Passes { .. } => &mut tally.passed,
    };
    *counter += 1;
    tally.zoned += usize::from(trace.zone != 0);
}

/// For random pairs of configurations, the kernel treats a packet in another way only if the comparison of their rules says so.
#[test]
fn kernel_differs_only_where_the_comparison_does() {
    if !privileged() {
        return;
    }
    let rounds = number("WEIR_EQUIVALENCE_PAIRS", DEFAULT_PAIRS as u64).div_ceil(4 * PROBES_PER_CONFIG as u64);
    let seed = number("WEIR_EQUIVALENCE_SEED", 20_261_127);
    let world = World::new();
    let (mut compared, mut different) = (0, 0);
    for round in 0..rounds {
        let mut generator = Generator::new(seed.wrapping_add(round));
        let configs = [generator.config(), generator.config()];
        let [before, after] = configs.each_ref().map(|config| plan(config).unwrap());
        let differences = match iptables_rules::compare::compare(&before, &after) {
            Equivalence::Equal => Vec::new(),
            Equivalence::Different(found) => found.changes,
            Equivalence::Unknown(places) => panic!("round {round}: {places:?}"),
        };
        let probes: Vec<_> = (0..PROBES_PER_CONFIG).map(|at| generator.probe(&configs[at % 2])).collect();
        let [old, new] = [&before, &after].map(|rules| {
            Backend::Nft.install(&world, rules);
            let results = send_all(&world, rules, &probes);
            Backend::Nft.remove(&world);
            results
        });
        for (old, new) in old.iter().zip(&new) {
            let (Some(packet), true) = (&old.packet, old.packet == new.packet) else { continue };
            let class = differences.iter().flat_map(|change| &change.classes).find(|class| class.contains(packet));
            let is_truncated = differences.iter().any(|change| change.is_truncated);
            let differ = old.target() != new.target() || old.replies_are_captured != new.replies_are_captured;
            assert!(!differ || class.is_some() || is_truncated, "round {round}: {old:?}\n{new:?}\n{configs:?}");
            compared += 1;
            different += usize::from(differ);
        }
    }
    eprintln!("{compared} packets, {different} of them treated differently");
    assert!(different * 50 > compared, "too few packets differ: {different} of {compared}");
}

/// The comparison of predictions and observations can fail.
#[test]
fn missing_rule_is_detected() {
    if !privileged() {
        return;
    }
    let world = World::new();
    let config = CaptureConfig::default();
    let rules = plan(&config).unwrap();
    let mut fewer = rules.clone();
    fewer.rules.retain(|rule| rule.reason != iptables_rules::ruleset::RuleReason::Outbound);
    let mut generator = Generator::new(1);
    let probes: Vec<_> = (0..100).map(|_| generator.probe(&config)).collect();
    Backend::Nft.install(&world, &fewer);
    let results = send_all(&world, &rules, &probes);
    assert!(results.iter().any(|probe| compare::mismatch(probe).is_some()));
}
