//! A port on the node's loopback that leads to the same port of this process' own: to a server of the test.

use std::io;
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Context as _;
use weir_kernel::netns;

/// A forwarded port, until it is dropped; connections that are open then go on.
#[derive(Debug)]
pub struct Forward {
    stop: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
}

impl Forward {
    /// Forwards `port` of 127.0.0.1 in the network namespace at `netns` to the same one here. Nobody needs to listen here yet.
    pub(super) fn start(netns: &Path, port: u16) -> anyhow::Result<Self> {
        let listener = netns::within(netns, || TcpListener::bind((Ipv4Addr::LOCALHOST, port)))?
            .with_context(|| format!("port {port} of the node"))?;
        listener.set_nonblocking(true)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let accepting = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((inside, _)) => join(inside, port),
                    Err(_) => thread::sleep(Duration::from_millis(5)),
                }
            }
        });
        Ok(Self { stop, accepting: Some(accepting) })
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // It waits for nothing but the flag.
        let _ = self.accepting.take().map(JoinHandle::join);
    }
}

/// Joins a connection with a new one to the port here; both end together. Where nobody listens, the first one is closed.
fn join(inside: TcpStream, port: u16) {
    let Ok(outside) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) else { return };
    let ways = [(inside.try_clone(), outside.try_clone()), (Ok(outside), Ok(inside))];
    for (from, to) in ways {
        let (Ok(mut from), Ok(mut to)) = (from, to) else { return };
        thread::spawn(move || {
            // However it ends, both ends hear of it.
            let _: io::Result<u64> = from.set_nonblocking(false).and_then(|()| io::copy(&mut from, &mut to));
            let _ = (to.shutdown(Shutdown::Both), from.shutdown(Shutdown::Both));
        });
    }
}
