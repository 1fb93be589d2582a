//! Checks whether this process can create network namespaces.

use std::fmt::Display;
use std::io::Write as _;
use std::path::Path;

use nix::unistd::geteuid;

/// Returns why namespaces cannot be created, or `None`.
pub fn missing_privilege() -> Option<&'static str> {
    if !geteuid().is_root() {
        Some("network namespaces need root; run with sudo")
    } else if !Path::new("/proc/sys/net/ipv6").exists() {
        Some("this kernel has no IPv6 (ipv6.disable=1)")
    } else {
        None
    }
}

/// Returns whether namespaces can be created; if not, calls [`skip_or_fail`].
///
/// # Panics
/// Panics if `CI` is set and privileges are missing.
pub fn available_or_skip() -> bool {
    missing_privilege().map(skip_or_fail).is_none()
}

/// Reports on standard error that a test is skipped; the test then has to return. In CI, a skipped test fails.
///
/// # Panics
/// Panics if the environment variable `CI` is set.
pub fn skip_or_fail(reason: impl Display) {
    assert!(std::env::var_os("CI").is_none(), "CI is set, but this test cannot run: {reason}");
    // `eprintln!` would be captured and shown for failed tests only.
    let _ = writeln!(std::io::stderr(), "skipped: {reason}");
}
