//! Child processes with a bound on their time.

use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::prctl;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, getppid};

use crate::error::{During, LabError};

/// What a program left.
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
    /// From before it was started until after it had ended.
    pub took: Duration,
}

/// Runs a program to its end, with `stdin` as its input. It runs in the network namespace of the calling thread.
///
/// # Errors
/// When it cannot be started, or did not end within `bound` and was killed.
pub fn run(command: &mut Command, stdin: &[u8], bound: Duration) -> Result<Output, LabError> {
    let name = command.get_program().to_string_lossy().into_owned();
    let step = || format!("running {name}");
    let started = Instant::now();
    // A group of its own: on a time-out its children have to go as well, or they would keep the pipes open.
    let child = command
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .during(step)?;
    let mut child = Guarded(child);
    let pipes = (child.0.stdin.take(), child.0.stdout.take(), child.0.stderr.take());
    let (Some(mut to), Some(mut out), Some(mut err)) = pipes else {
        return Err(LabError::new(step(), io::Error::other("a pipe is missing")));
    };
    thread::scope(|scope| {
        let (done, ended) = mpsc::channel();
        // A program need not read its input; then this fails, and that is fine.
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
        // The end of its output is the end of a program, unless it closed it early: so wait for the one, then look for the other.
        let _ = ended.recv_timeout(bound);
        let status = child.wait_until(started + bound);
        let took = started.elapsed();
        if matches!(status, Ok(None)) {
            child.kill_group();
        }
        let collected = |reader: thread::ScopedJoinHandle<'_, io::Result<Vec<u8>>>| {
            reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)).during(step)
        };
        let (stdout, stderr) = (collected(stdout)?, collected(stderr)?);
        match status.during(step)? {
            Some(status) => Ok(Output { status, stdout, stderr, took }),
            None => {
                Err(LabError::new(step(), io::Error::new(io::ErrorKind::TimedOut, format!("not done after {bound:?}"))))
            }
        }
    })
}

/// A child process that is killed and reaped when the value is dropped.
#[derive(Debug)]
pub struct Guarded(pub Child);

impl Guarded {
    /// Waits for the end of the process until a point in time; `None` when it is still there.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn wait_until(&mut self, deadline: Instant) -> io::Result<Option<ExitStatus>> {
        loop {
            match self.0.try_wait()? {
                None if Instant::now() < deadline => thread::sleep(Duration::from_micros(200)),
                status => return Ok(status),
            }
        }
    }

    /// Kills the process group that the process leads.
    fn kill_group(&mut self) {
        if let Ok(group) = i32::try_from(self.0.id()) {
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
        }
        self.kill();
    }

    fn kill(&mut self) {
        // Both fail only where the process has ended and was reaped.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Has the kernel kill the calling process when the thread that started it ends, however that happens (`PR_SET_PDEATHSIG`, prctl(2)).
/// To be called after [`User::become_for_good`](crate::User::become_for_good), which resets it; it survives `execve`.
///
/// # Errors
/// When `parent`, the process id of the one who started us, is gone already.
pub fn die_with_parent(parent: u32) -> io::Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    // It may have ended before the call; then we belong to somebody else now.
    if getppid().as_raw().unsigned_abs() == parent {
        Ok(())
    } else {
        Err(io::Error::other(format!("process {parent}, which started this one, is gone")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn returns_what_a_program_writes() {
        let output = run(&mut Command::new("cat"), b"in and out", Duration::from_secs(10)).unwrap();
        assert!(output.status.success());
        assert_eq!(output.stdout, b"in and out");
    }

    #[test]
    fn kills_what_does_not_end() {
        let error = run(Command::new("sleep").arg("60"), b"", Duration::from_millis(50)).unwrap_err();
        assert_eq!(error.source.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn kills_the_children_of_what_does_not_end_too() {
        let mut shell = Command::new("sh");
        let error = run(shell.args(["-c", "sleep 60 & sleep 60"]), b"", Duration::from_millis(50)).unwrap_err();
        assert_eq!(error.source.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn names_a_program_that_is_not_there() {
        let error = run(&mut Command::new("no-such-program"), b"", Duration::from_secs(1)).unwrap_err();
        assert!(error.to_string().starts_with("running no-such-program: "), "{error}");
    }
}
