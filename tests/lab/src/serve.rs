//! Accepts connections on several sockets until it is stopped.

use std::io::{self, PipeReader, PipeWriter};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::thread::{self, JoinHandle};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::SockRef;

use crate::Netns;
use crate::error::{LabError, OperationContext};
use crate::user::User;

/// Listeners of both families on ports of a namespace; they stop when the value is dropped.
pub struct Server {
    stop: Option<StopSignal>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens as `user`, and calls `handle` for one connection after the other, with the port of the listener, on a thread outside of the
    /// namespace. Connections are accepted when this returns.
    pub fn start(
        netns: &Netns,
        user: User,
        ports: &[u16],
        handle: impl FnMut(TcpStream, u16) + Send + 'static,
    ) -> Result<Self, LabError> {
        Self::on(bind(netns, user, ports, false)?, netns, handle)
    }

    /// Like [`start`](Self::start), but accepts connections to any address (`IP_TRANSPARENT`), as TPROXY requires.
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
        let (stop, stopped) = stop_signal()?;
        let thread = thread::Builder::new()
            .name(format!("server@{}", netns.name()))
            .spawn(move || accept(&listeners, &stopped, handle))
            .operation(|| format!("start the server thread for {}", netns.name()))?;
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

/// Stops a server when it is dropped.
pub(crate) struct StopSignal {
    _writer: PipeWriter,
}

/// Binds dual-stack sockets to ports of a namespace.
pub(crate) fn bind(netns: &Netns, user: User, ports: &[u16], transparent: bool) -> Result<Vec<TcpListener>, LabError> {
    let bind = |port: u16| -> Result<TcpListener, LabError> {
        let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        let listener = TcpListener::bind(address).operation(|| format!("listen on port {port} in {}", netns.name()))?;
        if transparent {
            // For both families of the socket.
            let socket = SockRef::from(&listener);
            socket
                .set_ip_transparent_v6(true)
                .and_then(|()| socket.set_ip_transparent_v4(true))
                .operation(|| format!("set IP_TRANSPARENT on port {port}"))?;
        }
        listener.set_nonblocking(true).operation(|| format!("listen on port {port}"))?;
        Ok(listener)
    };
    netns.run_as(user, || ports.iter().copied().map(bind).collect())?
}

/// Creates a stop signal, and the reader that servers poll.
pub(crate) fn stop_signal() -> Result<(StopSignal, PipeReader), LabError> {
    let (reader, writer) = io::pipe().operation(|| "create a pipe".to_owned())?;
    Ok((StopSignal { _writer: writer }, reader))
}

/// Calls `handle` for every connection until the stop signal is dropped.
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
            // An error means that there is no connection, or that it was closed already.
            while let Ok((stream, _)) = listener.accept() {
                // Accepted sockets do not inherit O_NONBLOCK on Linux, but do on other systems.
                if stream.set_nonblocking(false).is_ok() {
                    handle(stream, port);
                }
            }
        }
    }
}
