//! Accepting connections on several sockets until told to stop.

use std::io::{self, PipeReader, PipeWriter};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::Netns;
use crate::error::{During, LabError};
use crate::user::User;

/// Tells a server to stop by being dropped.
pub(crate) struct Stop {
    _writer: PipeWriter,
}

/// Binds dual-stack sockets to ports of a namespace, as a user.
pub(crate) fn bind(netns: &Netns, user: User, ports: &[u16]) -> Result<Vec<TcpListener>, LabError> {
    let bind = |port: u16| -> Result<TcpListener, LabError> {
        let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        let listener = TcpListener::bind(address).during(|| format!("listening on port {port} in {}", netns.name()))?;
        listener.set_nonblocking(true).during(|| format!("listening on port {port}"))?;
        Ok(listener)
    };
    netns.run_as(user, || ports.iter().copied().map(bind).collect())?
}

/// A stop signal and the end that servers watch.
pub(crate) fn stop() -> Result<(Stop, PipeReader), LabError> {
    let (reader, writer) = io::pipe().during(|| "pipe".to_owned())?;
    Ok((Stop { _writer: writer }, reader))
}

/// Hands every connection to `handle`, until the other end of `stopped` is dropped.
pub(crate) fn accept(listeners: &[TcpListener], stopped: &PipeReader, mut handle: impl FnMut(TcpStream)) {
    loop {
        let mut watched: Vec<PollFd<'_>> = vec![PollFd::new(stopped.as_fd(), PollFlags::POLLIN)];
        watched.extend(listeners.iter().map(|listener| PollFd::new(listener.as_fd(), PollFlags::POLLIN)));
        match poll(&mut watched, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return,
        }
        if watched.first().is_some_and(|pipe| pipe.any().unwrap_or(true)) {
            return;
        }
        for listener in listeners {
            // Nothing there, or a client that is gone already.
            while let Ok((stream, _)) = listener.accept() {
                handle(stream);
            }
        }
    }
}
