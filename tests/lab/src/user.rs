//! Users and groups of sockets.

use std::io;

use nix::unistd::{Gid, Uid, setfsgid, setfsuid, setgroups, setresgid, setresuid};

use crate::error::{LabError, OperationContext};

/// User and group of a socket.
///
/// iptables (`xt_owner`) and nf_tables (`meta skuid`, `skgid`) match the *file-system* ids of the thread that opened the socket. Unlike the ids
/// that `setuid(2)` of the C library changes, they belong to one thread, so a thread can be another user while the process stays root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

impl User {
    /// Root.
    pub const ROOT: Self = Self { uid: 0, gid: 0 };
    /// The proxy, with Istio's default ids.
    pub const PROXY: Self = Self { uid: 1337, gid: 1337 };

    /// Creates a user whose gid equals its uid.
    pub const fn with_id(id: u32) -> Self {
        Self { uid: id, gid: id }
    }

    /// Makes the calling thread this user for sockets that it opens, and for threads that it starts.
    pub fn assume_on_thread(self) -> Result<(), LabError> {
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        // These calls return only the previous id, so the second ones check the first.
        setfsgid(gid);
        setfsuid(uid);
        if setfsgid(gid) == gid && setfsuid(uid) == uid {
            Ok(())
        } else {
            Err(LabError::new(format!("become uid {uid} gid {gid}"), io::Error::from(io::ErrorKind::PermissionDenied)))
        }
    }

    /// Makes the process this user, without supplementary groups. Must be called before it starts threads.
    pub fn switch_process(self) -> Result<(), LabError> {
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        setgroups(&[])
            .and_then(|()| setresgid(gid, gid, gid))
            .and_then(|()| setresuid(uid, uid, uid))
            .operation(|| format!("become uid {uid} gid {gid}"))
    }
}
