//! Two replicas, an API server and a meddler, in whatever order: no pod may meet a certificate that its bundle does not verify.
//!
//! Time passes in seconds. Reading and writing are separate steps, so that every write can come late; who may write is left to chance,
//! because a Lease is no lock. The API server may see any bundle that was there within the settling time.

use std::time::{Duration, SystemTime};

use proptest::prelude::*;

use super::authority::{Ca, CaCert};
use super::leaf::{self, Leaf, LeafStep};
use super::plan::{self, Change, Plan, Seen, Times, View};
use super::state::{CaState, Phase};
use crate::server::certs::Validity;

const SECOND: Duration = Duration::from_secs(1);
/// A replica looks at least so often, unless it is cut off.
const LOOK: u64 = 3;
const TIMES: Times = Times {
    ca: Duration::from_mins(10),
    leaf: Duration::from_secs(90),
    settle: Duration::from_secs(10),
    retire: Duration::from_secs(90),
};

/// A bundle, and whether it was written by the meddler, or the installation.
#[derive(Debug, Clone, PartialEq)]
struct Bundle {
    certs: Vec<CaCert>,
    foreign: bool,
}

#[derive(Debug, Clone)]
struct Read {
    secret: Option<(u64, Seen)>,
    bundle: (u64, Bundle),
    /// Whether the clock was right then: the Lease tells.
    clock: bool,
}

#[derive(Debug, Default)]
struct Replica {
    offset: i64,
    memory: Option<CaState>,
    phase_since: u64,
    absent_since: Option<u64>,
    leaf: Option<Leaf>,
    /// Since when it sees the bundle trust all that the state does.
    complete: Option<(Vec<CaCert>, u64)>,
    read: Option<Read>,
    /// What it read again, just before it writes a bundle.
    refreshed: Option<Vec<CaCert>>,
    cut_off: bool,
    looked: u64,
    /// Whether it was ever ready.
    ready: bool,
}

struct World {
    start: SystemTime,
    now: u64,
    version: u64,
    secret: Option<(u64, Seen)>,
    bundles: Vec<(u64, u64, Bundle)>,
    replicas: [Replica; 2],
    /// The CA that was made because there was none, or that came back unknown to every bundle.
    made: Option<CaCert>,
    /// Until when that is not what it should be: it was made in the very moment in which a clock jumped.
    odd_until: u64,
}

#[derive(Debug, Clone)]
enum Step {
    Advance(u64),
    Look(usize),
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
        6 => who.clone().prop_map(Step::Look),
        6 => (who.clone(), any::<bool>()).prop_map(|(who, holder)| Step::Act(who, holder)),
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
            made: None,
            odd_until: 0,
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

    fn write_secret(&mut self, seen: Option<Seen>) {
        self.version += 1;
        self.secret = seen.map(|seen| (self.version, seen));
    }

    fn look(&mut self, who: usize) {
        if self.replicas[who].cut_off {
            return self.renew(who);
        }
        let read = Read { secret: self.secret.clone(), bundle: self.bundle(), clock: self.clock_is_right(who) };
        let now = self.now;
        let replica = &mut self.replicas[who];
        replica.looked = now;
        if let Some((_, Seen::Good { state, .. })) = &read.secret {
            let same = replica
                .memory
                .as_ref()
                .is_some_and(|memory| memory.phase == state.phase && memory.current == state.current);
            if !same {
                replica.phase_since = now;
            }
            replica.memory = Some(state.clone());
            replica.absent_since = None;
        } else {
            replica.absent_since.get_or_insert(now);
        }
        let wanted = replica.memory.as_ref().map(trusted);
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
        if let Some(state) = &replica.memory
            && leaf::decide(replica.leaf.as_ref(), &state.current, TIMES.leaf, clock) == LeafStep::Issue
        {
            let validity = Validity::starting(clock, TIMES.leaf).within(state.current.cert().validity());
            replica.leaf = Some(Leaf::new(state.current.cert().clone(), validity, clock, 0.5));
        }
        if let (Some(leaf), Some(read)) = (&replica.leaf, &replica.read) {
            replica.ready |= read.bundle.1.certs.contains(&leaf.ca);
        }
    }

    fn act(&mut self, who: usize, holder: bool) {
        let Some(read) = self.replicas[who].read.take() else { return };
        if self.replicas[who].cut_off {
            return;
        }
        let replica = &self.replicas[who];
        let (version, seen) = match &read.secret {
            Some((version, seen)) => (Some(*version), seen.clone()),
            None => (None, Seen::Absent),
        };
        let view = View {
            now: self.clock(who),
            holder: holder && read.clock,
            secret: &seen,
            memory: replica.memory.as_ref(),
            absent: SECOND * u32::try_from(self.now - replica.absent_since.unwrap_or(self.now)).unwrap(),
            first: read.bundle.1.certs.is_empty(),
            phase_seen: SECOND * u32::try_from(self.now - replica.phase_since).unwrap(),
            settled: replica.complete.as_ref().map(|(_, since)| SECOND * u32::try_from(self.now - since).unwrap()),
            times: TIMES,
        };
        let Plan::Do(change) = plan::plan(&view) else { return };
        // The bundle is read again before a switch.
        if change == Change::Switch && !within(&trusted(replica.memory.as_ref().unwrap()), &self.bundle().1.certs) {
            return;
        }
        let base = match &seen {
            Seen::Good { state, .. } => Some(state),
            _ if change == Change::Create => None,
            _ => replica.memory.as_ref(),
        };
        let made = plan::apply(&change, base, view.now, || Ca::make(view.now, TIMES.ca)).unwrap();
        let Some(state) = made else { panic!("{change:?} cannot be made of {base:?}") };
        // Against the version that was read, or none.
        if self.secret.as_ref().map(|(version, _)| *version) != version {
            return;
        }
        let rotate = match &seen {
            Seen::Good { rotate, .. } => rotate.clone(),
            _ => None,
        };
        // One that no bundle trusts comes back where the Secret was removed again before the replicas agreed on its successor.
        let unknown = change == Change::Restore && !self.bundle().1.certs.contains(state.current.cert());
        if change == Change::Create || unknown {
            self.made = Some(state.current.cert().clone());
        }
        self.write_secret(Some(Seen::Good { state, untidy: false, rotate }));
    }

    fn refresh(&mut self, who: usize) {
        let fresh = match &self.secret {
            Some((_, Seen::Good { state, .. })) if !self.replicas[who].cut_off => Some(trusted(state)),
            _ => None,
        };
        self.replicas[who].refreshed = fresh;
    }

    fn put_right(&mut self, who: usize) {
        let replica = &mut self.replicas[who];
        let (Some(fresh), Some(read)) = (replica.refreshed.take(), replica.read.clone()) else { return };
        let (version, bundle) = read.bundle;
        let same = within(&fresh, &bundle.certs) && within(&bundle.certs, &fresh);
        if !replica.cut_off && !same && version == self.bundle().0 {
            self.write_bundle(Bundle { certs: fresh, foreign: false });
        }
    }

    /// Replicas that are not cut off look often enough.
    fn pass(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.now += 1;
            for who in 0..2 {
                let replica = &mut self.replicas[who];
                // A cut that outlasts what is promised is over.
                let bound = if replica.offset == 0 { 40 } else { LOOK };
                if replica.cut_off && self.now - replica.looked > bound {
                    replica.cut_off = false;
                }
                if self.now - self.replicas[who].looked >= LOOK {
                    self.look(who);
                    self.act(who, false);
                }
            }
            self.check();
        }
    }

    fn take(&mut self, step: &Step) {
        match *step {
            Step::Advance(seconds) => self.pass(seconds),
            Step::Look(who) => self.look(who),
            Step::Act(who, holder) => self.act(who, holder),
            Step::Refresh(who) => self.refresh(who),
            Step::WriteBundle(who) => self.put_right(who),
            Step::Crash(who) => {
                self.replicas[who] =
                    Replica { offset: self.replicas[who].offset, looked: self.now, ..Replica::default() }
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
                // Nobody damages what nobody remembers: that needs an administrator, see the plan.
                if self.secret.is_some() && self.replicas.iter().any(|replica| replica.memory.is_some()) {
                    self.write_secret(Some(Seen::Damaged));
                }
            }
            Step::Ask(value) => {
                if let Some((_, Seen::Good { state, untidy, .. })) = self.secret.clone() {
                    self.write_secret(Some(Seen::Good { state, untidy, rotate: Some(value.to_string()) }));
                }
            }
        }
        self.check();
    }

    /// No pod that is created now meets a certificate that is not verified, where nobody meddles with the bundle.
    fn check(&mut self) {
        let settle = TIMES.settle.as_secs();
        if let Some((_, Seen::Good { state, .. })) = &self.secret
            && !state.current.cert().validity().contains(self.truth())
        {
            self.odd_until = self.now + 2 * LOOK;
        }
        let newest = self.bundles.len() - 1;
        let seen: Vec<_> = self
            .bundles
            .iter()
            .enumerate()
            .filter(|(index, _)| {
                // A bundle is seen until so long after the next one was written.
                let until = self.bundles.get(index + 1).map(|(at, _, _)| at + settle);
                *index == newest || until.is_some_and(|until| self.now < until)
            })
            .map(|(_, (_, _, bundle))| bundle)
            .collect();
        // A new CA has to be written into the bundle for the first time, and seen.
        let recovering = self.made.as_ref().is_some_and(|made| {
            let mut with_it = self.bundles.iter().filter(|(_, _, bundle)| bundle.certs.contains(made));
            with_it.next().is_none_or(|(at, _, _)| self.now < at + settle)
        });
        if recovering || self.now < self.odd_until || seen.iter().any(|bundle| bundle.foreign) {
            return;
        }
        for (who, replica) in self.replicas.iter().enumerate() {
            let Some(leaf) = replica.leaf.as_ref().filter(|_| replica.ready && self.clock_is_right(who)) else {
                continue;
            };
            // With a clock that was put right a moment ago, the next look makes another leaf.
            if !leaf.validity.contains(self.truth()) {
                continue;
            }
            for bundle in &seen {
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

    /// Nobody meddles any more: everything works as it should, and in the end all is quiet.
    fn calm(&mut self) {
        for replica in &mut self.replicas {
            (replica.offset, replica.cut_off) = (0, false);
        }
        let forgotten = self.replicas.iter().all(|replica| replica.memory.is_none());
        if forgotten && matches!(self.secret, Some((_, Seen::Damaged))) {
            // The administrator follows what readiness says.
            self.write_secret(None);
        }
        for _ in 0..400 {
            self.work();
        }
    }

    /// A second in which both replicas do all that they should.
    fn work(&mut self) {
        self.pass(1);
        for who in 0..2 {
            self.look(who);
            self.act(who, self.now % 2 == who as u64);
        }
        for who in 0..2 {
            self.look(who);
            self.refresh(who);
            self.put_right(who);
            self.look(who);
        }
    }
}

fn run(steps: &[Step]) {
    let mut world = World::new();
    // A first installation.
    world.look(0);
    world.act(0, true);
    for step in steps {
        world.take(step);
    }
    world.calm();
    let Some((_, Seen::Good { state, .. })) = &world.secret else { panic!("no CA in the end: {:?}", world.secret) };
    let settled = match &state.phase {
        Phase::Stable => true,
        // A rotation may just be due again.
        Phase::Publishing { .. } | Phase::Retiring { .. } => {
            world.truth().duration_since(state.since).unwrap_or_default() <= TIMES.settle + TIMES.retire + SECOND * 5
        }
    };
    assert!(settled, "it hangs: {state:?}");
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
    fn a_pod_never_meets_a_certificate_that_its_bundle_does_not_verify(steps in prop::collection::vec(step(), 0..150)) {
        run(&steps);
    }
}

#[test]
fn an_undisturbed_rotation_goes_through_all_phases_and_ends() {
    let mut world = World::new();
    world.look(0);
    world.act(0, true);
    for _ in 0..20 {
        world.work();
    }
    let first = world.replicas[0].memory.clone().unwrap();
    world.take(&Step::Ask(1));
    let mut phases = Vec::new();
    for _ in 0..200 {
        world.work();
        if let Some((_, Seen::Good { state, .. })) = &world.secret
            && phases.last() != Some(&state.phase.name())
        {
            phases.push(state.phase.name());
        }
    }
    assert_eq!(phases, ["publishing", "retiring", "stable"]);
    assert_ne!(world.replicas[0].memory.as_ref().unwrap().current, first.current);
}
