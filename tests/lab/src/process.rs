//! Child processes with a timeout.

use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::prctl;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, getppid};

use crate::error::{LabError, OperationContext};

/// Result of a program.
#[derive(Debug)]
pub struct Output {
    /// Exit status.
    pub status: ExitStatus,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    /// Run time.
    pub took: Duration,
}

/// Runs a program in the network namespace of the calling thread, with `stdin` as input.
///
/// # Errors
/// Returns an error if the program cannot be started, or is killed after the timeout.
pub fn run(command: &mut Command, stdin: &[u8], timeout: Duration) -> Result<Output, LabError> {
    let name = command.get_program().to_string_lossy().into_owned();
    let operation = || format!("run {name}");
    let started = Instant::now();
    // A process group, so that its children can be killed as well: they would keep the pipes open.
    let child = command
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .operation(operation)?;
    let mut child = ChildGuard(child);
    let pipes = (child.0.stdin.take(), child.0.stdout.take(), child.0.stderr.take());
    let (Some(mut to), Some(mut out), Some(mut err)) = pipes else {
        return Err(LabError::new(operation(), io::Error::other("a pipe is missing")));
    };
    thread::scope(|scope| {
        let (done, ended) = mpsc::channel();
        // Fails if the program does not read its input, which is allowed.
        scope.spawn(move || to.write_all(stdin));
        let stdout = scope.spawn(move || {
            let mut all = Vec::new();
            let read = out.read_to_end(&mut all);
            let _ = done.send(());
            read.map(|_| all)
        });
        let stderr = scope.spawn(move || {
            let mut all = Vec::new();
            err.read_to_end(&mut all).map(|_| all)
        });
        // A program usually ends when it closes its output, so waits for that first.
        let _ = ended.recv_timeout(timeout);
        let status = child.wait_until(started + timeout);
        let took = started.elapsed();
        if matches!(status, Ok(None)) {
            child.kill_group();
        }
        let collected = |reader: thread::ScopedJoinHandle<'_, io::Result<Vec<u8>>>| {
            reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)).operation(operation)
        };
        let (stdout, stderr) = (collected(stdout)?, collected(stderr)?);
        match status.operation(operation)? {
            Some(status) => Ok(Output { status, stdout, stderr, took }),
            None => Err(LabError::new(
                operation(),
                io::Error::new(io::ErrorKind::TimedOut, format!("timed out after {timeout:?}")),
            )),
        }
    })
}

/// A child process that is killed when the value is dropped.
#[derive(Debug)]
pub struct ChildGuard(pub Child);

impl ChildGuard {
    /// Waits for the process until the deadline; `None` if it is still running.
    pub fn wait_until(&mut self, deadline: Instant) -> io::Result<Option<ExitStatus>> {
        loop {
            match self.0.try_wait()? {
                None if Instant::now() < deadline => thread::sleep(Duration::from_micros(200)),
                status => return Ok(status),
            }
        }
    }

    /// Kills the process group of the process.
    fn kill_group(&mut self) {
        if let Ok(group) = i32::try_from(self.0.id()) {
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
        }
        self.kill();
    }

    fn kill(&mut self) {
        // Both fail only if the process has ended and was reaped.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for ChildGuard {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Makes the kernel kill the calling process when the thread that started it ends (`PR_SET_PDEATHSIG`, prctl(2)). Call it after
/// [`User::switch_process`](crate::User::switch_process), which resets it; it survives `execve`.
///
/// # Errors
/// Returns an error if the parent process has ended already.
pub fn kill_with_parent(parent: u32) -> io::Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    // The parent may have ended before the call.
    if getppid().as_raw().unsigned_abs() == parent {
        Ok(())
    } else {
        Err(io::Error::other(format!("parent process {parent} has ended")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn returns_the_output() {
        let output = run(&mut Command::new("cat"), b"in and out", Duration::from_secs(10)).unwrap();
        assert!(output.status.success());
        assert_eq!(output.stdout, b"in and out");
    }

    #[test]
    fn kills_program_after_timeout() {
        let error = run(Command::new("sleep").arg("60"), b"", Duration::from_millis(50)).unwrap_err();
        assert_eq!(error.source.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn kills_children_after_timeout() {
        let mut shell = Command::new("sh");
        let error = run(shell.args(["-c", "sleep 60 & sleep 60"]), b"", Duration::from_millis(50)).unwrap_err();
        assert_eq!(error.source.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn error_names_missing_program() {
        let error = run(&mut Command::new("no-such-program"), b"", Duration::from_secs(1)).unwrap_err();
        assert!(error.to_string().starts_with("cannot run no-such-program: "), "{error}");
    }
}
