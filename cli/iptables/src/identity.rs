//! The user and group that own a socket.

use std::fmt;
use std::io::{self, ErrorKind};

use nix::unistd::{Gid, Uid, getegid, geteuid, setfsgid, setfsuid};

/// User and group of a socket, which `xt_owner` and `meta skuid` compare: the file-system ids of the thread that created it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl Identity {
    /// Returns the identity of this thread.
    pub(crate) fn current() -> Self {
        Self { uid: geteuid().as_raw(), gid: getegid().as_raw() }
    }

    /// Gives the calling thread, and no other, this identity for the sockets that it creates.
    ///
    /// # Errors
    /// The process lacks `CAP_SETUID` or `CAP_SETGID`.
    pub(crate) fn assume(self) -> io::Result<()> {
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        // These calls return the previous id and no error, hence the second ones.
        setfsgid(gid);
        setfsuid(uid);
        if setfsgid(gid) == gid && setfsuid(uid) == uid {
            Ok(())
        } else {
            Err(io::Error::new(ErrorKind::PermissionDenied, format!("cannot become {self}")))
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "uid {} gid {}", self.uid, self.gid)
    }
}
