//! Forwards a port of the node's loopback to the same port of the test's loopback.

use std::io;
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Context as _;
use weir_kernel::netns;

/// A forwarded port, until it is dropped. Open connections go on.
#[derive(Debug)]
pub struct PortForward {
    stop: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
}

impl PortForward {
    /// Forwards `port` of 127.0.0.1 in the network namespace at `netns`. The target port need not be open yet.
    pub(super) fn start(netns: &Path, port: u16) -> anyhow::Result<Self> {
        let listener = netns::run_in(netns, || TcpListener::bind((Ipv4Addr::LOCALHOST, port)))?
            .with_context(|| format!("cannot listen on port {port} of the node"))?;
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

impl Drop for PortForward {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // The thread polls the flag.
        let _ = self.accepting.take().map(JoinHandle::join);
    }
}

/// Joins a connection with a new one to the target port; both are closed together. If the target port is closed, so is the connection.
fn join(inside: TcpStream, port: u16) {
    let Ok(outside) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) else { return };
    let directions = [(inside.try_clone(), outside.try_clone()), (Ok(outside), Ok(inside))];
    for (from, to) in directions {
        let (Ok(mut from), Ok(mut to)) = (from, to) else { return };
        thread::spawn(move || {
            // However copying ends, both connections are closed.
            let _: io::Result<u64> = from.set_nonblocking(false).and_then(|()| io::copy(&mut from, &mut to));
            let _ = (to.shutdown(Shutdown::Both), from.shutdown(Shutdown::Both));
        });
    }
}
