//! Support of the tests across crates: where the binaries are, which privileges there are, and a real container runtime.
//!
//! ```text
//! runtime.rs ── a daemon of its own, in its own namespaces ──▶ cri.rs ── what a kubelet would ask of it
//! agent.rs ────── the node agent on that node
//! kubelet.rs ──── a pod of our manifests, as a kubelet would have it run
//! image.rs ────── the images it runs, made from files of this machine
//! segment.rs ── TCP segments that no socket would send
//! topology.rs ─ a pod, its peer and its guest as namespaces
//! webhook.rs ──── the real admission webhook, asked as an API server asks it
//! conformance.rs ─ Istio's injector cases, read and compared
//! ```

pub mod agent;
pub mod conformance;
pub mod cri;
pub mod image;
pub mod kubelet;
pub mod runtime;
pub mod segment;
pub mod topology;
pub mod webhook;

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

/// The project's binaries with the packages they are in.
const BINARIES: [(&str, &str); 4] =
    [("weir", "weir-cli"), ("weir-agent", "weir-agent"), ("weir-cni", "weir-cni"), ("weir-webhook", "weir-webhook")];

/// Path of one of the project's binaries (`weir`, `weir-agent`, `weir-cni`, `weir-webhook`), up to date with the sources. All lie in one folder.
///
/// Cargo hands a package's tests only the binaries of that package, so this one builds them, once per process and all in one go, into
/// the target directory and profile the running test came from. With `WEIR_BIN_DIR` set, they are taken from there and nothing is built.
///
/// # Panics
/// When the name is none of ours or the build fails: a test without its binary has nothing to say.
pub fn bin(name: &str) -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    assert!(BINARIES.iter().any(|(binary, _)| *binary == name), "no binary of the project is called {name}");
    let folder = FOLDER.get_or_init(|| std::env::var_os("WEIR_BIN_DIR").map_or_else(build, PathBuf::from));
    let path = folder.join(name);
    assert!(path.is_file(), "there is no {}", path.display());
    path
}

/// Builds the binaries and tells where they are.
fn build() -> PathBuf {
    // .../target/PROFILE/deps/this_test-HASH
    let exe = std::env::current_exe().unwrap_or_else(|error| panic!("where does this test run: {error}"));
    let profile_dir = exe
        .ancestors()
        .find(|dir| dir.file_name().is_some_and(|part| part == "deps"))
        .and_then(|deps| deps.parent())
        .unwrap_or_else(|| panic!("{} is not below a `deps` directory of cargo", exe.display()));
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
        .unwrap_or_else(|error| panic!("cargo build: {error}"));
    assert!(output.status.success(), "cargo build failed:\n{}", String::from_utf8_lossy(&output.stderr));
    profile_dir.to_owned()
}

/// Whether the privileged tests can run; where not, prints why and the test returns.
///
/// # Panics
/// Where `CI` is set and the privileges are missing: a skip must never look green there.
pub fn privileged() -> bool {
    weir_lab::privilege::available_or_skip()
}

/// The Envoy binary named by `WEIR_ENVOY`; where there is none, or no privileges, prints why and the test returns.
///
/// # Panics
/// Where `CI` is set and it cannot run: a skip must never look green there.
pub fn envoy_or_skip() -> Option<PathBuf> {
    if !privileged() {
        return None;
    }
    let found = std::env::var_os("WEIR_ENVOY").map(PathBuf::from).filter(|path| path.is_file());
    if found.is_none() {
        assert!(std::env::var_os("CI").is_none(), "WEIR_ENVOY does not name a file; `make tools` installs Envoy");
        eprintln!("skipped: WEIR_ENVOY does not name an Envoy binary (`make test` sets it)");
    }
    found
}
