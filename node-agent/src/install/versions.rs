//! Queries other plugins for the CNI versions that they support.

use std::io::{self, Read as _, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde::Deserialize;

/// Limit for a plugin to answer.
const QUERY_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest answer that is read.
const MAX_ANSWER_BYTES: u64 = 64 << 10;
/// Interval at which the process is checked for its end.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

#[derive(Deserialize)]
struct VersionResult {
    #[serde(rename = "supportedVersions")]
    supported: Vec<String>,
}

/// Runs a plugin with `CNI_COMMAND=VERSION`. It is a program of the host, so it may need libraries that are missing in this container.
///
/// # Errors
/// The plugin cannot be run, or gives no valid answer in time.
pub fn query_versions(plugin: &Path) -> Result<Vec<String>, String> {
    let deadline = Instant::now() + QUERY_TIMEOUT;
    let mut child = start(plugin, deadline).map_err(|error| format!("cannot start {}: {error}", plugin.display()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A plugin may not read it.
        let _ = stdin.write_all(b"{\"cniVersion\":\"1.0.0\"}");
    }
    let stdout = child.stdout.take();
    let reader = thread::spawn(move || {
        let mut answer = Vec::new();
        if let Some(stdout) = stdout {
            let _ = stdout.take(MAX_ANSWER_BYTES).read_to_end(&mut answer);
        }
        answer
    });
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => break,
            Ok(Some(status)) => return Err(format!("VERSION failed: {status}")),
            Ok(None) if Instant::now() < deadline => thread::sleep(POLL_INTERVAL),
            Ok(None) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("VERSION took longer than {} s", QUERY_TIMEOUT.as_secs()));
            }
            Err(error) => return Err(error.to_string()),
        }
    }
    // A child of the process may still hold the pipe.
    while !reader.is_finished() && Instant::now() < deadline {
        thread::sleep(POLL_INTERVAL);
    }
    if !reader.is_finished() {
        return Err("stdout was not closed".to_owned());
    }
    let answer = reader.join().unwrap_or_default();
    serde_json::from_slice::<VersionResult>(&answer)
        .map(|answer| answer.supported)
        .map_err(|error| format!("cannot parse the answer to VERSION: {error}"))
}

/// Starts the plugin; waits while somebody has it open for writing, as its installer may (`ETXTBSY`, execve(2)).
fn start(plugin: &Path, deadline: Instant) -> io::Result<Child> {
    loop {
        let started = Command::new(plugin)
            .env_clear()
            .env("CNI_COMMAND", "VERSION")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        match started {
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy && Instant::now() < deadline => {
                thread::sleep(POLL_INTERVAL);
            }
            started => return started,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn plugin(script: &str) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plugin");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        (dir, path)
    }

    #[test]
    fn supported_versions_are_returned() {
        let (_dir, path) = plugin(
            r#"[ "$CNI_COMMAND" = VERSION ] && echo '{"cniVersion":"0.4.0","supportedVersions":["0.3.1","0.4.0"]}'"#,
        );
        assert_eq!(query_versions(&path).unwrap(), ["0.3.1", "0.4.0"]);
    }

    #[test]
    fn a_plugin_that_is_being_written_is_waited_for() {
        let (_dir, path) = plugin(r#"echo '{"supportedVersions":["1.0.0"]}'"#);
        let writer = fs::OpenOptions::new().append(true).open(&path).unwrap();
        let closing = thread::spawn(move || {
            thread::sleep(5 * POLL_INTERVAL);
            drop(writer);
        });
        assert_eq!(query_versions(&path).unwrap(), ["1.0.0"]);
        closing.join().unwrap();
    }

    #[test]
    fn plugins_without_a_valid_answer_are_reported() {
        for (script, why) in [("exit 3", "exit status: 3"), ("echo hello", "cannot parse"), ("exec /bin/true", "EOF")] {
            let (_dir, path) = plugin(script);
            let error = query_versions(&path).unwrap_err();
            assert!(error.contains(why), "{script}: {error}");
        }
        assert!(query_versions(Path::new("/nowhere/bridge")).unwrap_err().contains("cannot start"));
    }
}
