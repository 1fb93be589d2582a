//! Asking other people's plugins which versions of CNI they speak.

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde::Deserialize;

/// How long a plugin has to answer.
const WAIT: Duration = Duration::from_secs(5);
/// Longest answer.
const MAX_ANSWER: u64 = 64 << 10;
/// How often one looks whether it has ended.
const LOOK: Duration = Duration::from_millis(10);

#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "supportedVersions")]
    supported: Vec<String>,
}

/// Starts a plugin with `CNI_COMMAND=VERSION`. The plugin is the host's and may need libraries that are not here: then nobody knows.
///
/// # Errors
/// Why it does not say.
pub fn ask(plugin: &Path) -> Result<Vec<String>, String> {
    let mut child = Command::new(plugin)
        .env_clear()
        .env("CNI_COMMAND", "VERSION")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("{} cannot be started here: {error}", plugin.display()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // Some read it, some do not.
        let _ = stdin.write_all(b"{\"cniVersion\":\"1.0.0\"}");
    }
    let stdout = child.stdout.take();
    let reader = thread::spawn(move || {
        let mut answer = Vec::new();
        if let Some(stdout) = stdout {
            let _ = stdout.take(MAX_ANSWER).read_to_end(&mut answer);
        }
        answer
    });
    let end = Instant::now() + WAIT;
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => break,
            Ok(Some(status)) => return Err(format!("VERSION ended with {status}")),
            Ok(None) if Instant::now() < end => thread::sleep(LOOK),
            Ok(None) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("VERSION took longer than {} s", WAIT.as_secs()));
            }
            Err(error) => return Err(error.to_string()),
        }
    }
    // The process has ended, but a child of its own may hold the pipe.
    while !reader.is_finished() && Instant::now() < end {
        thread::sleep(LOOK);
    }
    if !reader.is_finished() {
        return Err("its answer does not end".to_owned());
    }
    let answer = reader.join().unwrap_or_default();
    serde_json::from_slice::<Answer>(&answer)
        .map(|answer| answer.supported)
        .map_err(|error| format!("its answer to VERSION cannot be read: {error}"))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn plugin(script: &str) -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plugin");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        (folder, path)
    }

    #[test]
    fn hears_what_a_plugin_speaks() {
        let (_folder, path) = plugin(
            r#"[ "$CNI_COMMAND" = VERSION ] && echo '{"cniVersion":"0.4.0","supportedVersions":["0.3.1","0.4.0"]}'"#,
        );
        assert_eq!(ask(&path).unwrap(), ["0.3.1", "0.4.0"]);
    }

    #[test]
    fn says_why_it_hears_nothing() {
        for (script, why) in [("exit 3", "exit status: 3"), ("echo hello", "cannot be read"), ("exec /bin/true", "EOF")]
        {
            let (_folder, path) = plugin(script);
            let error = ask(&path).unwrap_err();
            assert!(error.contains(why), "{script}: {error}");
        }
        assert!(ask(Path::new("/nowhere/bridge")).unwrap_err().contains("cannot be started"));
    }
}
