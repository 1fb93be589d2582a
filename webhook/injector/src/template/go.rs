//! Go's template engine in a child process: the program `tests/gotemplate`, named by `WEIR_GOTEMPLATE`.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::Value;

pub(super) struct GoEngine {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl GoEngine {
    /// Starts the program; without it the test is [skipped](weir_lab::skip_or_fail).
    pub(super) fn start() -> Option<Self> {
        let program = std::env::var_os("WEIR_GOTEMPLATE").map(std::path::PathBuf::from);
        let built = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/tools/gotemplate/gotemplate");
        let program = program.unwrap_or_else(|| built.into());
        if !program.is_file() {
            weir_lab::skip_or_fail("WEIR_GOTEMPLATE does not name the Go program; run make test-tools");
            return None;
        }
        let mut child = Command::new(program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Some(Self { child, input, output })
    }

    /// Sends one request and returns Go's output, or Go's error.
    pub(super) fn render(&mut self, request: &Value) -> Result<String, String> {
        writeln!(self.input, "{request}").unwrap();
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        let response: Value = serde_json::from_str(&line).unwrap();
        match response["error"].as_str() {
            Some(error) => Err(error.to_owned()),
            None => Ok(response["text"].as_str().unwrap_or_default().to_owned()),
        }
    }
}

impl Drop for GoEngine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns the number in an environment variable, or `default`.
pub(super) fn number_from_env(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}
