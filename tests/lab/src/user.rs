//! Who opens a socket.

use std::io;

use nix::unistd::{Gid, Uid, setfsgid, setfsuid, setgroups, setresgid, setresuid};

use crate::error::{During, LabError};

/// User and group of a socket.
///
/// iptables (`xt_owner`) and nf_tables (`meta skuid`, `skgid`) compare the *file-system* ids of the thread that made the socket.
/// Those belong to one thread only, unlike what `setuid(2)` of the C library changes, so a thread can be another user while the rest of
/// the process stays root.
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
    /// The proxy, by Istio's default ids.
    pub const PROXY: Self = Self { uid: 1337, gid: 1337 };

    /// A user with a group of the same number.
    pub const fn of(id: u32) -> Self {
        Self { uid: id, gid: id }
    }

    /// Makes the calling thread this user for the sockets it opens from now on, and for the threads it starts.
    ///
    /// # Errors
    /// When the kernel did not take the ids, in general for want of privileges.
    pub fn assume(self) -> Result<(), LabError> {
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        // These calls report nothing but the previous id, hence the second one.
        setfsgid(gid);
        setfsuid(uid);
        if setfsgid(gid) == gid && setfsuid(uid) == uid {
            Ok(())
        } else {
            Err(LabError::new(
                format!("becoming uid {uid} gid {gid}"),
                io::Error::from(io::ErrorKind::PermissionDenied),
            ))
        }
    }

    /// Makes the whole process this user, for good and without further groups. For a process of its own, before it starts threads.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn become_for_good(self) -> Result<(), LabError> {
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        setgroups(&[])
            .and_then(|()| setresgid(gid, gid, gid))
            .and_then(|()| setresuid(uid, uid, uid))
            .during(|| format!("becoming uid {uid} gid {gid}"))
    }
}
