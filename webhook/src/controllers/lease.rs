//! Leader election: one replica at a time writes, by a Lease of `coordination.k8s.io`.
//!
//! As in client-go, a Lease that has not changed for its duration may be acquired. That is measured by this replica's own monotonic clock
//! from when it observed the last change; the times written in it are for people. Of two replicas that acquire it at once, one is rejected
//! by the resource version. What the leader writes carries a version as well, so that a late leader does no harm; the Lease is for order,
//! not for safety.

use std::time::{Duration, Instant, SystemTime};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use weir_runtime::client::{ApiError, with_timeout};

/// Field manager of everything that the webhook writes.
pub const FIELD_MANAGER: &str = "weir-webhook";

/// The content of a Lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseRecord {
    /// Name of the leader; empty for none.
    pub holder: String,
    /// Time without a change after which others may acquire it.
    pub duration: Duration,
    /// Number of changes of the leader.
    pub transitions: i32,
    /// `resourceVersion`.
    pub version: String,
}

/// Next step for a Lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseAction {
    /// It does not exist.
    Create,
    /// This replica is the leader.
    Renew,
    /// There is no leader any more.
    Acquire,
    /// Another replica is the leader, or this one renewed it recently.
    Wait,
}

/// Decides about the Lease, without talking to the API server.
#[derive(Debug)]
pub struct Elector {
    me: String,
    duration: Duration,
    /// The Lease as last observed, and since when it has been like that.
    observed: Option<(LeaseRecord, Instant)>,
    /// Until when this replica is the leader.
    leader_until: Option<Instant>,
}

impl Elector {
    /// A leader may be silent for `duration`; it renews three times as often.
    pub fn new(me: String, duration: Duration) -> Self {
        Self { me, duration, observed: None, leader_until: None }
    }

    /// Returns whether this replica is the leader at `now`.
    pub fn is_leader(&self, now: Instant) -> bool {
        self.leader_until.is_some_and(|until| now < until)
    }

    /// Returns whether this replica was the leader when the Lease was last observed.
    pub fn was_ours(&self) -> bool {
        self.observed.as_ref().is_some_and(|(record, _)| record.holder == self.me)
    }

    /// Takes note of the Lease as read at `now`.
    pub fn observe(&mut self, record: Option<LeaseRecord>, now: Instant) {
        let since = match (&self.observed, &record) {
            (Some((before, since)), Some(record)) if before.version == record.version => *since,
            _ => now,
        };
        if record.as_ref().is_none_or(|record| record.holder != self.me) {
            self.leader_until = None;
        }
        self.observed = record.map(|record| (record, since));
    }

    /// Returns what to do at `now`.
    pub fn next_action(&self, now: Instant) -> LeaseAction {
        let Some((record, since)) = &self.observed else { return LeaseAction::Create };
        let age = now.saturating_duration_since(*since);
        if record.holder == self.me {
            let fresh = self.is_leader(now) && age < self.duration / 3;
            return if fresh { LeaseAction::Wait } else { LeaseAction::Renew };
        }
        if record.holder.is_empty() || age >= record.duration { LeaseAction::Acquire } else { LeaseAction::Wait }
    }

    /// Takes note of a successful write that began at `began`.
    pub fn record_write(&mut self, record: LeaseRecord, began: Instant) {
        // Earlier than others may acquire it: our clock may be a little slow, and the write took its time.
        self.leader_until = (record.holder == self.me).then(|| began + self.duration * 2 / 3);
        self.observed = Some((record, began));
    }

    /// Returns the Lease to write for an action.
    fn desired_lease(&self, action: LeaseAction, name: &str) -> Lease {
        let now = MicroTime(Timestamp::now());
        let before = self.observed.as_ref().map(|(record, _)| record);
        let transitions = before.map_or(0, |record| record.transitions);
        let acquire = action == LeaseAction::Acquire;
        let spec = LeaseSpec {
            holder_identity: Some(self.me.clone()),
            lease_duration_seconds: Some(i32::try_from(self.duration.as_secs().max(1)).unwrap_or(i32::MAX)),
            acquire_time: (action != LeaseAction::Renew).then(|| now.clone()),
            renew_time: Some(now),
            lease_transitions: (action != LeaseAction::Renew).then_some(transitions.saturating_add(i32::from(acquire))),
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

impl From<Lease> for LeaseRecord {
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

/// Keeps this replica's leadership by the Lease in the cluster.
#[derive(Debug)]
pub struct Leadership {
    elector: Elector,
    namespace: String,
    name: String,
    /// Difference of this replica's clock to the API server's, at the last write.
    clock_skew: Option<Duration>,
}

impl Leadership {
    /// Takes part in the election of `me` by the Lease of that name.
    pub fn new(namespace: String, name: String, me: String, duration: Duration) -> Self {
        Self { elector: Elector::new(me, duration), namespace, name, clock_skew: None }
    }

    /// Returns whether this replica is the leader now.
    pub fn is_leader(&self) -> bool {
        self.elector.is_leader(Instant::now())
    }

    /// Returns the difference of this replica's clock to the API server's; `None` before the first write.
    pub fn clock_skew(&self) -> Option<Duration> {
        self.clock_skew
    }

    fn api(&self, client: &Client) -> Api<Lease> {
        Api::namespaced(client.clone(), &self.namespace)
    }

    /// Acquires or renews the Lease, or waits. Losing a race is not an error.
    ///
    /// # Errors
    /// The API server rejects a request, or does not respond.
    pub async fn acquire_or_renew(&mut self, client: &Client) -> Result<(), ApiError> {
        let leases = self.api(client);
        let now = Instant::now();
        if !(self.elector.was_ours() && self.elector.next_action(now) == LeaseAction::Wait) {
            let found = with_timeout(leases.get_opt(&self.name)).await?;
            self.elector.observe(found.map(LeaseRecord::from), now);
        }
        let action = self.elector.next_action(now);
        let lease = self.elector.desired_lease(action, &self.name);
        let written = match action {
            LeaseAction::Wait => return Ok(()),
            LeaseAction::Create => {
                let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
                with_timeout(leases.create(&params, &lease)).await
            }
            LeaseAction::Renew | LeaseAction::Acquire => {
                let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
                with_timeout(leases.patch(&self.name, &params, &Patch::Merge(&lease))).await
            }
        };
        match written {
            Ok(lease) => {
                self.clock_skew = server_clock(&lease).map(|clock| difference(clock, SystemTime::now()));
                self.elector.record_write(lease.into(), now);
                Ok(())
            }
            // Another replica was first, or the Lease was deleted: read it again next time.
            Err(ApiError { status: Some(404 | 409), .. }) => {
                self.elector.observe(None, now);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Releases the Lease, so that the next leader need not wait. Best effort.
    pub async fn release(&mut self, client: &Client) {
        if !self.is_leader() {
            return;
        }
        let mut lease = self.elector.desired_lease(LeaseAction::Renew, &self.name);
        if let Some(spec) = &mut lease.spec {
            spec.holder_identity = Some(String::new());
        }
        // If it fails, the others wait for the duration.
        let _ = with_timeout(self.api(client).patch(&self.name, &PatchParams::default(), &Patch::Merge(&lease))).await;
    }
}

/// Returns the API server's clock at our last write: it records one for each field manager.
fn server_clock(lease: &Lease) -> Option<SystemTime> {
    let fields = lease.metadata.managed_fields.as_ref()?;
    let ours = fields.iter().filter(|entry| entry.manager.as_deref() == Some(FIELD_MANAGER));
    ours.filter_map(|entry| entry.time.as_ref()).map(|time| time.0.into()).max()
}

fn difference(one: SystemTime, other: SystemTime) -> Duration {
    one.duration_since(other).unwrap_or_else(|error| error.duration())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DURATION: Duration = Duration::from_secs(15);

    fn record(holder: &str, version: u32) -> LeaseRecord {
        LeaseRecord { holder: holder.to_owned(), duration: DURATION, transitions: 0, version: version.to_string() }
    }

    fn elector() -> (Elector, Instant) {
        (Elector::new("me".to_owned(), DURATION), Instant::now())
    }

    #[test]
    fn leader_creates_and_renews_the_lease() {
        let (mut elector, now) = elector();
        elector.observe(None, now);
        assert_eq!(elector.next_action(now), LeaseAction::Create);
        elector.record_write(record("me", 1), now);
        assert!(elector.is_leader(now));
        assert_eq!(elector.next_action(now + DURATION / 4), LeaseAction::Wait);
        assert_eq!(elector.next_action(now + DURATION / 3), LeaseAction::Renew);
        assert!(!elector.is_leader(now + DURATION * 2 / 3), "leadership ends before others may acquire it");
    }

    #[test]
    fn lease_is_acquired_after_a_silent_duration() {
        let (mut elector, now) = elector();
        elector.observe(Some(record("other", 1)), now);
        assert_eq!(elector.next_action(now), LeaseAction::Wait, "whatever its times say");
        elector.observe(Some(record("other", 2)), now + DURATION / 2);
        assert_eq!(elector.next_action(now + DURATION), LeaseAction::Wait, "it was renewed");
        elector.observe(Some(record("other", 2)), now + DURATION);
        assert_eq!(elector.next_action(now + DURATION * 3 / 2), LeaseAction::Acquire);
    }

    #[test]
    fn released_lease_is_acquired_at_once() {
        let (mut elector, now) = elector();
        elector.observe(Some(record("", 1)), now);
        assert_eq!(elector.next_action(now), LeaseAction::Acquire);
    }

    #[test]
    fn leadership_ends_when_another_replica_holds_the_lease() {
        let (mut elector, now) = elector();
        elector.record_write(record("me", 1), now);
        elector.observe(Some(record("other", 2)), now);
        assert!(!elector.is_leader(now) && elector.next_action(now) == LeaseAction::Wait);
    }

    #[test]
    fn clock_of_the_api_server_is_read_from_managed_fields() {
        let entry = |manager: &str, time: &str| serde_json::json!({"manager": manager, "time": time});
        let lease = serde_json::json!({"metadata": {"managedFields": [
            entry("kubectl", "2030-01-01T00:00:00Z"), entry(FIELD_MANAGER, "2026-11-27T05:00:00Z"),
        ]}});
        let clock = server_clock(&serde_json::from_value(lease).unwrap()).unwrap();
        let ahead = clock + Duration::from_secs(90);
        assert_eq!(
            (difference(clock, ahead), difference(ahead, clock)),
            (Duration::from_secs(90), Duration::from_secs(90))
        );
        assert_eq!(server_clock(&Lease::default()), None);
    }

    #[test]
    fn restarted_leader_of_the_same_name_renews() {
        let (mut elector, now) = elector();
        elector.observe(Some(record("me", 7)), now);
        assert!(!elector.is_leader(now));
        assert_eq!(elector.next_action(now), LeaseAction::Renew);
    }
}
