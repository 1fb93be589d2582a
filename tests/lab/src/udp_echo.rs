//! UDP sockets that reply to every datagram with its [`ConnectionInfo`].

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::thread::{self, JoinHandle};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::connection_info::canonical;
use crate::error::{LabError, OperationContext};
use crate::serve::{self, StopSignal};
use crate::{ConnectionInfo, Netns, User};

/// UDP sockets on addresses of a namespace; they stop when the value is dropped.
///
/// Each is bound to one address, so that replies are sent from the address that was called.
pub struct UdpEcho {
    stop: Option<StopSignal>,
    thread: Option<JoinHandle<()>>,
}

impl UdpEcho {
    /// Listens as `user`. Datagrams are received when this returns.
    pub fn start(netns: &Netns, user: User, addresses: &[SocketAddr]) -> Result<Self, LabError> {
        let bind = |address: &SocketAddr| {
            let socket = UdpSocket::bind(address).and_then(|socket| socket.set_nonblocking(true).map(|()| socket));
            socket.operation(|| format!("bind UDP socket to {address} in {}", netns.name()))
        };
        let sockets: Vec<UdpSocket> = netns.run_as(user, || addresses.iter().map(bind).collect::<Result<_, _>>())??;
        let (stop, stopped) = serve::stop_signal()?;
        let thread = thread::Builder::new()
            .name(format!("udp-echo@{}", netns.name()))
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
                    sockets.iter().for_each(reply_all);
                }
            })
            .operation(|| format!("start the UDP thread for {}", netns.name()))?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for UdpEcho {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn reply_all(socket: &UdpSocket) {
    let Ok(local) = socket.local_addr().map(canonical) else { return };
    let mut datagram = [0; 64];
    while let Ok((_, peer)) = socket.recv_from(&mut datagram) {
        // There is no original destination for datagrams.
        let info = ConnectionInfo { port: local.port(), local, original_dst: None, peer: canonical(peer) };
        let _ = socket.send_to(info.to_string().as_bytes(), peer);
    }
}
