//! The open connections of a port, and which of them is closed when another one needs its place.
//!
//! Whoever opens connections and leaves them idle must not keep others out, least of all probes. So a full port closes the connection
//! that has been idle for longest among those of the client that has most; one with a complete request keeps its place. Waiting for a
//! place is limited as well, for each client, so that the connections of a flood do not stand in line before those of others.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// Idle time after which a connection may be closed to make room. The newest ones are closed last, so this only bounds how fast a flood of
/// connections replaces itself; a probe waits for it at most once.
const REAP_AGE: Duration = Duration::from_millis(50);

/// The open connections.
#[derive(Debug)]
pub(super) struct ConnectionTable {
    max: usize,
    max_per_peer: usize,
    open: Mutex<Open>,
    freed: Notify,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    connections: HashMap<u64, Arc<ConnectionState>>,
    peers: HashMap<IpAddr, usize>,
    /// Connections of a client that wait for a place.
    waiting: HashMap<IpAddr, usize>,
}

/// Activity of a connection, and the signal that ends it.
#[derive(Debug)]
pub(super) struct ConnectionState {
    peer: IpAddr,
    requests: Mutex<Requests>,
    /// Cancelled to close the connection.
    pub(super) close: CancellationToken,
}

#[derive(Debug)]
struct Requests {
    in_flight: usize,
    /// Requests in flight whose body is complete.
    complete: usize,
    /// When the connection, or a request of it, last began or got further.
    last: Instant,
    /// When the connection counts as idle, if there is no request.
    idle_at: Instant,
}

/// The place of a connection, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    table: Arc<ConnectionTable>,
    id: u64,
    pub(super) state: Arc<ConnectionState>,
}

enum Admission {
    Admitted(Place),
    /// Try again then, or when a place is free.
    Wait(Duration),
    WaitForPlace,
    /// The client has all its places in use.
    Refused,
}

impl ConnectionTable {
    pub(super) fn new(max: usize, max_per_peer: usize) -> Arc<Self> {
        Arc::new(Self { max, max_per_peer, open: Mutex::default(), freed: Notify::new() })
    }

    /// Waits for a place; `None` if the client has too many connections that are all in use, or that wait as well.
    pub(super) async fn admit(self: &Arc<Self>, peer: IpAddr, first_request_by: Instant) -> Option<Place> {
        let peer = peer_key(peer);
        let _waiting = Waiting::new(self, peer)?;
        loop {
            match self.try_admit(peer, first_request_by) {
                Admission::Admitted(place) => return Some(place),
                Admission::Refused => return None,
                Admission::Wait(time) => {
                    tokio::select! {
                        () = sleep(time) => {}
                        () = self.freed.notified() => {}
                    }
                }
                Admission::WaitForPlace => {
                    tokio::select! {
                        // A connection that is in use now may become idle.
                        () = sleep(REAP_AGE) => {}
                        () = self.freed.notified() => {}
                    }
                }
            }
        }
    }

    fn try_admit(self: &Arc<Self>, peer: IpAddr, first_request_by: Instant) -> Admission {
        let mut open = self.lock();
        let of_peer = open.peers.get(&peer).is_some_and(|count| *count >= self.max_per_peer);
        if of_peer || open.connections.len() >= self.max {
            let largest = open.peers.iter().max_by_key(|(_, count)| **count).map_or(peer, |(peer, _)| *peer);
            let idlest = match open.idlest(Some(if of_peer { peer } else { largest })) {
                None if !of_peer => open.idlest(None),
                found => found,
            };
            let Some((id, since)) = idlest else {
                return if of_peer { Admission::Refused } else { Admission::WaitForPlace };
            };
            let wait = REAP_AGE.saturating_sub(since.elapsed());
            if !wait.is_zero() {
                return Admission::Wait(wait);
            }
            if let Some(state) = open.remove(id) {
                state.close.cancel();
            }
        }
        let now = Instant::now();
        let requests = Requests { in_flight: 0, complete: 0, last: now, idle_at: first_request_by };
        let state = Arc::new(ConnectionState { peer, requests: Mutex::new(requests), close: CancellationToken::new() });
        let id = open.next;
        open.next += 1;
        open.connections.insert(id, Arc::clone(&state));
        *open.peers.entry(peer).or_default() += 1;
        drop(open);
        Admission::Admitted(Place { table: Arc::clone(self), id, state })
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection that waits for a place, until it is dropped.
struct Waiting<'a> {
    table: &'a ConnectionTable,
    peer: IpAddr,
}

impl<'a> Waiting<'a> {
    /// Returns `None` if too many of the client wait already.
    fn new(table: &'a ConnectionTable, peer: IpAddr) -> Option<Self> {
        let mut open = table.lock();
        let is_full = open.waiting.values().sum::<usize>() >= table.max;
        let of_peer = open.waiting.entry(peer).or_default();
        if *of_peer >= if is_full { 1 } else { table.max_per_peer } {
            return None;
        }
        *of_peer += 1;
        drop(open);
        Some(Self { table, peer })
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut open = self.table.lock();
        if let Some(count) = open.waiting.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                open.waiting.remove(&self.peer);
            }
        }
    }
}

impl Open {
    /// Returns the connection without a complete request that has been idle for longest, of one client or of all.
    fn idlest(&self, peer: Option<IpAddr>) -> Option<(u64, Instant)> {
        let of_peer = self.connections.iter().filter(|(_, state)| peer.is_none_or(|peer| state.peer == peer));
        let idle = of_peer.filter_map(|(id, state)| {
            let requests = state.lock();
            (requests.complete == 0).then_some((*id, requests.last))
        });
        idle.min_by_key(|(_, last)| *last)
    }

    fn remove(&mut self, id: u64) -> Option<Arc<ConnectionState>> {
        let state = self.connections.remove(&id)?;
        if let Some(count) = self.peers.get_mut(&state.peer) {
            *count -= 1;
            if *count == 0 {
                self.peers.remove(&state.peer);
            }
        }
        Some(state)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(self.table.lock().remove(self.id));
        self.table.freed.notify_one();
    }
}

impl ConnectionState {
    fn lock(&self) -> MutexGuard<'_, Requests> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns when to check again for idleness; `None` if the connection is idle.
    pub(super) fn next_idle_check(&self, idle: Duration) -> Option<Instant> {
        let (now, requests) = (Instant::now(), self.lock());
        if requests.in_flight > 0 { Some(now + idle) } else { (requests.idle_at > now).then_some(requests.idle_at) }
    }

    pub(super) fn begin_request(&self) {
        let mut requests = self.lock();
        requests.in_flight += 1;
    }

    pub(super) fn complete_request(&self) {
        let mut requests = self.lock();
        requests.complete += 1;
        requests.last = Instant::now();
    }

    pub(super) fn end_request(&self, was_complete: bool, idle: Duration) {
        let (now, mut requests) = (Instant::now(), self.lock());
        requests.in_flight -= 1;
        requests.idle_at = now + idle;
        // Beginning requests without ever finishing one is not activity.
        if was_complete {
            requests.complete -= 1;
            requests.last = now;
        }
    }
}

/// Returns what counts as one client: an address, and the /64 of an IPv6 address, which one host can fill.
fn peer_key(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) if !ip.is_loopback() => Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX)).into(),
        ip => ip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn admit(table: &Arc<ConnectionTable>, last: u8) -> Place {
        let admitted = table.admit([10, 0, 0, last].into(), Instant::now()).await.unwrap();
        sleep(Duration::from_millis(1)).await;
        admitted
    }

    #[tokio::test(start_paused = true)]
    async fn full_table_closes_the_idlest_connection_of_the_largest_peer() {
        let table = ConnectionTable::new(4, 3);
        let oldest = admit(&table, 1).await;
        let hostile = [admit(&table, 2).await, admit(&table, 2).await];
        hostile[0].state.begin_request();
        hostile[0].state.complete_request();
        let _fourth = admit(&table, 3).await;
        let (_fifth, begun) = (admit(&table, 1).await, Instant::now());
        assert!(hostile[1].state.close.is_cancelled(), "not the one with a complete request");
        assert!(!oldest.state.close.is_cancelled() && !hostile[0].state.close.is_cancelled());
        assert!(begun.elapsed() <= REAP_AGE);
        hostile[0].state.end_request(true, Duration::ZERO);
        assert_eq!(table.lock().connections.len(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn peer_with_all_its_places_in_use_is_refused() {
        let table = ConnectionTable::new(4, 1);
        let busy = admit(&table, 1).await;
        busy.state.begin_request();
        busy.state.complete_request();
        assert!(table.admit([10, 0, 0, 1].into(), Instant::now()).await.is_none());
        let _other = admit(&table, 2).await;
        drop(busy);
        assert!(table.admit([10, 0, 0, 1].into(), Instant::now()).await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn flood_of_one_client_does_not_delay_another() {
        let table = ConnectionTable::new(8, 4);
        let flood = || {
            let table = Arc::clone(&table);
            async move { table.admit([10, 0, 0, 1].into(), Instant::now()).await.is_some() }
        };
        let mut held = Vec::new();
        for _ in 0..4 {
            held.push(table.admit([10, 0, 0, 1].into(), Instant::now()).await.unwrap());
        }
        let flood: Vec<_> = (0..100).map(|_| tokio::spawn(flood())).collect();
        tokio::task::yield_now().await;
        assert_eq!(table.lock().waiting[&IpAddr::from([10, 0, 0, 1])], 4, "the others are refused");
        let begun = Instant::now();
        assert!(table.admit([10, 0, 0, 2].into(), Instant::now()).await.is_some());
        assert!(begun.elapsed() <= REAP_AGE);
        drop(held);
        for connection in flood {
            connection.await.unwrap();
        }
        assert!(table.lock().waiting.is_empty());
    }

    #[test]
    fn hosts_of_an_ipv6_network_are_one_client() {
        let key = |text: &str| peer_key(text.parse().unwrap()).to_string();
        assert_eq!((key("2001:db8::1:2:3:4").as_str(), key("::ffff:10.0.0.1").as_str()), ("2001:db8::", "10.0.0.1"));
        assert_eq!(key("::1"), "::1");
    }
}
