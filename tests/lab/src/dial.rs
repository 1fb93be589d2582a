//! Connections to listeners that reply with a [`ConnectionInfo`].

use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use crate::error::LabError;
use crate::{ConnectionInfo, Netns, User};

/// Timeout of one connection, from SYN to reply, also on a busy machine.
pub const TIMEOUT: Duration = Duration::from_secs(10);

/// A connection to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dial {
    /// User that connects.
    pub user: User,
    /// Source address; `None` for any.
    pub from: Option<IpAddr>,
    /// Destination. A link-local IPv6 address needs a scope.
    pub to: SocketAddr,
}

impl Dial {
    /// Creates a connection of `user` to `to`, from any address.
    pub fn new(user: User, to: SocketAddr) -> Self {
        Self { user, from: None, to }
    }

    /// Sets the source address.
    #[must_use]
    pub fn from(self, from: IpAddr) -> Self {
        Self { from: Some(from), ..self }
    }

    /// Connects in the namespace and reads the reply of the listener.
    ///
    /// # Errors
    /// The outer error means that no connection was tried; the inner one is the result: refused, timed out, reset ...
    pub fn connect_in(&self, netns: &Netns) -> Result<io::Result<ConnectionInfo>, LabError> {
        netns.run_as(self.user, || self.connect())
    }

    /// Connects from the calling thread, in its namespace and as its user.
    pub fn connect(&self) -> io::Result<ConnectionInfo> {
        let mut reply = String::new();
        tcp_connect(self.from, self.to, TIMEOUT)?.take(1024).read_to_string(&mut reply)?;
        reply.trim_end().parse().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    /// Sends a datagram in the namespace and waits for the reply, which must come from the destination: redirection has to be undone on the
    /// way back.
    ///
    /// # Errors
    /// As [`connect_in`](Self::connect_in).
    pub fn send_datagram_in(&self, netns: &Netns) -> Result<io::Result<ConnectionInfo>, LabError> {
        netns.run_as(self.user, || {
            let unspecified: IpAddr =
                if self.to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
            let socket = UdpSocket::bind(SocketAddr::new(self.from.unwrap_or(unspecified), 0))?;
            socket.connect(self.to)?;
            socket.set_read_timeout(Some(TIMEOUT))?;
            socket.send(b"?")?;
            let mut reply = [0; 1024];
            let length = socket.recv(&mut reply)?;
            let reply = reply.get(..length).map(String::from_utf8_lossy).unwrap_or_default();
            reply.trim_end().parse().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
        })
    }
}

/// Connects from the calling thread. The timeout applies to the handshake and to each later read and write.
pub fn tcp_connect(from: Option<IpAddr>, to: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    if let Some(from) = from {
        socket.bind(&SocketAddr::new(from, 0).into())?;
    }
    socket.connect_timeout(&to.into(), timeout)?;
    socket.set_read_timeout(Some(timeout))?;
    socket.set_write_timeout(Some(timeout))?;
    Ok(socket.into())
}
