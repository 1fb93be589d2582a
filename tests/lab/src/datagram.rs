//! UDP sockets that answer every datagram with one line: what they saw of it.

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::thread::{self, JoinHandle};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::error::{During, LabError};
use crate::serve::{self, Stop};
use crate::sighting::canonical;
use crate::{Netns, Sighting, User};

/// UDP sockets on some addresses of a namespace; stopped by being dropped.
///
/// They are bound to addresses and not to a port of all of them, so that an answer leaves from the address that was called.
pub struct Datagrams {
    stop: Option<Stop>,
    thread: Option<JoinHandle<()>>,
}

impl Datagrams {
    /// Listens as `user`. The sockets are there when this returns.
    ///
    /// # Errors
    /// When an address is taken or not there.
    pub fn start(netns: &Netns, user: User, addresses: &[SocketAddr]) -> Result<Self, LabError> {
        let bind = |address: &SocketAddr| {
            let socket = UdpSocket::bind(address).and_then(|socket| socket.set_nonblocking(true).map(|()| socket));
            socket.during(|| format!("UDP socket on {address} in {}", netns.name()))
        };
        let sockets: Vec<UdpSocket> = netns.run_as(user, || addresses.iter().map(bind).collect::<Result<_, _>>())??;
        let (stop, stopped) = serve::stop()?;
        let thread = thread::Builder::new()
            .name(format!("datagrams@{}", netns.name()))
            .spawn(move || {
                loop {
                    let mut watched = vec![PollFd::new(stopped.as_fd(), PollFlags::POLLIN)];
                    watched.extend(sockets.iter().map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN)));
                    match poll(&mut watched, PollTimeout::NONE) {
                        Ok(_) | Err(Errno::EINTR) => {}
                        Err(_) => return,
                    }
                    if watched.first().is_some_and(|pipe| pipe.any().unwrap_or(true)) {
                        return;
                    }
                    sockets.iter().for_each(answer_all);
                }
            })
            .during(|| format!("datagram thread for {}", netns.name()))?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Datagrams {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn answer_all(socket: &UdpSocket) {
    let Ok(local) = socket.local_addr().map(canonical) else { return };
    let mut datagram = [0; 64];
    while let Ok((_, peer)) = socket.recv_from(&mut datagram) {
        // The kernel does not tell the original destination of a datagram.
        let seen = Sighting { port: local.port(), local, original_dst: None, peer: canonical(peer) };
        let _ = socket.send_to(seen.to_string().as_bytes(), peer);
    }
}
