//! TCP listeners that reply to every connection with its [`ConnectionInfo`].

use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

use crate::error::LabError;
use crate::serve::Server;
use crate::user::User;
use crate::{ConnectionInfo, Netns};

/// TCP listeners of both families on ports of a namespace; they stop when the value is dropped.
pub struct TcpEcho {
    _server: Server,
}

impl TcpEcho {
    /// Listens as `user`. Connections are accepted when this returns.
    pub fn start(netns: &Netns, user: User, ports: &[u16]) -> Result<Self, LabError> {
        Ok(Self { _server: Server::start(netns, user, ports, reply)? })
    }

    /// Like [`start`](Self::start), for TPROXY: accepts connections to any address.
    pub fn start_transparent(netns: &Netns, user: User, ports: &[u16]) -> Result<Self, LabError> {
        Ok(Self { _server: Server::start_transparent(netns, user, ports, reply)? })
    }
}

fn reply(mut stream: TcpStream, port: u16) {
    if let Ok(info) = ConnectionInfo::from_stream(&stream) {
        // Errors are left to the client.
        let _ = stream.set_write_timeout(Some(Duration::from_secs(1)));
        let _ = writeln!(stream, "{}", ConnectionInfo { port, ..info });
    }
}
