//! The memory that bodies take, from their first byte until their response is sent, and what is given up when it is full.
//!
//! Anybody who reaches the port can begin requests and never finish them, or never read the response. So nothing that depends on the
//! client is waited for without a bound: when requests or bytes exceed their limit, the oldest unfinished request of the client that has
//! most of them is evicted. One that is complete keeps its place. Large bodies cannot take all bytes, so that the others always fit.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use weir_runtime::CancellationToken;

/// Bodies from this size on are large. A review of an ordinary pod has 1 to 10 KiB.
pub const LARGE_BODY: usize = 64 << 10;
/// Requests of all clients that may be unfinished at once, and of one client.
const MAX_UNFINISHED: usize = 1024;
const MAX_UNFINISHED_PER_PEER: usize = MAX_UNFINISHED / 2;
/// Age from which an unfinished request is evicted to make room for bytes of another.
const EVICTION_AGE: Duration = Duration::from_millis(500);

/// Limits the bytes of bodies.
#[derive(Debug)]
pub struct BodyLimit {
    bytes: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    /// By arrival.
    entries: BTreeMap<u64, Entry>,
    bytes: usize,
    large_bytes: usize,
    unfinished: HashMap<IpAddr, usize>,
    total_unfinished: usize,
}

#[derive(Debug)]
struct Entry {
    peer: IpAddr,
    since: Instant,
    bytes: usize,
    stage: Stage,
    /// Cancelled to evict the request.
    evict: CancellationToken,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Its body is not complete.
    Receiving,
    /// It waits for its decision, or is decided.
    Complete,
    /// Its response is not sent completely.
    Sending,
}

/// Error of a body for which there is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoRoom;

/// A request, counted for as long as this exists.
#[derive(Debug)]
pub struct HeldBody {
    limit: Arc<BodyLimit>,
    id: u64,
    evicted: CancellationToken,
}

impl BodyLimit {
    /// Allows so many bytes in all; large bodies may take three quarters of them.
    pub fn new(bytes: usize) -> Arc<Self> {
        Arc::new(Self { bytes, state: Mutex::default() })
    }

    /// Begins a request of `peer`. Evicts an older one where there are too many.
    pub fn begin(self: &Arc<Self>, peer: IpAddr) -> HeldBody {
        let evicted = CancellationToken::new();
        let mut state = self.lock();
        if state.unfinished.get(&peer).is_some_and(|count| *count >= MAX_UNFINISHED_PER_PEER) {
            state.evict_oldest(|entry| entry.peer == peer && entry.stage == Stage::Receiving);
        } else if state.total_unfinished >= MAX_UNFINISHED {
            let most = state.unfinished.iter().max_by_key(|(_, count)| **count).map(|(peer, _)| *peer);
            state.evict_oldest(|entry| Some(entry.peer) == most && entry.stage == Stage::Receiving);
        }
        let id = state.next;
        state.next += 1;
        *state.unfinished.entry(peer).or_default() += 1;
        state.total_unfinished += 1;
        let (since, evict) = (Instant::now(), evicted.clone());
        state.entries.insert(id, Entry { peer, since, bytes: 0, stage: Stage::Receiving, evict });
        drop(state);
        HeldBody { limit: Arc::clone(self), id, evicted }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HeldBody {
    /// Waits until the request is evicted.
    pub async fn evicted(&self) {
        self.evicted.cancelled().await;
    }

    /// Sets the size of the body, or of the response.
    ///
    /// # Errors
    /// There is no room for it.
    pub fn resize(&self, bytes: usize) -> Result<(), NoRoom> {
        let mut state = self.limit.lock();
        while let Some(large_only) = state.excess(self.id, bytes, self.limit.bytes) {
            state.evict_for_bytes(self.id, large_only)?;
        }
        state.set_bytes(self.id, bytes);
        Ok(())
    }

    /// The body is complete: from now on the request keeps its place.
    pub fn complete(&self) {
        self.limit.lock().set_stage(self.id, Stage::Complete);
    }

    /// The response of `bytes` waits for the client, whose connection is closed by `close` to evict it.
    pub fn send(&self, bytes: usize, close: CancellationToken) {
        let mut state = self.limit.lock();
        state.set_stage(self.id, Stage::Sending);
        if let Some(entry) = state.entries.get_mut(&self.id) {
            (entry.since, entry.evict) = (Instant::now(), close);
        }
        state.set_bytes(self.id, bytes);
    }
}

impl Drop for HeldBody {
    fn drop(&mut self) {
        self.limit.lock().remove(self.id);
    }
}

impl State {
    /// Returns whether `bytes` for this entry are too many; if so, whether only for large bodies.
    fn excess(&self, id: u64, bytes: usize, limit: usize) -> Option<bool> {
        let known = self.entries.get(&id).map_or(0, |entry| entry.bytes);
        let all = self.bytes - known + bytes;
        let large = self.large_bytes - large_part(known) + large_part(bytes);
        if large > limit / 4 * 3 { Some(true) } else { (all > limit).then_some(false) }
    }

    /// Evicts the oldest unfinished request with a body of the client that has most bytes in such.
    fn evict_for_bytes(&mut self, own: u64, large_only: bool) -> Result<(), NoRoom> {
        let now = Instant::now();
        let is_candidate = |id: u64, entry: &Entry| {
            let bytes = if large_only { large_part(entry.bytes) } else { entry.bytes };
            id != own && bytes > 0 && entry.stage != Stage::Complete && now.duration_since(entry.since) >= EVICTION_AGE
        };
        let mut held: HashMap<IpAddr, usize> = HashMap::new();
        for entry in self.entries.iter().filter(|(id, entry)| is_candidate(**id, entry)).map(|(_, entry)| entry) {
            *held.entry(entry.peer).or_default() += entry.bytes;
        }
        let most = held.into_iter().max_by_key(|(_, bytes)| *bytes).map(|(peer, _)| peer).ok_or(NoRoom)?;
        let mut entries = self.entries.iter();
        let found = entries.find(|(id, entry)| entry.peer == most && is_candidate(**id, entry));
        let id = *found.ok_or(NoRoom)?.0;
        self.evict(id);
        Ok(())
    }

    fn evict_oldest(&mut self, matches: impl Fn(&Entry) -> bool) {
        if let Some(id) = self.entries.iter().find(|(_, entry)| matches(entry)).map(|(id, _)| *id) {
            self.evict(id);
        }
    }

    /// The request ends soon; what it holds is free at once.
    fn evict(&mut self, id: u64) {
        if let Some(entry) = self.entries.get(&id) {
            entry.evict.cancel();
        }
        self.remove(id);
    }

    fn set_bytes(&mut self, id: u64, bytes: usize) {
        if let Some(entry) = self.entries.get_mut(&id) {
            self.bytes = self.bytes - entry.bytes + bytes;
            self.large_bytes = self.large_bytes - large_part(entry.bytes) + large_part(bytes);
            entry.bytes = bytes;
        }
    }

    fn set_stage(&mut self, id: u64, stage: Stage) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let before = std::mem::replace(&mut entry.stage, stage);
        let peer = entry.peer;
        if before == Stage::Receiving {
            self.end_unfinished(peer);
        }
    }

    fn remove(&mut self, id: u64) {
        self.set_bytes(id, 0);
        let Some(entry) = self.entries.remove(&id) else { return };
        if entry.stage == Stage::Receiving {
            self.end_unfinished(entry.peer);
        }
    }

    fn end_unfinished(&mut self, peer: IpAddr) {
        self.total_unfinished -= 1;
        if let Some(count) = self.unfinished.get_mut(&peer) {
            *count -= 1;
            if *count == 0 {
                self.unfinished.remove(&peer);
            }
        }
    }
}

/// Returns what counts towards the share of large bodies.
const fn large_part(bytes: usize) -> usize {
    if bytes > LARGE_BODY { bytes } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    #[test]
    fn oldest_unfinished_request_of_a_peer_makes_room() {
        let limit = BodyLimit::new(1 << 20);
        let held: Vec<_> = (0..MAX_UNFINISHED_PER_PEER).map(|_| limit.begin(peer(1))).collect();
        held[0].complete();
        let other = limit.begin(peer(2));
        assert!(held.iter().all(|held| !held.evicted.is_cancelled()), "the complete one does not count");
        let more = [limit.begin(peer(1)), limit.begin(peer(1))];
        let evicted: Vec<_> = (0..held.len()).filter(|index| held[*index].evicted.is_cancelled()).collect();
        assert_eq!(evicted, [1]);
        assert!(!other.evicted.is_cancelled());
        drop((held, other, more));
        let state = limit.lock();
        assert_eq!((state.total_unfinished, state.bytes, state.unfinished.len(), state.entries.len()), (0, 0, 0, 0));
    }

    #[test]
    fn large_bodies_leave_bytes_to_small_ones() {
        let limit = BodyLimit::new(1 << 20);
        let large = limit.begin(peer(1));
        assert_eq!(large.resize(768 << 10), Ok(()));
        large.complete();
        let more = limit.begin(peer(1));
        assert_eq!(more.resize(LARGE_BODY + 1), Err(NoRoom));
        let small: Vec<_> = (0..4).map(|_| limit.begin(peer(1))).collect();
        for held in &small {
            assert_eq!(held.resize(LARGE_BODY), Ok(()));
        }
        assert_eq!(limit.begin(peer(1)).resize(1), Err(NoRoom));
        drop(large);
        assert_eq!(more.resize(LARGE_BODY + 1), Ok(()));
    }

    #[test]
    fn stalled_bodies_and_unread_responses_make_room() {
        let limit = BodyLimit::new(1 << 20);
        let (stalled, unread, close) = (limit.begin(peer(1)), limit.begin(peer(2)), CancellationToken::new());
        stalled.resize(400 << 10).unwrap();
        unread.send(300 << 10, close.clone());
        let honest = limit.begin(peer(3));
        assert_eq!(honest.resize(400 << 10), Err(NoRoom), "they may be about to end");
        std::thread::sleep(EVICTION_AGE);
        assert_eq!(honest.resize(400 << 10), Ok(()));
        assert!(stalled.evicted.is_cancelled() && !close.is_cancelled());
        assert_eq!(honest.resize(700 << 10), Ok(()));
        assert!(close.is_cancelled());
    }
}
