//! Child processes with a timeout.

use std::io::{self, Read, Write as _};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::read_limits::{ExceededLimit, ReadLimits};

/// Interval at which a running child is polled.
const POLL: Duration = Duration::from_millis(2);
/// Timeout of one call, including the wait for the lock of the legacy variant.
pub(super) const TIMEOUT: Duration = Duration::from_secs(10);
/// Least time of a call, even if the time of the [`ReadLimits`] has ended.
const MIN_TIMEOUT: Duration = Duration::from_millis(100);
/// Bytes of stderr that an error shows.
const SHOWN_STDERR: usize = 1024;

/// Error returned when a program of iptables fails.
#[derive(Debug, thiserror::Error)]
pub enum IptablesError {
    /// No save and restore programs are installed.
    #[error(
        "iptables is not available: none of {wanted} was found in PATH; install iptables, or use a kernel with nf_tables"
    )]
    NoPrograms {
        /// Names of the programs that were searched.
        wanted: String,
    },
    /// The program cannot be started.
    #[error("cannot run {program}: {source}")]
    Missing {
        /// Name of the program.
        program: String,
        /// The error of the system.
        source: io::Error,
    },
    /// The program exited with an error; the table that it names is unchanged.
    #[error("{program} failed ({status}): {stderr}")]
    Failed {
        /// Name of the program.
        program: String,
        /// Exit status.
        status: ExitStatus,
        /// Error output.
        stderr: String,
    },
    /// The program timed out and was killed.
    #[error("{program} timed out after {limit:?}")]
    Timeout {
        /// Name of the program.
        program: String,
        /// The timeout.
        limit: Duration,
    },
    /// The output of the program is longer than what is read (see [`crate::ReadLimits`]).
    #[error("output of {program} is not read completely: {limit}")]
    TooLarge {
        /// Name of the program.
        program: String,
        /// The exceeded limit.
        limit: ExceededLimit,
    },
    /// The input or output of the program failed.
    #[error("cannot communicate with {program}: {source}")]
    Pipe {
        /// Name of the program.
        program: String,
        /// The error of the system.
        source: io::Error,
    },
}

impl IptablesError {
    /// Returns whether another program changed the rules or held the lock, so that a retry can succeed (`RESOURCE_PROBLEM`, xtables.h).
    pub(super) fn is_contention(&self) -> bool {
        matches!(self, Self::Failed { status, .. } if status.code() == Some(4))
    }
}

/// Runs a program of iptables and returns its output.
pub(super) fn run(
    name: &str,
    path: &Path,
    arguments: &[&str],
    input: String,
    limit: Duration,
) -> Result<String, IptablesError> {
    let program = || name.to_owned();
    let pipe = |source: io::Error| match ExceededLimit::of(&source) {
        Some(limit) => IptablesError::TooLarge { program: program(), limit },
        None => IptablesError::Pipe { program: program(), source },
    };
    let (limits, latest) = ReadLimits::current();
    let deadline = (Instant::now() + limit).min(latest.max(Instant::now() + MIN_TIMEOUT));
    let mut child = Command::new(path)
        .args(arguments)
        // A lock per network namespace, instead of one for all namespaces (iptables 1.8.6).
        .env("XTABLES_LOCKFILE", "/proc/self/ns/net")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| IptablesError::Missing { program: program(), source })?;
    // Each pipe has a thread, as its buffer is small. The threads end with the child; if a process that it left behind keeps a pipe open,
    // nobody waits for them.
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let written =
        in_background(move || stdin.map_or(Ok(()), |mut stdin| stdin.write_all(input.as_bytes()))).map_err(pipe)?;
    let output = in_background(move || read_all(stdout, limits)).map_err(pipe)?;
    let errors = in_background(move || read_all(stderr, limits)).map_err(pipe)?;
    let status =
        wait(&mut child, deadline).map_err(pipe)?.ok_or(IptablesError::Timeout { program: program(), limit })?;
    let timeout = |_| IptablesError::Timeout { program: program(), limit };
    let rest = || deadline.saturating_duration_since(Instant::now());
    let stderr = errors.recv_timeout(rest()).map_err(timeout)?.map_err(pipe)?;
    if !status.success() {
        // The program fails if nobody reads the rest of its output.
        if let Ok(Err(error)) = output.recv_timeout(rest().min(MIN_TIMEOUT))
            && ExceededLimit::of(&error).is_some()
        {
            return Err(pipe(error));
        }
        let stderr = stderr.trim();
        let stderr = stderr[..stderr.floor_char_boundary(SHOWN_STDERR)].to_owned();
        return Err(IptablesError::Failed { program: program(), status, stderr });
    }
    written.recv_timeout(rest()).map_err(timeout)?.map_err(pipe)?;
    output.recv_timeout(rest()).map_err(timeout)?.map_err(pipe)
}

fn in_background<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<mpsc::Receiver<T>> {
    let (sender, receiver) = mpsc::sync_channel(1);
    thread::Builder::new().spawn(move || {
        let _ = sender.send(work()); // there is no receiver after a timeout
    })?;
    Ok(receiver)
}

/// Reads a pipe to its end, or to the limits of bytes and lines.
fn read_all(pipe: Option<impl Read>, limits: ReadLimits) -> io::Result<String> {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        pipe.take(u64::try_from(limits.bytes).unwrap_or(u64::MAX).saturating_add(1)).read_to_end(&mut bytes)?;
    }
    if bytes.len() > limits.bytes {
        return Err(io::Error::other(ExceededLimit::Bytes(limits.bytes)));
    }
    if bytes.split(|byte| *byte == b'\n').count() > limits.objects.saturating_add(1) {
        return Err(io::Error::other(ExceededLimit::Objects(limits.objects)));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Waits for a child process; kills it at the deadline and returns `None`.
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
    fn error_names_missing_program() {
        let error =
            run("iptables-of-nobody", Path::new("iptables-of-nobody"), &[], String::new(), TIMEOUT).unwrap_err();
        assert!(error.to_string().starts_with("cannot run iptables-of-nobody: "), "{error}");
    }

    #[test]
    fn endless_output_is_not_read() {
        let limits = ReadLimits { bytes: 1 << 20, ..ReadLimits::default() };
        let error = limits.within(|| run("yes", Path::new("yes"), &[], String::new(), TIMEOUT)).unwrap_err();
        assert!(matches!(error, IptablesError::TooLarge { limit: ExceededLimit::Bytes(1_048_576), .. }), "{error}");
    }

    #[test]
    fn hanging_program_is_killed() {
        let text = "x".repeat(1 << 20); // more than a pipe holds, and never read
        let error = run("sleep", Path::new("sleep"), &["60"], text, Duration::from_millis(50)).unwrap_err();
        assert!(matches!(&error, IptablesError::Timeout { program, .. } if program == "sleep"), "{error}");
    }
}
