//! A passthrough proxy in place of Envoy: takes what is redirected to 15001 and 15006 and carries it on to where it was going,
//! inbound connections from 127.0.0.6 or ::6, as Envoy's `InboundPassthroughCluster` does.

use std::io::{self, PipeReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::dial::{self, connect};
use crate::error::LabError;
use crate::serve::{self, Stop};
use crate::sighting::{canonical, original_dst};
use crate::{Netns, User};

/// Where outbound connections are redirected to.
pub const OUTBOUND: u16 = 15001;
/// Where inbound connections are redirected to.
pub const INBOUND: u16 = 15006;

/// Longest silence on a connection that is carried on.
const IDLE: Duration = Duration::from_secs(30);

/// How many connections arrived.
#[derive(Debug, Default)]
pub struct Counters {
    outbound: AtomicU64,
    inbound: AtomicU64,
}

impl Counters {
    /// Connections that arrived on 15001.
    pub fn outbound(&self) -> u64 {
        self.outbound.load(Ordering::Relaxed)
    }

    /// Connections that arrived on 15006.
    pub fn inbound(&self) -> u64 {
        self.inbound.load(Ordering::Relaxed)
    }
}

/// The proxy; stopped by being dropped. Connections under way end with their peers.
pub struct Proxy {
    counters: Arc<Counters>,
    stop: Option<Stop>,
    // That the thread can enter and take on the user was seen when the ports were bound.
    thread: Option<JoinHandle<Result<Result<(), LabError>, LabError>>>,
}

impl Proxy {
    /// Starts it in a namespace, as `user`, which has to be the user that the rules take for the proxy's.
    ///
    /// # Errors
    /// When one of its ports is taken.
    pub fn start(netns: &Netns, user: User) -> Result<Self, LabError> {
        let listeners = serve::bind(netns, user, &[OUTBOUND, INBOUND], false)?;
        let (stop, stopped) = serve::stop()?;
        let counters = Arc::new(Counters::default());
        let counted = Arc::clone(&counters);
        let thread = netns.spawn("proxy", move || {
            // The ids pass on to the threads that carry connections.
            user.assume().map(|()| run(&listeners, &stopped, &counted))
        })?;
        Ok(Self { counters, stop: Some(stop), thread: Some(thread) })
    }

    /// How many connections arrived so far.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(listeners: &[TcpListener], stopped: &PipeReader, counters: &Counters) {
    serve::accept(listeners, stopped, |stream, port| {
        let inbound = port == INBOUND;
        let counter = if inbound { &counters.inbound } else { &counters.outbound };
        counter.fetch_add(1, Ordering::Relaxed);
        // A connection that cannot be carried on is closed; that is the whole answer.
        let _ = thread::Builder::new().name("carry".to_owned()).spawn(move || carry(&stream, inbound));
    });
}

/// Carries one connection on to where it was going.
fn carry(downstream: &TcpStream, inbound: bool) -> io::Result<()> {
    let to = original_dst(downstream).ok_or(io::ErrorKind::AddrNotAvailable)?;
    // Called directly, not redirected: carrying it on would come back here for ever.
    if to == canonical(downstream.local_addr()?) {
        return Ok(());
    }
    let upstream = connect(inbound.then(|| passthrough_source(to)), to, dial::BOUND)?;
    for stream in [downstream, &upstream] {
        stream.set_read_timeout(Some(IDLE))?;
        stream.set_write_timeout(Some(IDLE))?;
    }
    thread::scope(|scope| {
        scope.spawn(|| pump(downstream, &upstream));
        pump(&upstream, downstream);
    });
    Ok(())
}

/// Source address that tells the rules "this is the proxy on its way to the application".
fn passthrough_source(to: SocketAddr) -> IpAddr {
    match to {
        SocketAddr::V4(_) => Ipv4Addr::new(127, 0, 0, 6).into(),
        SocketAddr::V6(_) => Ipv6Addr::from(6).into(),
    }
}

/// Copies one direction until its end, and passes the end on.
fn pump(mut from: &TcpStream, mut to: &TcpStream) {
    let ended_well = io::copy(&mut from, &mut to).is_ok();
    let _ = to.shutdown(if ended_well { Shutdown::Write } else { Shutdown::Both });
}
