//! Support for the tests across crates: the project's binaries, a real container runtime, Istio's test data.
//!
//! ```text
//! cri_runtime.rs ─ containerd or CRI-O in namespaces of its own ◀── cri.rs, its client (the calls of a kubelet)
//! agent.rs ─────── the node agent on that node
//! kubelet.rs ───── pods of the project's manifests, translated to calls of the runtime
//! image.rs ─────── container images made from files of this machine
//! topology.rs ──── a pod, its peer and its guest as network namespaces
//! review_client.rs  a client of the webhook over HTTP/2
//! segment.rs ───── TCP segments that no socket would send
//! webhook.rs ───── the admission webhook, called as an API server calls it
//! conformance.rs ─ Istio's injector test cases
//! cgroup.rs ────── limits of memory and processor time
//! wait.rs ──────── waiting for conditions
//! ```

pub mod agent;
pub mod cgroup;
pub mod conformance;
pub mod cri;
pub mod cri_runtime;
pub mod image;
pub mod kubelet;
pub mod review_client;
pub mod segment;
pub mod topology;
pub mod wait;
pub mod webhook;

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

pub use wait::{TIMEOUT, try_wait_until, wait_until};

/// The project's binaries with their packages.
const BINARIES: [(&str, &str); 6] = [
    ("weir", "weir-cli"),
    ("weir-agent", "weir-agent"),
    ("weir-cni", "weir-cni"),
    ("weir-demo", "weir-demo"),
    ("weir-iptables", "weir-iptables"),
    ("weir-webhook", "weir-webhook"),
];

/// Returns the path of one of the project's binaries (`weir`, `weir-agent`, ...). All are in one directory.
///
/// Cargo builds only the binaries of a test's own package, so the first call builds all of them, with the target directory and profile
/// of the running test. With `WEIR_BIN_DIR` set, they are taken from there and nothing is built.
///
/// # Panics
/// When there is no such binary, or the build fails.
pub fn bin(name: &str) -> PathBuf {
    static DIR: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    assert!(BINARIES.iter().any(|(binary, _)| *binary == name), "the project has no binary {name}");
    let dir = DIR.get_or_init(|| std::env::var_os("WEIR_BIN_DIR").map_or_else(build, |dir| Ok(dir.into())));
    let path = dir.as_ref().unwrap_or_else(|error| panic!("{error}")).join(name);
    assert!(path.is_file(), "{} does not exist", path.display());
    path
}

/// Builds the binaries and returns their directory.
fn build() -> Result<PathBuf, String> {
    // .../target/PROFILE/deps/this_test-HASH
    let exe = std::env::current_exe().unwrap_or_else(|error| panic!("cannot find the running test: {error}"));
    let profile_dir = exe
        .ancestors()
        .find(|dir| dir.file_name().is_some_and(|part| part == "deps"))
        .and_then(|deps| deps.parent())
        .unwrap_or_else(|| panic!("{} is not in a `deps` directory of cargo", exe.display()));
    let target_dir = profile_dir.parent().unwrap_or(profile_dir);
    let profile = match profile_dir.file_name().and_then(|part| part.to_str()) {
        Some("debug") | None => "dev",
        Some(other) => other,
    };
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--quiet", "--profile", profile])
        .args(BINARIES.iter().flat_map(|(binary, package)| ["--package", package, "--bin", binary]))
        .arg("--target-dir")
        .arg(target_dir)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap_or_else(|error| panic!("cannot run cargo build: {error}"));
    if !output.status.success() {
        return Err(format!("cargo build failed:\n{}", String::from_utf8_lossy(&output.stderr)));
    }
    Ok(profile_dir.to_owned())
}

/// Returns whether privileged tests can run; where not, the test is [skipped](weir_lab::skip_or_fail).
pub fn privileged() -> bool {
    weir_lab::privilege::available_or_skip()
}

/// Returns the Envoy binary named by `WEIR_ENVOY`; without it, or without privileges, the test is [skipped](weir_lab::skip_or_fail).
pub fn envoy_or_skip() -> Option<PathBuf> {
    if !privileged() {
        return None;
    }
    let found = std::env::var_os("WEIR_ENVOY").map(PathBuf::from).filter(|path| path.is_file());
    if found.is_none() {
        weir_lab::skip_or_fail("WEIR_ENVOY does not name an Envoy binary; `make tools` installs one");
    }
    found
}
