//! Reads stdin, within limits of size and time.

use std::io::{self, IsTerminal as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::error::CniError;

/// Largest accepted configuration. Kubernetes limits annotations to 256 KiB a pod; `prevResult` is small.
pub const MAX_BYTES: usize = 4 << 20;
/// Limit for the runtime to write the configuration.
pub const MAX_WAIT: Duration = Duration::from_secs(10);

/// Reads stdin to its end. A terminal counts as empty.
///
/// # Errors
/// [`CniError::Stdin`] when reading fails or takes longer than `wait`, [`CniError::Decode`] when there is more than [`MAX_BYTES`].
pub fn read_all(wait: Duration) -> Result<Vec<u8>, CniError> {
    let stdin = io::stdin();
    if stdin.is_terminal() {
        return Ok(Vec::new());
    }
    read_fd(stdin.as_fd(), wait)
}

fn read_fd(fd: BorrowedFd<'_>, wait: Duration) -> Result<Vec<u8>, CniError> {
    let deadline = Instant::now() + wait;
    let mut bytes = Vec::new();
    // A typical configuration is a few KiB.
    let mut chunk = [0; 16 << 10];
    loop {
        wait_readable(fd, deadline)?;
        match nix::unistd::read(fd, &mut chunk) {
            Ok(0) => return Ok(bytes),
            Ok(count) if bytes.len() + count > MAX_BYTES => {
                return Err(CniError::Decode(format!("stdin exceeds {MAX_BYTES} bytes")));
            }
            Ok(count) => bytes.extend_from_slice(&chunk[..count]),
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            // A closed stdin counts as empty.
            Err(Errno::EBADF) if bytes.is_empty() => return Ok(bytes),
            Err(error) => return Err(CniError::Stdin(error.to_string())),
        }
    }
}

/// Waits until there is input, or its end.
fn wait_readable(fd: BorrowedFd<'_>, deadline: Instant) -> Result<(), CniError> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], timeout) {
            Ok(0) => return Err(CniError::Stdin("timed out: the runtime neither wrote more nor closed it".to_owned())),
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(CniError::Stdin(error.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::thread;

    use super::*;

    #[test]
    fn input_in_pieces_is_read_to_its_end() {
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
    fn a_pipe_that_stays_open_times_out() {
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(b"{").unwrap();
        let failure = read_fd(reader.as_fd(), Duration::from_millis(20)).unwrap_err();
        assert_eq!(failure.code(), 5);
        drop(writer);
    }

    #[test]
    fn input_above_the_limit_is_rejected() {
        let (reader, mut writer) = io::pipe().unwrap();
        let thread = thread::spawn(move || while writer.write_all(&[b' '; 16 << 10]).is_ok() {});
        let failure = read_fd(reader.as_fd(), MAX_WAIT).unwrap_err();
        assert_eq!(failure.code(), 6);
        assert!(failure.to_string().contains("4194304"), "{failure}");
        drop(reader);
        thread.join().unwrap();
    }
}
