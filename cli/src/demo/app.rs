//! The application of the demo, seen from outside: a process in the pod with the pod's user.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::ChildStdin;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use weir_lab::process::Guarded;
use weir_lab::{Netns, Sighting, User};

use super::part::{self, DIAL, READY, Role};

/// Bound of one answer of the application.
const BOUND: Duration = Duration::from_secs(10);

/// The running application.
pub(crate) struct App {
    pub(crate) user: User,
    stdin: ChildStdin,
    lines: Receiver<String>,
    child: Guarded,
}

impl App {
    /// Starts it; it listens when this returns.
    pub(crate) fn start(pod: &Netns, user: User, name: &str, port: u16, log: &Path) -> anyhow::Result<Self> {
        let mut child = part::start(pod, user, Role::App { name: name.to_owned(), port }, log)?;
        let (Some(stdin), Some(stdout)) = (child.0.stdin.take(), child.0.stdout.take()) else {
            anyhow::bail!("the application has no pipes");
        };
        let (told, lines) = mpsc::channel();
        // Ends with the application's output.
        thread::spawn(move || {
            BufReader::new(stdout).lines().map_while(Result::ok).try_for_each(|line| told.send(line))
        });
        let app = Self { user, stdin, lines, child };
        match app.lines.recv_timeout(BOUND) {
            Ok(line) if line == READY => Ok(app),
            other => anyhow::bail!(
                "the application did not start ({other:?}): {}",
                std::fs::read_to_string(log).unwrap_or_default().trim_end()
            ),
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.0.id()
    }

    /// Has it call somebody, and tells what the callee saw.
    pub(crate) fn dial(&mut self, to: SocketAddr) -> anyhow::Result<Sighting> {
        writeln!(self.stdin, "{DIAL}{to}").context("the application is gone")?;
        let line = self.lines.recv_timeout(BOUND).context("the application does not answer")?;
        line.parse().map_err(|_| anyhow::anyhow!("{line}"))
    }
}
