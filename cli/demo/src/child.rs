//! Child processes of the demo: this binary again, which enters a namespace, changes its user, and then serves as the application or
//! executes another program. It dies with the demo, even if that is killed.

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
use weir_lab::process::{self, ChildGuard};
use weir_lab::{ConnectionInfo, Dial, Netns, User, http};

/// Work of a child process, as JSON on its command line.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ChildSpec {
    /// Process id of the demo.
    parent: u32,
    netns: PathBuf,
    uid: u32,
    gid: u32,
    role: ChildRole,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ChildRole {
    /// The application: answers HTTP with its name, and dials the addresses on its standard input.
    App { name: String, port: u16 },
    /// Executes a program.
    Program { path: PathBuf, args: Vec<String> },
}

/// Prefix of an address on the application's standard input.
pub(crate) const DIAL: &str = "dial ";
/// First line of the application's output: it listens.
pub(crate) const READY: &str = "ready";

/// Starts a child process. Its standard error goes to `log`; the caller reads its output.
pub(crate) fn start(netns: &Netns, user: User, role: ChildRole, log: &Path) -> anyhow::Result<ChildGuard> {
    let spec = ChildSpec { parent: std::process::id(), netns: netns.path(), uid: user.uid, gid: user.gid, role };
    let child = Command::new(std::env::current_exe()?)
        .args(["--child", &serde_json::to_string(&spec)?])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(File::create(log).with_context(|| log.display().to_string())?)
        .current_dir("/")
        .spawn()?;
    Ok(ChildGuard(child))
}

/// Does what `spec` says; the application returns when the demo closes its standard input.
pub(crate) fn run(spec: &str) -> anyhow::Result<()> {
    let spec: ChildSpec = serde_json::from_str(spec).context("--child is for child processes of the demo")?;
    Netns::open("pod", &spec.netns)?.enter()?;
    // Opened as root: the user that it runs as may have no access to its directory.
    let program = match &spec.role {
        ChildRole::Program { path, .. } => Some(File::open(path).with_context(|| path.display().to_string())?),
        ChildRole::App { .. } => None,
    };
    User { uid: spec.uid, gid: spec.gid }.switch_process()?;
    process::kill_with_parent(spec.parent)?;
    match (spec.role, program) {
        (ChildRole::App { name, port }, _) => app(&name, port, spec.uid),
        (ChildRole::Program { path, args }, Some(program)) => {
            let mut command = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()));
            command.arg0(&path).args(args).stdin(Stdio::null()).stdout(Stdio::null());
            Err(command.exec()).with_context(|| path.display().to_string())
        }
        (ChildRole::Program { .. }, None) => anyhow::bail!("no program to execute"),
    }
}

fn app(name: &str, port: u16, uid: u32) -> anyhow::Result<()> {
    let listener = TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)))?;
    let name = name.to_owned();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let seen = ConnectionInfo::from_stream(&stream).map(|seen| seen.to_string()).unwrap_or_default();
            // A client that closes before its answer is no error of the application.
            let _ = http::respond(&stream, &format!("app={name} uid={uid} {seen}\n"));
        }
    });
    let mut out = io::stdout().lock();
    writeln!(out, "{READY}")?;
    for line in io::stdin().lock().lines() {
        let line = line?;
        let to = line
            .strip_prefix(DIAL)
            .and_then(|to| to.parse().ok())
            .with_context(|| format!("invalid command: {line}"))?;
        match (Dial { user: User::with_id(uid), from: None, to }).connect() {
            Ok(seen) => writeln!(out, "{seen}")?,
            Err(error) => writeln!(out, "{error}")?,
        }
    }
    Ok(())
}
