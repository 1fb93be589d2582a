//! Connections to listeners that answer with a [`Sighting`].

use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use crate::error::LabError;
use crate::{Netns, Sighting, User};

/// Bound of one connection, from SYN to answer. Everything happens on one machine; this is for what must *not* be answered.
pub const BOUND: Duration = Duration::from_secs(2);

/// A connection to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dial {
    /// Who connects.
    pub user: User,
    /// Source address, where it matters.
    pub from: Option<IpAddr>,
    /// Destination. A link-local IPv6 address needs its scope.
    pub to: SocketAddr,
}

impl Dial {
    /// A connection of `user` to `to`.
    pub fn new(user: User, to: SocketAddr) -> Self {
        Self { user, from: None, to }
    }

    /// The same from a source address.
    #[must_use]
    pub fn from(self, from: IpAddr) -> Self {
        Self { from: Some(from), ..self }
    }

    /// Connects inside the namespace and reads the listener's answer.
    ///
    /// # Errors
    /// The outer error when the attempt could not be made, the inner one is the network's answer: refused, timed out, reset ...
    pub fn go(&self, netns: &Netns) -> Result<io::Result<Sighting>, LabError> {
        netns.run_as(self.user, || self.now())
    }

    /// Connects from the calling thread, which has to be in the right namespace and the right user already.
    ///
    /// # Errors
    /// The network's answer.
    pub fn now(&self) -> io::Result<Sighting> {
        let mut answer = String::new();
        connect(self.from, self.to, BOUND)?.take(1024).read_to_string(&mut answer)?;
        answer.trim_end().parse().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }
}

impl Dial {
    /// Sends a datagram inside the namespace and waits for the answer. Only an answer from the very address that was called counts:
    /// redirection has to be undone on the way back.
    ///
    /// # Errors
    /// The outer error when the attempt could not be made, the inner one is the network's answer.
    pub fn datagram(&self, netns: &Netns) -> Result<io::Result<Sighting>, LabError> {
        netns.run_as(self.user, || {
            let unspecified: IpAddr =
                if self.to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
            let socket = UdpSocket::bind(SocketAddr::new(self.from.unwrap_or(unspecified), 0))?;
            socket.connect(self.to)?;
            socket.set_read_timeout(Some(BOUND))?;
            socket.send(b"?")?;
            let mut answer = [0; 1024];
            let length = socket.recv(&mut answer)?;
            let answer = answer.get(..length).map(String::from_utf8_lossy).unwrap_or_default();
            answer.trim_end().parse().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
        })
    }
}

/// Connects from the calling thread's namespace, with `bound` for the handshake and for each read and write after it.
///
/// # Errors
/// The network's answer.
pub fn connect(from: Option<IpAddr>, to: SocketAddr, bound: Duration) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    if let Some(from) = from {
        socket.bind(&SocketAddr::new(from, 0).into())?;
    }
    socket.connect_timeout(&to.into(), bound)?;
    socket.set_read_timeout(Some(bound))?;
    socket.set_write_timeout(Some(bound))?;
    Ok(socket.into())
}
