//! Unix sockets that replace those of an earlier agent without a gap.

use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::{UnixDatagram, UnixListener};
use tracing::warn;

/// Pause before the next attempt to bind.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// A socket bound to a path, with the inode of its file.
#[derive(Debug)]
pub struct BoundSocket<S> {
    /// The socket.
    pub socket: S,
    inode: u64,
}

impl<S> BoundSocket<S> {
    /// Binds to a temporary name, restricts the mode to root, and renames the file: clients find either the socket of the earlier agent or
    /// this one, ready for connections. The file stays when the agent ends.
    fn new(path: &Path, bind: impl FnOnce(&Path) -> io::Result<S>) -> io::Result<Self> {
        let temporary = temporary_name(path);
        match std::fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let socket = bind(&temporary)?;
        std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(0o600))?;
        let inode = std::fs::symlink_metadata(&temporary)?.ino();
        std::fs::rename(&temporary, path)?;
        Ok(Self { socket, inode })
    }

    /// Returns whether clients can reach a socket at the path: this one, or that of another agent.
    pub fn is_reachable(&self, path: &Path) -> bool {
        std::fs::symlink_metadata(path).is_ok_and(|meta| {
            meta.ino() == self.inode
                || std::os::unix::net::UnixStream::connect(path).map_or_else(
                    // A datagram socket in use gives EPROTOTYPE, a dead one ECONNREFUSED.
                    |error| error.raw_os_error() == Some(nix::errno::Errno::EPROTOTYPE as i32),
                    |_| true,
                )
        })
    }
}

impl BoundSocket<UnixListener> {
    /// Binds a socket for connections.
    ///
    /// # Errors
    /// The file cannot be created.
    pub fn stream(path: &Path) -> io::Result<Self> {
        Self::new(path, |path| UnixListener::bind(path))
    }
}

impl BoundSocket<UnixDatagram> {
    /// Binds a socket for datagrams.
    ///
    /// # Errors
    /// The file cannot be created.
    pub fn datagram(path: &Path) -> io::Result<Self> {
        Self::new(path, |path| UnixDatagram::bind(path))
    }
}

/// Returns a name in the same directory, different for every process.
fn temporary_name(path: &Path) -> PathBuf {
    path.with_extension(format!("{}.new", std::process::id()))
}

/// Binds, and retries until it succeeds.
pub(super) async fn bind_with_retry<S>(
    path: &Path,
    bind: impl Fn(&Path) -> io::Result<BoundSocket<S>>,
) -> BoundSocket<S> {
    loop {
        let result = path.parent().map_or(Ok(()), create_socket_dir).and_then(|()| bind(path));
        match result {
            Ok(bound) => return bound,
            Err(error) => {
                warn!(path = %path.display(), %error, "cannot bind socket; retrying");
                tokio::time::sleep(RETRY_INTERVAL).await;
            }
        }
    }
}

/// Creates the directory of the sockets, for root alone.
fn create_socket_dir(dir: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o750).create(dir)
}
