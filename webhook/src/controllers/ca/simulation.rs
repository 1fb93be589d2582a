//! Two replicas, an API server and an external writer, in any order of steps: a pod must never meet a certificate that its caBundle does not
//! verify.
//!
//! Time passes in seconds. Reading and writing are separate steps, so that every write can come late; the leader is random, because a Lease
//! is not a lock. The API server may use any bundle that existed within the settling time.

use std::time::{Duration, SystemTime};

use proptest::prelude::*;

use super::authority::{Ca, CaCert};
use super::leaf::{self, Leaf, LeafAction};
use super::plan::{self, CaChange, CaLifetimes, Plan, PlanInput, SecretState};
use super::state::{CaState, Phase};
use crate::certs::Validity;

const SECOND: Duration = Duration::from_secs(1);
/// A replica reads at least this often, in seconds, unless it is cut off.
const READ_INTERVAL: u64 = 3;
const LIFETIMES: CaLifetimes = CaLifetimes {
    ca: Duration::from_mins(10),
    leaf: Duration::from_secs(90),
    settle: Duration::from_secs(10),
    retire: Duration::from_secs(90),
};

/// A bundle, and whether it was written by the external writer or the installation.
#[derive(Debug, Clone, PartialEq)]
struct Bundle {
    certs: Vec<CaCert>,
    foreign: bool,
}

#[derive(Debug, Clone)]
struct Read {
    secret: Option<(u64, SecretState)>,
    bundle: (u64, Bundle),
    /// Whether the clock was right then, which the Lease shows.
    clock: bool,
}

#[derive(Debug, Default)]
struct Replica {
    offset: i64,
    last_good: Option<CaState>,
    phase_since: u64,
    absent_since: Option<u64>,
    leaf: Option<Leaf>,
    /// Since when it observes the bundle to trust the state's certificates.
    complete: Option<(Vec<CaCert>, u64)>,
    read: Option<Read>,
    /// The trust bundle that it read just before writing it.
    refreshed: Option<Vec<CaCert>>,
    cut_off: bool,
    read_at: u64,
    /// Whether it was ever ready.
    ready: bool,
}

struct World {
    start: SystemTime,
    now: u64,
    version: u64,
    secret: Option<(u64, SecretState)>,
    bundles: Vec<(u64, u64, Bundle)>,
    replicas: [Replica; 2],
    /// The CA that was created because there was none, or that was restored unknown to every bundle.
    created: Option<CaCert>,
    /// Until when the CA may be invalid: it was created at the moment of a clock jump.
    unreliable_until: u64,
}

#[derive(Debug, Clone)]
enum Step {
    Advance(u64),
    Read(usize),
    Act(usize, bool),
    Refresh(usize),
    WriteBundle(usize),
    Crash(usize),
    Jump(usize, i64),
    CutOff(usize, bool),
    Overwrite(bool),
    Delete,
    Damage,
    Ask(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let who = 0..2_usize;
    prop_oneof![
        6 => (1..40_u64).prop_map(Step::Advance),
        6 => who.clone().prop_map(Step::Read),
        6 => (who.clone(), any::<bool>()).prop_map(|(who, leader)| Step::Act(who, leader)),
        4 => who.clone().prop_map(Step::Refresh),
        4 => who.clone().prop_map(Step::WriteBundle),
        1 => who.clone().prop_map(Step::Crash),
        1 => (who.clone(), prop_oneof![Just(0), Just(100_000), Just(-100_000), -5..5_i64]).prop_map(|(who, by)| Step::Jump(who, by)),
        1 => (who, any::<bool>()).prop_map(|(who, cut)| Step::CutOff(who, cut)),
        1 => any::<bool>().prop_map(Step::Overwrite),
        1 => Just(Step::Delete),
        1 => Just(Step::Damage),
        2 => any::<u8>().prop_map(Step::Ask),
    ]
}

fn trusted(state: &CaState) -> Vec<CaCert> {
    state.trusted().into_iter().cloned().collect()
}

fn within(some: &[CaCert], all: &[CaCert]) -> bool {
    some.iter().all(|cert| all.contains(cert))
}

impl World {
    fn new() -> Self {
        let empty = Bundle { certs: Vec::new(), foreign: true };
        Self {
            start: SystemTime::now(),
            now: 0,
            version: 1,
            secret: None,
            bundles: vec![(0, 1, empty)],
            replicas: Default::default(),
            created: None,
            unreliable_until: 0,
        }
    }

    fn truth(&self) -> SystemTime {
        self.start + SECOND * u32::try_from(self.now).unwrap()
    }

    fn clock(&self, who: usize) -> SystemTime {
        let offset = self.replicas[who].offset;
        let by = Duration::from_secs(offset.unsigned_abs());
        if offset < 0 { self.truth() - by } else { self.truth() + by }
    }

    fn clock_is_right(&self, who: usize) -> bool {
        self.replicas[who].offset.unsigned_abs() < 10
    }

    fn bundle(&self) -> (u64, Bundle) {
        let (_, version, bundle) = self.bundles.last().unwrap();
        (*version, bundle.clone())
    }

    fn write_bundle(&mut self, bundle: Bundle) {
        self.version += 1;
        self.bundles.push((self.now, self.version, bundle));
    }

    fn write_secret(&mut self, state: Option<SecretState>) {
        self.version += 1;
        self.secret = state.map(|state| (self.version, state));
    }

    fn read(&mut self, who: usize) {
        if self.replicas[who].cut_off {
            return self.renew(who);
        }
        let read = Read { secret: self.secret.clone(), bundle: self.bundle(), clock: self.clock_is_right(who) };
        let now = self.now;
        let replica = &mut self.replicas[who];
        replica.read_at = now;
        if let Some((_, SecretState::Valid { state, .. })) = &read.secret {
            let same = replica
                .last_good
                .as_ref()
                .is_some_and(|last_good| last_good.phase == state.phase && last_good.current == state.current);
            if !same {
                replica.phase_since = now;
            }
            replica.last_good = Some(state.clone());
            replica.absent_since = None;
        } else {
            replica.absent_since.get_or_insert(now);
        }
        let wanted = replica.last_good.as_ref().map(trusted);
        replica.complete = match (wanted, &replica.complete) {
            (Some(wanted), before) if within(&wanted, &read.bundle.1.certs) => match before {
                Some((of, since)) if *of == wanted => Some((wanted, *since)),
                _ => Some((wanted, now)),
            },
            _ => None,
        };
        replica.read = Some(read);
        self.renew(who);
    }

    fn renew(&mut self, who: usize) {
        let clock = self.clock(who);
        let replica = &mut self.replicas[who];
        if let Some(state) = &replica.last_good
            && leaf::decide(replica.leaf.as_ref(), &state.current, LIFETIMES.leaf, clock) == LeafAction::Issue
        {
            let validity = Validity::starting(clock, LIFETIMES.leaf).within(state.current.cert().validity());
            replica.leaf = Some(Leaf::new(state.current.cert().clone(), validity, clock, 0.5));
        }
        if let (Some(leaf), Some(read)) = (&replica.leaf, &replica.read) {
            replica.ready |= read.bundle.1.certs.contains(&leaf.ca);
        }
    }

    fn act(&mut self, who: usize, leader: bool) {
        let Some(read) = self.replicas[who].read.take() else { return };
        if self.replicas[who].cut_off {
            return;
        }
        let replica = &self.replicas[who];
        let (version, secret) = match &read.secret {
            Some((version, secret)) => (Some(*version), secret.clone()),
            None => (None, SecretState::Absent),
        };
        let input = PlanInput {
            now: self.clock(who),
            is_leader: leader && read.clock,
            secret: &secret,
            last_good: replica.last_good.as_ref(),
            absent_for: SECOND * u32::try_from(self.now - replica.absent_since.unwrap_or(self.now)).unwrap(),
            first_install: read.bundle.1.certs.is_empty(),
            phase_seen: SECOND * u32::try_from(self.now - replica.phase_since).unwrap(),
            trusted_for: replica.complete.as_ref().map(|(_, since)| SECOND * u32::try_from(self.now - since).unwrap()),
            lifetimes: LIFETIMES,
        };
        let Plan::Apply(change) = plan::decide(&input) else { return };
        // The bundle is read again before a promotion.
        if change == CaChange::PromoteNext
            && !within(&trusted(replica.last_good.as_ref().unwrap()), &self.bundle().1.certs)
        {
            return;
        }
        let base = match &secret {
            SecretState::Valid { state, .. } => Some(state),
            _ if change == CaChange::Create => None,
            _ => replica.last_good.as_ref(),
        };
        let applied = plan::apply(&change, base, input.now, || Ca::generate(input.now, LIFETIMES.ca)).unwrap();
        let Some(state) = applied else { panic!("{change:?} is impossible for {base:?}") };
        // A write is against the version that was read.
        if self.secret.as_ref().map(|(version, _)| *version) != version {
            return;
        }
        let rotate = match &secret {
            SecretState::Valid { rotate, .. } => rotate.clone(),
            _ => None,
        };
        // A CA that no bundle trusts is restored if the Secret was deleted again before the replicas agreed on its successor.
        let unknown = change == CaChange::Restore && !self.bundle().1.certs.contains(state.current.cert());
        if change == CaChange::Create || unknown {
            self.created = Some(state.current.cert().clone());
        }
        self.write_secret(Some(SecretState::Valid { state, has_extra_keys: false, rotate }));
    }

    fn refresh(&mut self, who: usize) {
        let fresh = match &self.secret {
            Some((_, SecretState::Valid { state, .. })) if !self.replicas[who].cut_off => Some(trusted(state)),
            _ => None,
        };
        self.replicas[who].refreshed = fresh;
    }

    fn reconcile_bundle(&mut self, who: usize) {
        let replica = &mut self.replicas[who];
        let (Some(fresh), Some(read)) = (replica.refreshed.take(), replica.read.clone()) else { return };
        let (version, bundle) = read.bundle;
        let same = within(&fresh, &bundle.certs) && within(&bundle.certs, &fresh);
        if !replica.cut_off && !same && version == self.bundle().0 {
            self.write_bundle(Bundle { certs: fresh, foreign: false });
        }
    }

    /// Lets time pass; replicas that are not cut off read often enough.
    fn pass(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.now += 1;
            for who in 0..2 {
                let replica = &mut self.replicas[who];
                // A cut ends at the longest outage that is tolerated.
                let bound = if replica.offset == 0 { 40 } else { READ_INTERVAL };
                if replica.cut_off && self.now - replica.read_at > bound {
                    replica.cut_off = false;
                }
                if self.now - self.replicas[who].read_at >= READ_INTERVAL {
                    self.read(who);
                    self.act(who, false);
                }
            }
            self.check();
        }
    }

    fn take(&mut self, step: &Step) {
        match *step {
            Step::Advance(seconds) => self.pass(seconds),
            Step::Read(who) => self.read(who),
            Step::Act(who, leader) => self.act(who, leader),
            Step::Refresh(who) => self.refresh(who),
            Step::WriteBundle(who) => self.reconcile_bundle(who),
            Step::Crash(who) => {
                self.replicas[who] =
                    Replica { offset: self.replicas[who].offset, read_at: self.now, ..Replica::default() }
            }
            Step::Jump(who, by) => self.replicas[who].offset = by,
            Step::CutOff(who, cut) => self.replicas[who].cut_off = cut,
            Step::Overwrite(with_old) => {
                let old = self.bundles.first().map(|(_, _, bundle)| bundle.certs.clone()).unwrap_or_default();
                let certs = if with_old { old } else { Vec::new() };
                self.write_bundle(Bundle { certs, foreign: true });
            }
            Step::Delete => self.write_secret(None),
            Step::Damage => {
                // Without a replica that has the CA in memory, an administrator is needed; see the plan.
                if self.secret.is_some() && self.replicas.iter().any(|replica| replica.last_good.is_some()) {
                    self.write_secret(Some(SecretState::Invalid));
                }
            }
            Step::Ask(value) => {
                if let Some((_, SecretState::Valid { state, has_extra_keys, .. })) = self.secret.clone() {
                    self.write_secret(Some(SecretState::Valid {
                        state,
                        has_extra_keys,
                        rotate: Some(value.to_string()),
                    }));
                }
            }
        }
        self.check();
    }

    /// Checks that a pod created now meets only verified certificates, unless the external writer changed the bundle.
    fn check(&mut self) {
        let settle = LIFETIMES.settle.as_secs();
        if let Some((_, SecretState::Valid { state, .. })) = &self.secret
            && !state.current.cert().validity().contains(self.truth())
        {
            self.unreliable_until = self.now + 2 * READ_INTERVAL;
        }
        let newest = self.bundles.len() - 1;
        let in_use: Vec<_> = self
            .bundles
            .iter()
            .enumerate()
            .filter(|(index, _)| {
                // A bundle may be used for the settling time after the next one was written.
                let until = self.bundles.get(index + 1).map(|(at, _, _)| at + settle);
                *index == newest || until.is_some_and(|until| self.now < until)
            })
            .map(|(_, (_, _, bundle))| bundle)
            .collect();
        // A new CA must first be written into the bundle, and be observed there.
        let recovering = self.created.as_ref().is_some_and(|created| {
            let mut with_it = self.bundles.iter().filter(|(_, _, bundle)| bundle.certs.contains(created));
            with_it.next().is_none_or(|(at, _, _)| self.now < at + settle)
        });
        if recovering || self.now < self.unreliable_until || in_use.iter().any(|bundle| bundle.foreign) {
            return;
        }
        for (who, replica) in self.replicas.iter().enumerate() {
            let Some(leaf) = replica.leaf.as_ref().filter(|_| replica.ready && self.clock_is_right(who)) else {
                continue;
            };
            // After the clock was corrected, the next read issues another leaf.
            if !leaf.validity.contains(self.truth()) {
                continue;
            }
            for bundle in &in_use {
                assert!(
                    bundle.certs.contains(&leaf.ca),
                    "second {}: replica {who} serves {:?}, but an API server may trust {:?}; the Secret is {:?}",
                    self.now,
                    leaf.ca,
                    bundle.certs,
                    self.secret
                );
            }
        }
    }

    /// Lets everything work without disturbance until all is quiet.
    fn settle(&mut self) {
        for replica in &mut self.replicas {
            (replica.offset, replica.cut_off) = (0, false);
        }
        let lost = self.replicas.iter().all(|replica| replica.last_good.is_none());
        if lost && matches!(self.secret, Some((_, SecretState::Invalid))) {
            // The administrator does what readiness says.
            self.write_secret(None);
        }
        for _ in 0..400 {
            self.work();
        }
    }

    /// A second in which both replicas do everything.
    fn work(&mut self) {
        self.pass(1);
        for who in 0..2 {
            self.read(who);
            self.act(who, self.now % 2 == who as u64);
        }
        for who in 0..2 {
            self.read(who);
            self.refresh(who);
            self.reconcile_bundle(who);
            self.read(who);
        }
    }
}

fn run(steps: &[Step]) {
    let mut world = World::new();
    // A first installation.
    world.read(0);
    world.act(0, true);
    for step in steps {
        world.take(step);
    }
    world.settle();
    let Some((_, SecretState::Valid { state, .. })) = &world.secret else {
        panic!("no CA in the end: {:?}", world.secret)
    };
    let is_settled = match &state.phase {
        Phase::Stable => true,
        // A rotation may just be due again.
        Phase::Publishing { .. } | Phase::Retiring { .. } => {
            world.truth().duration_since(state.since).unwrap_or_default()
                <= LIFETIMES.settle + LIFETIMES.retire + SECOND * 5
        }
    };
    assert!(is_settled, "rotation hangs: {state:?}");
    let certs = world.bundle().1.certs;
    assert!(within(&trusted(state), &certs) && within(&certs, &trusted(state)), "{certs:?}");
    for replica in &world.replicas {
        let leaf = replica.leaf.as_ref().unwrap();
        assert!(leaf.ca == *state.current.cert() && leaf.validity.contains(world.truth()) && replica.ready);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(
        std::env::var("WEIR_CA_SIMULATIONS").ok().and_then(|cases| cases.parse().ok()).unwrap_or(48),
    ) })]

    #[test]
    fn pods_never_meet_a_certificate_that_their_bundle_rejects(steps in prop::collection::vec(step(), 0..150)) {
        run(&steps);
    }
}

#[test]
fn undisturbed_rotation_goes_through_all_phases() {
    let mut world = World::new();
    world.read(0);
    world.act(0, true);
    for _ in 0..20 {
        world.work();
    }
    let first = world.replicas[0].last_good.clone().unwrap();
    world.take(&Step::Ask(1));
    let mut phases = Vec::new();
    for _ in 0..200 {
        world.work();
        if let Some((_, SecretState::Valid { state, .. })) = &world.secret
            && phases.last() != Some(&state.phase.name())
        {
            phases.push(state.phase.name());
        }
    }
    assert_eq!(phases, ["publishing", "retiring", "stable"]);
    assert_ne!(world.replicas[0].last_good.as_ref().unwrap().current, first.current);
}
