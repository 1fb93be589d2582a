//! Installs and validates the capture rules of one network namespace, with the options of `istio-iptables`.
//!
//! ```text
//! command line ┐
//! environment ─┴▶ options (one table) ─▶ Request: rules, method, what to do
//!   ├ --dry-run ─────────▶ text of iptables-restore
//!   ├ cleanup, apply ────▶ program: the kernel backends, in the namespace
//!   └ --run-validation ──▶ validation: connections that show whether the rules work
//! specification of an init container ─▶ container: the capture configuration
//! ```
//!
//! `weir iptables` calls this library. The binary `weir-iptables` is the same for init and validation containers: it links no client of
//! Kubernetes and no TLS.

mod args;
mod container;
mod error;
mod host;
mod identity;
mod log;
mod options;
mod program;
mod request;
mod validation;

use std::io::{self, ErrorKind, Write as _};

use iptables_rules::restore::{RestoreFamily, restore_text};
use weir_kernel::netns;

pub use self::args::IptablesArgs;
pub use self::container::capture_config;
pub use self::error::IptablesError;

use self::host::HostInfo;
use self::log::Log;
use self::request::Request;

/// Returns the help below the options, for the program or subcommand that is called `program`.
pub fn help(program: &str) -> String {
    format!(
        "\
Options, short forms and variables are those of istio-iptables. Existing rules are replaced in place, without a gap; equal ones are kept.

Set by variables only: ENVOY_USER, DRY_RUN_FILE_PATH, ISTIO_OUTBOUND_OWNER_GROUPS, ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE, ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR.

Examples:
  {program} -p 15001 -z 15006 -u 1337 -m REDIRECT -i '*' -x '' -b '*' -d 15090,15021,15020
  {program} -i '*' -b '*' --dry-run
  {program} -i '*' -b '*' --run-validation --skip-rule-apply
  {program} --cleanup-only --network-namespace /run/netns/pod

Exit status: 0 done, 1 a value is invalid or the kernel rejected the rules, 2 wrong usage, 126 the validation failed."
    )
}

/// Does what the options ask for: prints, installs, removes or validates the rules.
///
/// # Errors
/// See [`IptablesError`].
pub fn run(args: &IptablesArgs) -> Result<(), IptablesError> {
    let request = Request::new(args, &HostInfo::of_this_host()).map_err(IptablesError::InvalidOptions)?;
    let log = Log::new(&request.options);
    for warning in &request.warnings {
        log.warn(warning);
    }
    log.info(&format!("effective configuration: {request}"));
    if request.options.dry_run {
        return dry_run(&request);
    }
    let work = || {
        program::run(&request, log)?;
        if request.options.run_validation { validation::run(&request, log) } else { Ok(()) }
    };
    match &request.options.network_namespace {
        None => work(),
        Some(path) => netns::run_in(path, work)?,
    }
}

/// Prints the texts of both families, between lines that name them and that both programs read as comments.
fn dry_run(request: &Request) -> Result<(), IptablesError> {
    let sections = RestoreFamily::ALL.map(|family| {
        let (program, text) = (format!("{}-restore --noflush", family.tool()), restore_text(&request.rules, family));
        format!("# begin {program}\n{text}# end {program}\n")
    });
    let text = sections.concat();
    let cannot_write = |to: String| |error| IptablesError::Output { to, error };
    if let Some(path) = &request.options.dry_run_file {
        std::fs::write(path, &text).map_err(cannot_write(path.display().to_string()))?;
    }
    match io::stdout().lock().write_all(text.as_bytes()) {
        // The reader has seen enough (`| head`).
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.map_err(cannot_write("standard output".to_owned())),
    }
}
