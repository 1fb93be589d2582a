//! Accepting connections on several sockets until told to stop.

use std::io::{self, PipeReader, PipeWriter};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::thread::{self, JoinHandle};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::SockRef;

use crate::Netns;
use crate::error::{During, LabError};
use crate::user::User;

/// Listeners on some ports of a namespace, both families; stopped by being dropped.
pub struct Server {
    stop: Option<Stop>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens as `user` and hands every connection to `handle`, with the port of its listener, one after the other, on a thread that
    /// is in no namespace of ours. The listeners are there when this returns.
    ///
    /// # Errors
    /// When a port is taken.
    pub fn start(
        netns: &Netns,
        user: User,
        ports: &[u16],
        handle: impl FnMut(TcpStream, u16) + Send + 'static,
    ) -> Result<Self, LabError> {
        Self::on(bind(netns, user, ports, false)?, netns, handle)
    }

    /// The same with listeners that take connections to any address (`IP_TRANSPARENT`), which TPROXY needs.
    ///
    /// # Errors
    /// When a port is taken.
    pub fn start_transparent(
        netns: &Netns,
        user: User,
        ports: &[u16],
        handle: impl FnMut(TcpStream, u16) + Send + 'static,
    ) -> Result<Self, LabError> {
        Self::on(bind(netns, user, ports, true)?, netns, handle)
    }

    fn on(
        listeners: Vec<TcpListener>,
        netns: &Netns,
        handle: impl FnMut(TcpStream, u16) + Send + 'static,
    ) -> Result<Self, LabError> {
        let (stop, stopped) = stop()?;
        let thread = thread::Builder::new()
            .name(format!("server@{}", netns.name()))
            .spawn(move || accept(&listeners, &stopped, handle))
            .during(|| format!("server thread for {}", netns.name()))?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Tells a server to stop by being dropped.
pub(crate) struct Stop {
    _writer: PipeWriter,
}

/// Binds dual-stack sockets to ports of a namespace, as a user.
pub(crate) fn bind(netns: &Netns, user: User, ports: &[u16], transparent: bool) -> Result<Vec<TcpListener>, LabError> {
    let bind = |port: u16| -> Result<TcpListener, LabError> {
        let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        let listener = TcpListener::bind(address).during(|| format!("listening on port {port} in {}", netns.name()))?;
        if transparent {
            // Of either family: the socket is of both.
            let socket = SockRef::from(&listener);
            socket
                .set_ip_transparent_v6(true)
                .and_then(|()| socket.set_ip_transparent_v4(true))
                .during(|| format!("taking connections to any address on port {port}"))?;
        }
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
pub(crate) fn accept(listeners: &[TcpListener], stopped: &PipeReader, mut handle: impl FnMut(TcpStream, u16)) {
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
            let port = listener.local_addr().map_or(0, |address| address.port());
            // Nothing there, or a client that is gone already.
            while let Ok((stream, _)) = listener.accept() {
                // Linux does not pass O_NONBLOCK on to accepted sockets; other handlers must not depend on that.
                if stream.set_nonblocking(false).is_ok() {
                    handle(stream, port);
                }
            }
        }
    }
}
