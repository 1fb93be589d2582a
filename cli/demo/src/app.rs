//! The application of the demo: a child process in the pod, with the pod's user.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::ChildStdin;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use weir_lab::process::ChildGuard;
use weir_lab::{ConnectionInfo, Netns, User};

use crate::child::{self, ChildRole, DIAL, READY};

const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

pub(crate) struct App {
    pub(crate) user: User,
    stdin: ChildStdin,
    lines: Receiver<String>,
    child: ChildGuard,
}

impl App {
    /// Starts the application; it listens when this returns.
    pub(crate) fn start(pod: &Netns, user: User, name: &str, port: u16, log: &Path) -> anyhow::Result<Self> {
        let mut child = child::start(pod, user, ChildRole::App { name: name.to_owned(), port }, log)?;
        let (Some(stdin), Some(stdout)) = (child.0.stdin.take(), child.0.stdout.take()) else {
            anyhow::bail!("the application has no pipes");
        };
        let (sender, lines) = mpsc::channel();
        // The thread ends with the application's output.
        thread::spawn(move || {
            BufReader::new(stdout).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        let app = Self { user, stdin, lines, child };
        match app.lines.recv_timeout(ANSWER_TIMEOUT) {
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

    /// Has the application connect to `to`; returns what the listener saw.
    pub(crate) fn dial(&mut self, to: SocketAddr) -> anyhow::Result<ConnectionInfo> {
        writeln!(self.stdin, "{DIAL}{to}").context("the application has exited")?;
        let line = self.lines.recv_timeout(ANSWER_TIMEOUT).context("the application does not respond")?;
        line.parse().map_err(|_| anyhow::anyhow!("{line}"))
    }
}
