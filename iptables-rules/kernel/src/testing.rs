//! Helpers of privileged tests.

use std::io::Write as _;
use std::process::{Command, Stdio};

use nix::sched::{CloneFlags, unshare};

/// Runs a test in a fresh network namespace, on a new thread. Without root the test is skipped, and fails in CI.
pub(crate) fn in_namespace(test: impl FnOnce() + Send) {
    if !nix::unistd::geteuid().is_root() {
        return weir_lab::skip_or_fail("network namespaces need root");
    }
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            test();
        });
        if let Err(panic) = inside.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Runs a closure in a network namespace that belongs to another user namespace, like that of a pod with `hostUsers: false`.
pub(crate) fn in_foreign_user_namespace<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let mut pod = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "sh", "-c", "echo; read line"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = [0];
    std::io::Read::read_exact(pod.stdout.as_mut().unwrap(), &mut ready).unwrap();
    let path = format!("/proc/{}/ns/net", pod.id());
    let outcome = crate::netns::run_in(path.as_ref(), work);
    drop(pod.stdin.take());
    pod.wait().unwrap();
    outcome.unwrap()
}

/// Runs commands of `nft` and returns the output.
pub(crate) fn nft(commands: &str) -> String {
    tool("nft", &["-f", "-"], commands)
}

/// Runs a program in the namespace of the calling thread and returns its output.
pub(crate) fn tool(program: &str, arguments: &[&str], input: &str) -> String {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{program} failed:\n{}\n{input}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Returns the configuration of a property test with the kernel: few cases, unless `PROPTEST_CASES` is set.
pub(crate) fn cases(default: u32) -> proptest::test_runner::Config {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(default);
    proptest::test_runner::Config { cases, failure_persistence: None, ..Default::default() }
}
