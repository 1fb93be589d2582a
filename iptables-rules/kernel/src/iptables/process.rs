//! Child processes with a bound on their time.

use std::io::{self, Read, Write as _};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// How often a running call is looked at.
const POLL: Duration = Duration::from_millis(2);
/// How long one call may take; it bounds the wait for the lock of the legacy variant, too.
pub(super) const LIMIT: Duration = Duration::from_secs(10);
/// How much of an error output is repeated.
const SHOWN_STDERR: usize = 1024;

/// Why rules could not be installed or read by way of iptables.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// No pair of programs to save and to restore rules was found.
    #[error(
        "iptables is not available: none of {wanted} was found in PATH; install iptables, or use a kernel with nf_tables"
    )]
    NoPrograms {
        /// The names that would have done.
        wanted: String,
    },
    /// The program is not there, or cannot be run.
    #[error("cannot run {program}: {source}")]
    Missing {
        /// Its name, looked up in `PATH`.
        program: String,
        /// Why not.
        source: io::Error,
    },
    /// The program refused; nothing in the table it complains about was changed.
    #[error("{program} failed ({status}): {stderr}")]
    Failed {
        /// Its name.
        program: String,
        /// Exit status.
        status: ExitStatus,
        /// What it said.
        stderr: String,
    },
    /// The program did not end in time and was killed.
    #[error("{program} did not end within {limit:?}")]
    Timeout {
        /// Its name.
        program: String,
        /// How long it was given.
        limit: Duration,
    },
    /// Talking to the program failed.
    #[error("{program}: {source}")]
    Pipe {
        /// Its name.
        program: String,
        /// What failed.
        source: io::Error,
    },
}

impl RestoreError {
    /// Whether the program met somebody else's change or lock, so that trying again helps (`RESOURCE_PROBLEM`, xtables.h).
    pub(super) fn is_contention(&self) -> bool {
        matches!(self, Self::Failed { status, .. } if status.code() == Some(4))
    }
}

/// Runs a program of iptables to its end and gives back its output.
pub(super) fn run(
    name: &str,
    path: &Path,
    arguments: &[&str],
    input: String,
    limit: Duration,
) -> Result<String, RestoreError> {
    let program = || name.to_owned();
    let pipe = |source| RestoreError::Pipe { program: program(), source };
    let deadline = Instant::now() + limit;
    let mut child = Command::new(path)
        .args(arguments)
        // One lock for each namespace instead of one for the machine, which some other namespace's user may hold (iptables 1.8.6).
        .env("XTABLES_LOCKFILE", "/proc/self/ns/net")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| RestoreError::Missing { program: program(), source })?;
    // A pipe holds little, so each end has a thread. They end with the child; what it leaves behind may hold a pipe longer, and then
    // nobody waits for the thread.
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let written =
        in_background(move || stdin.map_or(Ok(()), |mut stdin| stdin.write_all(input.as_bytes()))).map_err(pipe)?;
    let output = in_background(move || read_all(stdout)).map_err(pipe)?;
    let errors = in_background(move || read_all(stderr)).map_err(pipe)?;
    let status =
        wait(&mut child, deadline).map_err(pipe)?.ok_or(RestoreError::Timeout { program: program(), limit })?;
    let timeout = |_| RestoreError::Timeout { program: program(), limit };
    let rest = || deadline.saturating_duration_since(Instant::now());
    let stderr = errors.recv_timeout(rest()).map_err(timeout)?.map_err(pipe)?;
    if !status.success() {
        let stderr = stderr.trim();
        let stderr = stderr[..stderr.floor_char_boundary(SHOWN_STDERR)].to_owned();
        return Err(RestoreError::Failed { program: program(), status, stderr });
    }
    written.recv_timeout(rest()).map_err(timeout)?.map_err(pipe)?;
    output.recv_timeout(rest()).map_err(timeout)?.map_err(pipe)
}

fn in_background<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<mpsc::Receiver<T>> {
    let (sender, receiver) = mpsc::sync_channel(1);
    thread::Builder::new().spawn(move || {
        let _ = sender.send(work()); // nobody listens any more after a timeout
    })?;
    Ok(receiver)
}

fn read_all(pipe: Option<impl Read>) -> io::Result<String> {
    let mut bytes = Vec::new();
    if let Some(mut pipe) = pipe {
        pipe.read_to_end(&mut bytes)?;
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Waits for the end of a process, and ends it where that takes too long: `None`.
fn wait(child: &mut Child, deadline: Instant) -> io::Result<Option<ExitStatus>> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(POLL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_named() {
        let error = run("iptables-of-nobody", Path::new("iptables-of-nobody"), &[], String::new(), LIMIT).unwrap_err();
        assert!(error.to_string().starts_with("cannot run iptables-of-nobody: "), "{error}");
    }

    #[test]
    fn a_program_that_hangs_is_ended() {
        let text = "x".repeat(1 << 20); // more than a pipe holds, and never read
        let error = run("sleep", Path::new("sleep"), &["60"], text, Duration::from_millis(50)).unwrap_err();
        assert!(matches!(&error, RestoreError::Timeout { program, .. } if program == "sleep"), "{error}");
    }
}
