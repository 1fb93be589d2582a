//! Whether this process may make network namespaces.

use nix::unistd::geteuid;

/// Why namespaces cannot be made here, if so.
pub fn missing() -> Option<&'static str> {
    if geteuid().is_root() { None } else { Some("network namespaces need root") }
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
