//! Processes of the demo: this binary again, as one part of the play. It enters a namespace, becomes a user, and then is the
//! application, or becomes another program. It dies with the demo, whatever happens to that.

use std::fs::File;
use std::io::{self, BufRead, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use weir_lab::process::{self, Guarded};
use weir_lab::{Dial, Netns, Sighting, User, http};

/// A part to play, as JSON on the command line of the process that plays it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Part {
    /// Process id of the demo.
    parent: u32,
    /// The namespace to enter.
    netns: PathBuf,
    /// The user to become.
    uid: u32,
    gid: u32,
    role: Role,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Role {
    /// The application: answers HTTP with its name, and dials where it is told to on its standard input.
    App { name: String, port: u16 },
    /// Becomes a program.
    Program { path: PathBuf, args: Vec<String> },
}

/// What the application is told on its input, before the address.
pub(crate) const DIAL: &str = "dial ";
/// What it says first.
pub(crate) const READY: &str = "ready";

/// Starts a process that plays a part. Its standard error goes to `log`, its output is the caller's to read.
pub(crate) fn start(netns: &Netns, user: User, role: Role, log: &Path) -> anyhow::Result<Guarded> {
    let part = Part { parent: std::process::id(), netns: netns.path(), uid: user.uid, gid: user.gid, role };
    let child = Command::new(std::env::current_exe()?)
        .args(["demo", "--part", &serde_json::to_string(&part)?])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(File::create(log).with_context(|| log.display().to_string())?)
        .current_dir("/")
        .spawn()?;
    Ok(Guarded(child))
}

/// Plays a part; returns when the demo closes the standard input.
pub(crate) fn play(part: &str) -> anyhow::Result<()> {
    let part: Part = serde_json::from_str(part).context("--part is for the demo's own processes")?;
    Netns::open("pod", &part.netns)?.enter()?;
    // What is executed is opened before, as root: its folder need not be open to the user it runs as.
    let program = match &part.role {
        Role::Program { path, .. } => Some(File::open(path).with_context(|| path.display().to_string())?),
        Role::App { .. } => None,
    };
    User { uid: part.uid, gid: part.gid }.become_for_good()?;
    process::die_with_parent(part.parent)?;
    match (part.role, program) {
        (Role::App { name, port }, _) => app(&name, port, part.uid),
        (Role::Program { path, args }, Some(program)) => {
            let mut command = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()));
            command.arg0(&path).args(args).stdin(Stdio::null()).stdout(Stdio::null());
            Err(command.exec()).with_context(|| path.display().to_string())
        }
        (Role::Program { .. }, None) => anyhow::bail!("no program to become"),
    }
}

fn app(name: &str, port: u16, uid: u32) -> anyhow::Result<()> {
    let listener = TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)))?;
    let name = name.to_owned();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let seen = Sighting::of(&stream).map(|seen| seen.to_string()).unwrap_or_default();
            // A client that goes away before its answer is no concern of the application.
            let _ = http::answer(&stream, &format!("app={name} uid={uid} {seen}\n"));
        }
    });
    let mut out = io::stdout().lock();
    writeln!(out, "{READY}")?;
    for line in io::stdin().lock().lines() {
        let line = line?;
        let to = line
            .strip_prefix(DIAL)
            .and_then(|to| to.parse().ok())
            .with_context(|| format!("not understood: {line}"))?;
        match (Dial { user: User::of(uid), from: None, to }).now() {
            Ok(seen) => writeln!(out, "{seen}")?,
            Err(error) => writeln!(out, "{error}")?,
        }
    }
    Ok(())
}
