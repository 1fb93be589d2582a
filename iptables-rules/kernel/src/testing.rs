//! What the privileged tests of this crate share.

use std::io::Write as _;
use std::process::{Command, Stdio};

use nix::sched::{CloneFlags, unshare};

/// Runs a test on a thread of its own, in a network namespace that ends with it. Without root it is skipped on a developer's machine,
/// and fails in CI.
pub(crate) fn in_namespace(test: impl FnOnce() + Send) {
    if !nix::unistd::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "tests of network namespaces need root");
        eprintln!("skipped: needs root");
        return;
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

/// Runs something in a network namespace that belongs to a user namespace of its own, as that of a pod with `hostUsers: false`, from
/// outside of that user namespace.
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
    let outcome = crate::netns::within(path.as_ref(), work);
    drop(pod.stdin.take());
    pod.wait().unwrap();
    outcome.unwrap()
}

/// Runs commands of `nft`, and gives back what it prints.
pub(crate) fn nft(commands: &str) -> String {
    tool("nft", &["-f", "-"], commands)
}

/// Runs a program in the namespace of this thread, and gives back what it prints.
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
    assert!(output.status.success(), "{program} refused:\n{}\n{input}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Cases of a property that is tested against the kernel: few by default, as many as `PROPTEST_CASES` says in a long run.
pub(crate) fn cases(usual: u32) -> proptest::test_runner::Config {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(usual);
    proptest::test_runner::Config { cases, failure_persistence: None, ..Default::default() }
}
