//! A passthrough proxy in place of Envoy: forwards connections on ports 15001 and 15006 to their original destination, inbound ones from
//! 127.0.0.6 or ::6, as Envoy's `InboundPassthroughCluster` does.

use std::io::{self, PipeReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::connection_info::{canonical, original_dst};
use crate::dial::{self, tcp_connect};
use crate::error::LabError;
use crate::serve::{self, StopSignal};
use crate::{Netns, User};

/// Port for outbound connections.
pub const OUTBOUND: u16 = 15001;
/// Port for inbound connections.
pub const INBOUND: u16 = 15006;

/// Idle timeout of a forwarded connection.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// Numbers of accepted connections.
#[derive(Debug, Default)]
pub struct Counters {
    outbound: AtomicU64,
    inbound: AtomicU64,
}

impl Counters {
    /// Returns the number of connections on port 15001.
    pub fn outbound(&self) -> u64 {
        self.outbound.load(Ordering::Relaxed)
    }

    /// Returns the number of connections on port 15006.
    pub fn inbound(&self) -> u64 {
        self.inbound.load(Ordering::Relaxed)
    }
}

/// A proxy that stops when the value is dropped. Forwarded connections continue until a peer closes them.
pub struct Proxy {
    counters: Arc<Counters>,
    stop: Option<StopSignal>,
    // The errors are ignored: binding the ports has shown that the thread can enter the namespace and become the user.
    thread: Option<JoinHandle<Result<Result<(), LabError>, LabError>>>,
}

impl Proxy {
    /// Starts a proxy in a namespace. `user` must be the user of the proxy in the rules.
    pub fn start(netns: &Netns, user: User) -> Result<Self, LabError> {
        let listeners = serve::bind(netns, user, &[OUTBOUND, INBOUND], false)?;
        let (stop, stopped) = serve::stop_signal()?;
        let counters = Arc::new(Counters::default());
        let counted = Arc::clone(&counters);
        let thread = netns.spawn("proxy", move || {
            // Threads that forward connections inherit the ids.
            user.assume_on_thread().map(|()| run(&listeners, &stopped, &counted))
        })?;
        Ok(Self { counters, stop: Some(stop), thread: Some(thread) })
    }

    /// Returns the counters.
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
        // A connection that cannot be forwarded is closed.
        let _ = thread::Builder::new().name("forward".to_owned()).spawn(move || forward(&stream, inbound));
    });
}

/// Forwards a connection to its original destination.
fn forward(downstream: &TcpStream, inbound: bool) -> io::Result<()> {
    let to = original_dst(downstream).ok_or(io::ErrorKind::AddrNotAvailable)?;
    // The connection was not redirected; forwarding it would loop.
    if to == canonical(downstream.local_addr()?) {
        return Ok(());
    }
    let upstream = tcp_connect(inbound.then(|| passthrough_source(to)), to, dial::TIMEOUT)?;
    for stream in [downstream, &upstream] {
        stream.set_read_timeout(Some(IDLE_TIMEOUT))?;
        stream.set_write_timeout(Some(IDLE_TIMEOUT))?;
    }
    thread::scope(|scope| {
        scope.spawn(|| pump(downstream, &upstream));
        pump(&upstream, downstream);
    });
    Ok(())
}

/// Returns the source address by which the rules identify connections from the proxy to the application.
fn passthrough_source(to: SocketAddr) -> IpAddr {
    match to {
        SocketAddr::V4(_) => Ipv4Addr::new(127, 0, 0, 6).into(),
        SocketAddr::V6(_) => Ipv6Addr::from(6).into(),
    }
}

/// Copies one direction until its end, and shuts down the other side.
fn pump(mut from: &TcpStream, mut to: &TcpStream) {
    let ended_well = io::copy(&mut from, &mut to).is_ok();
    let _ = to.shutdown(if ended_well { Shutdown::Write } else { Shutdown::Both });
}
