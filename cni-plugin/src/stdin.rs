//! Reading stdin once, bounded in size and time.

use std::io::{self, IsTerminal as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::failure::Failure;

/// Largest configuration that is read. Annotations are at most 256 KiB a pod (Kubernetes), the previous result is small.
pub const MAX_BYTES: usize = 4 << 20;
/// How long the runtime may take to write it.
pub const MAX_WAIT: Duration = Duration::from_secs(10);

/// Reads everything up to the end; a terminal counts as empty.
///
/// # Errors
/// [`Failure::Stdin`] when reading fails or takes longer than `wait`, [`Failure::Decode`] when there is more than [`MAX_BYTES`].
pub fn read_all(wait: Duration) -> Result<Vec<u8>, Failure> {
    let stdin = io::stdin();
    if stdin.is_terminal() {
        return Ok(Vec::new());
    }
    read_fd(stdin.as_fd(), wait)
}

fn read_fd(fd: BorrowedFd<'_>, wait: Duration) -> Result<Vec<u8>, Failure> {
    let until = Instant::now() + wait;
    let mut bytes = Vec::new();
    // A pipe holds 64 KiB; a typical configuration is a few KiB, which the stack takes without a page fault for each allocation.
    let mut chunk = [0; 16 << 10];
    loop {
        wait_for(fd, until)?;
        match nix::unistd::read(fd, &mut chunk) {
            Ok(0) => return Ok(bytes),
            Ok(count) if bytes.len() + count > MAX_BYTES => {
                return Err(Failure::Decode(format!("stdin has more than {MAX_BYTES} bytes")));
            }
            Ok(count) => bytes.extend_from_slice(&chunk[..count]),
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            // No stdin at all (closed descriptor) is an empty one.
            Err(Errno::EBADF) if bytes.is_empty() => return Ok(bytes),
            Err(error) => return Err(Failure::Stdin(error.to_string())),
        }
    }
}

/// Waits until there is something to read, or the end.
fn wait_for(fd: BorrowedFd<'_>, until: Instant) -> Result<(), Failure> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], timeout) {
            Ok(0) => return Err(Failure::Stdin("nothing more came for too long, and it was not closed".to_owned())),
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(Failure::Stdin(error.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::thread;

    use super::*;

    #[test]
    fn reads_what_comes_in_pieces() {
        let (reader, mut writer) = io::pipe().unwrap();
        let thread = thread::spawn(move || {
            for _ in 0..50 {
                writer.write_all(&[b'x'; 3000]).unwrap();
            }
        });
        assert_eq!(read_fd(reader.as_fd(), MAX_WAIT).unwrap().len(), 150_000);
        thread.join().unwrap();
    }

    #[test]
    fn gives_up_on_a_pipe_that_nobody_closes() {
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(b"{").unwrap();
        let failure = read_fd(reader.as_fd(), Duration::from_millis(20)).unwrap_err();
        assert_eq!(failure.code(), 5);
        drop(writer);
    }

    #[test]
    fn refuses_more_than_the_bound() {
        let (reader, mut writer) = io::pipe().unwrap();
        let thread = thread::spawn(move || while writer.write_all(&[b' '; 16 << 10]).is_ok() {});
        let failure = read_fd(reader.as_fd(), MAX_WAIT).unwrap_err();
        assert_eq!(failure.code(), 6);
        assert!(failure.to_string().contains("4194304"), "{failure}");
        drop(reader);
        thread.join().unwrap();
    }
}
