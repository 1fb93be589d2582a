//! Whether this process may make network namespaces, with all that a laboratory needs in them.

use std::path::Path;

use nix::unistd::geteuid;

/// Why namespaces cannot be made here, if so.
pub fn missing() -> Option<&'static str> {
    if !geteuid().is_root() {
        Some("network namespaces need root: run it with sudo")
    } else if !Path::new("/proc/sys/net/ipv6").exists() {
        Some("this kernel runs without IPv6 (ipv6.disable=1), which is half of what is shown")
    } else {
        None
    }
}

/// For tests: `true` where namespaces can be made; else says why not on standard error.
///
/// # Panics
/// Where the environment variable `CI` is set and the privileges are missing: a skipped test must not look like a passed one there.
pub fn available_or_skip() -> bool {
    let Some(reason) = missing() else { return true };
    assert!(std::env::var_os("CI").is_none(), "CI is set, but {reason}");
    let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("skipped: {reason}\n"));
    false
}
