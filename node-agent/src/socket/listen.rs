//! Sockets with a name, taken over without a gap.

use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::{UnixDatagram, UnixListener};
use tracing::warn;

/// Pause before another attempt.
const RETRY: Duration = Duration::from_secs(1);

/// A socket that is bound, and which file it is.
#[derive(Debug)]
pub struct Bound<S> {
    /// The socket.
    pub socket: S,
    inode: u64,
}

impl<S> Bound<S> {
    /// Binds under another name, closes it to all but root and then gives it its name: whoever finds it finds it ready, and one that was
    /// left by an agent before us, or belongs to one that is just ending, is replaced in the same moment. Nothing is removed at the end.
    fn new(path: &Path, bind: impl FnOnce(&Path) -> io::Result<S>) -> io::Result<Self> {
        let new = new_name(path);
        match std::fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let socket = bind(&new)?;
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600))?;
        let inode = std::fs::symlink_metadata(&new)?.ino();
        std::fs::rename(&new, path)?;
        Ok(Self { socket, inode })
    }

    /// Whether clients find a socket: ours, or that of an agent that has taken over.
    pub fn is_reachable(&self, path: &Path) -> bool {
        std::fs::symlink_metadata(path).is_ok_and(|meta| {
            meta.ino() == self.inode
                || std::os::unix::net::UnixStream::connect(path).map_or_else(
                    // A datagram socket that somebody holds is of the wrong kind, not refused.
                    |error| error.raw_os_error() == Some(nix::errno::Errno::EPROTOTYPE as i32),
                    |_| true,
                )
        })
    }
}

impl Bound<UnixListener> {
    /// For connections.
    ///
    /// # Errors
    /// The system's reason.
    pub fn stream(path: &Path) -> io::Result<Self> {
        Self::new(path, |path| UnixListener::bind(path))
    }
}

impl Bound<UnixDatagram> {
    /// For datagrams.
    ///
    /// # Errors
    /// The system's reason.
    pub fn datagram(path: &Path) -> io::Result<Self> {
        Self::new(path, |path| UnixDatagram::bind(path))
    }
}

/// Beside the name itself, and different for every process.
fn new_name(path: &Path) -> PathBuf {
    path.with_extension(format!("{}.new", std::process::id()))
}

/// Binds, however long the folder takes to appear.
pub(super) async fn until_bound<S>(path: &Path, bind: impl Fn(&Path) -> io::Result<Bound<S>>) -> Bound<S> {
    loop {
        let made = path.parent().map_or(Ok(()), super::prepare).and_then(|()| bind(path));
        match made {
            Ok(bound) => return bound,
            Err(error) => {
                warn!(path = %path.display(), %error, "cannot make the socket for the plugin");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}
