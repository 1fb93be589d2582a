//! Listeners that answer every connection with one line: what they saw of it.

use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

use crate::error::LabError;
use crate::serve::Server;
use crate::user::User;
use crate::{Netns, Sighting};

/// Listeners on some ports of a namespace, both families; stopped by being dropped.
pub struct Echo {
    _server: Server,
}

impl Echo {
    /// Listens as `user`. The listeners are there when this returns.
    ///
    /// # Errors
    /// When a port is taken.
    pub fn start(netns: &Netns, user: User, ports: &[u16]) -> Result<Self, LabError> {
        Ok(Self { _server: Server::start(netns, user, ports, tell)? })
    }

    /// The same with listeners for TPROXY: they take connections to any address.
    ///
    /// # Errors
    /// When a port is taken.
    pub fn start_transparent(netns: &Netns, user: User, ports: &[u16]) -> Result<Self, LabError> {
        Ok(Self { _server: Server::start_transparent(netns, user, ports, tell)? })
    }
}

fn tell(mut stream: TcpStream, port: u16) {
    if let Ok(sighting) = Sighting::of(&stream) {
        // A client that does not take its answer finds out by itself.
        let _ = stream.set_write_timeout(Some(Duration::from_secs(1)));
        let _ = writeln!(stream, "{}", Sighting { port, ..sighting });
    }
}
