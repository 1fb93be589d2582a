//! Who may write: one replica at a time, by a Lease of `coordination.k8s.io`.
//!
//! As client-go's leader election does it: a Lease that has not changed for its duration, measured by this replica's own steady clock from
//! when it saw the last change, is up for grabs; the times written in it are for people. Two replicas that take it at once are told apart
//! by the version: one of the writes is refused. What is written under the Lease carries a version as well, so that a holder who comes
//! late does no harm; the Lease is there for the order, not for safety.

use std::time::{Duration, Instant, SystemTime};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use weir_runtime::connect::{Refusal, bounded};

/// Field manager of what is written.
pub const MANAGER: &str = "weir-webhook";

/// What a Lease says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Who holds it; empty for nobody.
    pub holder: String,
    /// For how long without a change.
    pub duration: Duration,
    /// How often it changed hands.
    pub transitions: i32,
    /// `resourceVersion`.
    pub version: String,
}

/// What to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// There is none: make it.
    Create,
    /// It is ours: say that we are still here.
    Renew,
    /// Nobody holds it any more.
    Take,
    /// It is somebody else's, or ours and fresh.
    Wait,
}

/// This replica's part in the election.
#[derive(Debug)]
pub struct Elector {
    me: String,
    duration: Duration,
    /// What was last seen, and when it was first seen like that.
    seen: Option<(Record, Instant)>,
    /// Until when this replica may write.
    held_until: Option<Instant>,
}

impl Elector {
    /// `duration` is how long a holder may be silent; it is renewed three times as often.
    pub fn new(me: String, duration: Duration) -> Self {
        Self { me, duration, seen: None, held_until: None }
    }

    /// Whether this replica may write at `now`.
    pub fn holds(&self, now: Instant) -> bool {
        self.held_until.is_some_and(|until| now < until)
    }

    /// Whether the Lease was ours when it was last seen.
    pub fn is_ours(&self) -> bool {
        self.seen.as_ref().is_some_and(|(record, _)| record.holder == self.me)
    }

    /// The Lease was read at `now`.
    pub fn see(&mut self, record: Option<Record>, now: Instant) {
        let since = match (&self.seen, &record) {
            (Some((before, since)), Some(record)) if before.version == record.version => *since,
            _ => now,
        };
        if record.as_ref().is_none_or(|record| record.holder != self.me) {
            self.held_until = None;
        }
        self.seen = record.map(|record| (record, since));
    }

    /// What to do at `now`.
    pub fn act(&self, now: Instant) -> Act {
        let Some((record, since)) = &self.seen else { return Act::Create };
        let age = now.saturating_duration_since(*since);
        if record.holder == self.me {
            let fresh = self.holds(now) && age < self.duration / 3;
            return if fresh { Act::Wait } else { Act::Renew };
        }
        if record.holder.is_empty() || age >= record.duration { Act::Take } else { Act::Wait }
    }

    /// A write that began at `began` has succeeded.
    pub fn wrote(&mut self, record: Record, began: Instant) {
        // Before others may take it: our clock may be a little slow, and the write took its time.
        self.held_until = (record.holder == self.me).then(|| began + self.duration * 2 / 3);
        self.seen = Some((record, began));
    }

    /// The Lease that `act` asks for.
    fn wanted(&self, act: Act, name: &str) -> Lease {
        let now = MicroTime(Timestamp::now());
        let before = self.seen.as_ref().map(|(record, _)| record);
        let transitions = before.map_or(0, |record| record.transitions);
        let take = act == Act::Take;
        let spec = LeaseSpec {
            holder_identity: Some(self.me.clone()),
            lease_duration_seconds: Some(i32::try_from(self.duration.as_secs().max(1)).unwrap_or(i32::MAX)),
            acquire_time: (act != Act::Renew).then(|| now.clone()),
            renew_time: Some(now),
            lease_transitions: (act != Act::Renew).then_some(transitions.saturating_add(i32::from(take))),
            ..LeaseSpec::default()
        };
        let metadata = ObjectMeta {
            name: Some(name.to_owned()),
            resource_version: before.map(|record| record.version.clone()),
            ..ObjectMeta::default()
        };
        Lease { metadata, spec: Some(spec) }
    }
}

impl From<Lease> for Record {
    fn from(lease: Lease) -> Self {
        let spec = lease.spec.unwrap_or_default();
        let seconds = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or(0);
        Self {
            holder: spec.holder_identity.unwrap_or_default(),
            duration: Duration::from_secs(seconds),
            transitions: spec.lease_transitions.unwrap_or(0),
            version: lease.metadata.resource_version.unwrap_or_default(),
        }
    }
}

/// The Lease in the cluster.
#[derive(Debug)]
pub struct Leadership {
    elector: Elector,
    namespace: String,
    name: String,
    /// How far this replica's clock is from the API server's, when that last told its own.
    clock_gap: Option<Duration>,
}

impl Leadership {
    /// A Lease of that name for the replica `me`.
    pub fn new(namespace: String, name: String, me: String, duration: Duration) -> Self {
        Self { elector: Elector::new(me, duration), namespace, name, clock_gap: None }
    }

    /// Whether this replica may write now.
    pub fn holds(&self) -> bool {
        self.elector.holds(Instant::now())
    }

    /// How far this replica's clock is from the API server's; `None` while that has not told its own.
    pub fn clock_gap(&self) -> Option<Duration> {
        self.clock_gap
    }

    fn api(&self, client: &Client) -> Api<Lease> {
        Api::namespaced(client.clone(), &self.namespace)
    }

    /// Takes, renews, or waits. Losing a race is no error.
    ///
    /// # Errors
    /// The API server refuses, or is not there.
    pub async fn keep(&mut self, client: &Client) -> Result<(), Refusal> {
        let leases = self.api(client);
        let now = Instant::now();
        if !(self.elector.is_ours() && self.elector.act(now) == Act::Wait) {
            let found = bounded(leases.get_opt(&self.name)).await?;
            self.elector.see(found.map(Record::from), now);
        }
        let act = self.elector.act(now);
        let wanted = self.elector.wanted(act, &self.name);
        let written = match act {
            Act::Wait => return Ok(()),
            Act::Create => {
                let params = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
                bounded(leases.create(&params, &wanted)).await
            }
            Act::Renew | Act::Take => {
                let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
                bounded(leases.patch(&self.name, &params, &Patch::Merge(&wanted))).await
            }
        };
        match written {
            Ok(lease) => {
                self.clock_gap = server_clock(&lease).map(|clock| gap(clock, SystemTime::now()));
                self.elector.wrote(lease.into(), now);
                Ok(())
            }
            // Another replica was first, or the Lease was removed: the next look tells.
            Err(Refusal { code: Some(404 | 409), .. }) => {
                self.elector.see(None, now);
                Ok(())
            }
            Err(refusal) => Err(refusal),
        }
    }

    /// Gives it back, so that the next holder need not wait. Best effort.
    pub async fn release(&mut self, client: &Client) {
        if !self.holds() {
            return;
        }
        let mut wanted = self.elector.wanted(Act::Renew, &self.name);
        if let Some(spec) = &mut wanted.spec {
            spec.holder_identity = Some(String::new());
        }
        // Where it fails, the others wait for the duration.
        let _ = bounded(self.api(client).patch(&self.name, &PatchParams::default(), &Patch::Merge(&wanted))).await;
    }
}

/// The API server's clock when it wrote: it notes for each field manager when that last changed something.
fn server_clock(lease: &Lease) -> Option<SystemTime> {
    let fields = lease.metadata.managed_fields.as_ref()?;
    let ours = fields.iter().filter(|entry| entry.manager.as_deref() == Some(MANAGER));
    ours.filter_map(|entry| entry.time.as_ref()).map(|time| time.0.into()).max()
}

fn gap(one: SystemTime, other: SystemTime) -> Duration {
    one.duration_since(other).unwrap_or_else(|error| error.duration())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DURATION: Duration = Duration::from_secs(15);

    fn record(holder: &str, version: u32) -> Record {
        Record { holder: holder.to_owned(), duration: DURATION, transitions: 0, version: version.to_string() }
    }

    fn elector() -> (Elector, Instant) {
        (Elector::new("me".to_owned(), DURATION), Instant::now())
    }

    #[test]
    fn makes_the_lease_and_renews_it_in_time() {
        let (mut elector, now) = elector();
        elector.see(None, now);
        assert_eq!(elector.act(now), Act::Create);
        elector.wrote(record("me", 1), now);
        assert!(elector.holds(now));
        assert_eq!(elector.act(now + DURATION / 4), Act::Wait);
        assert_eq!(elector.act(now + DURATION / 3), Act::Renew);
        assert!(!elector.holds(now + DURATION * 2 / 3), "writes end before others may take it");
    }

    #[test]
    fn takes_it_only_when_its_holder_was_silent_for_the_whole_duration() {
        let (mut elector, now) = elector();
        elector.see(Some(record("other", 1)), now);
        assert_eq!(elector.act(now), Act::Wait, "whatever time is written in it");
        elector.see(Some(record("other", 2)), now + DURATION / 2);
        assert_eq!(elector.act(now + DURATION), Act::Wait, "it was renewed");
        elector.see(Some(record("other", 2)), now + DURATION);
        assert_eq!(elector.act(now + DURATION * 3 / 2), Act::Take);
    }

    #[test]
    fn takes_at_once_what_was_given_back() {
        let (mut elector, now) = elector();
        elector.see(Some(record("", 1)), now);
        assert_eq!(elector.act(now), Act::Take);
    }

    #[test]
    fn stops_writing_when_another_holds_it() {
        let (mut elector, now) = elector();
        elector.wrote(record("me", 1), now);
        elector.see(Some(record("other", 2)), now);
        assert!(!elector.holds(now) && elector.act(now) == Act::Wait);
    }

    #[test]
    fn learns_the_clock_of_the_api_server() {
        let entry = |manager: &str, time: &str| serde_json::json!({"manager": manager, "time": time});
        let lease = serde_json::json!({"metadata": {"managedFields": [
            entry("kubectl", "2030-01-01T00:00:00Z"), entry(MANAGER, "2026-11-27T05:00:00Z"),
        ]}});
        let clock = server_clock(&serde_json::from_value(lease).unwrap()).unwrap();
        let ahead = clock + Duration::from_secs(90);
        assert_eq!((gap(clock, ahead), gap(ahead, clock)), (Duration::from_secs(90), Duration::from_secs(90)));
        assert_eq!(server_clock(&Lease::default()), None);
    }

    #[test]
    fn one_that_comes_back_under_its_name_goes_on_at_once() {
        let (mut elector, now) = elector();
        elector.see(Some(record("me", 7)), now);
        assert!(!elector.holds(now));
        assert_eq!(elector.act(now), Act::Renew);
    }
}
