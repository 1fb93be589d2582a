//! `weir iptables`: what `istio-iptables` does, for init containers and scripts.
//!
//! ```text
//! command line ┐
//! environment ─┴▶ options (one table) ─▶ request: rules, Method, what to do
//!   ├ --dry-run ─▶ text
//!   ├ cleanup, apply ─▶ backend, in the namespace
//!   └ --run-validation ─▶ validation: connections that show whether the rules do their work
//! ```

mod args;
mod log;
mod options;
mod request;
mod validation;

use std::fs;
use std::net::IpAddr;
use std::process::ExitCode;

use iptables_rules::restore::{RestoreFamily, restore_text};
use weir_kernel::backend::{self, BackendError, Place};
use weir_kernel::netns;
use weir_kernel::nft::Applied;
use weir_kernel::route::Routed;

pub(crate) use self::args::IptablesArgs;
use self::log::Log;
use self::request::{Machine, Request};
use crate::failure::Failure;
use crate::files;

/// Shown below the options.
pub(crate) const HELP: &str = "\
The options, short forms and variables are those of istio-iptables. Rules that are there already are replaced in place, without a gap; equal ones are left alone.

From the environment alone: ENVOY_USER, DRY_RUN_FILE_PATH, ISTIO_OUTBOUND_OWNER_GROUPS, ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE, ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR.

Examples:
  weir iptables -p 15001 -z 15006 -u 1337 -m REDIRECT -i '*' -x '' -b '*' -d 15090,15021,15020
  weir iptables -i '*' -b '*' --dry-run
  weir iptables -i '*' -b '*' --run-validation --skip-rule-apply
  weir iptables --cleanup-only --network-namespace /run/netns/pod

Exit status: 0 done, 1 a value or the kernel refused, 2 wrong usage, 126 the validation failed.";

/// Carries `weir iptables` out.
///
/// # Errors
/// Everything that is wrong with the options, what the kernel refused, and what the validation found.
pub(crate) fn run(args: &IptablesArgs) -> Result<ExitCode, Failure> {
    let machine = Machine {
        env: &|name| std::env::var(name).ok(),
        user: &user,
        dns_servers: &dns_servers,
        without_ipv6: &|| !std::path::Path::new("/proc/sys/net/ipv6").exists(),
    };
    let request = Request::new(args, &machine).map_err(Failure::refused)?;
    let log = Log::new(&request.draft);
    for warning in &request.warnings {
        log.warn(warning);
    }
    log.info(&format!("effective configuration: {request}"));
    if request.draft.dry_run {
        return dry_run(&request);
    }
    let work = || {
        program(&request, log)?;
        if request.draft.run_validation {
            validation::run(&request, log)?;
        }
        Ok(ExitCode::SUCCESS)
    };
    match &request.draft.network_namespace {
        None => work(),
        Some(path) => netns::within(path, work).unwrap_or_else(|error| Err(Failure::refused(vec![error.to_string()]))),
    }
}

/// The texts of both families between lines that name them, which both programs take for comments.
fn dry_run(request: &Request) -> Result<ExitCode, Failure> {
    let sections = RestoreFamily::ALL.map(|family| {
        let (program, text) = (format!("{}-restore --noflush", family.tool()), restore_text(&request.rules, family));
        format!("# begin {program}\n{text}# end {program}\n")
    });
    let text = sections.concat();
    if let Some(path) = &request.draft.dry_run_file {
        files::write(Some(path), &text)?;
    }
    files::write(None, &text)?;
    Ok(ExitCode::SUCCESS)
}

/// Cleans up, or applies.
fn program(request: &Request, log: Log) -> Result<(), Failure> {
    let refused = |error: BackendError| Failure::refused(vec![error.to_string()]);
    let (draft, method) = (&request.draft, request.method);
    if draft.cleanup_only {
        for place in Place::ALL {
            if place.clear().map_err(refused)? {
                log.info(&format!("removed the rules in {place}"));
            }
        }
        return Ok(());
    }
    if draft.skip_rule_apply {
        return Ok(());
    }
    let (applied, routed) = backend::install(&request.rules, method, draft.force_apply).map_err(refused)?;
    log.info(match applied {
        Applied::Created => "capture rules installed",
        Applied::Unchanged => "capture rules in place already",
        Applied::Replaced => "capture rules replaced",
    });
    if routed == Routed::WithoutIpv6 {
        log.info("IPv6 is switched off here: no address ::6 on lo");
    }
    for place in Place::ALL {
        if place.is_of(method).map_err(refused)? || !place.is_used().map_err(refused)? {
            continue;
        }
        // The rules are in place, so nothing escapes while others go.
        if draft.reconcile {
            place.clear().map_err(refused)?;
            log.info(&format!("removed the rules in {place}"));
        } else {
            log.warn(&format!("there are capture rules in {place} too; --reconcile removes them"));
        }
    }
    Ok(())
}

/// Id of a user of this machine, or image.
fn user(name: &str) -> Option<u32> {
    let passwd = fs::read_to_string("/etc/passwd").ok()?;
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?
    })
}

/// The servers of `/etc/resolv.conf`, in its order.
fn dns_servers() -> Vec<IpAddr> {
    let text = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        // An address of a link may carry its name, which means nothing to a rule.
        (words.next() == Some("nameserver")).then(|| words.next()?.split('%').next()?.parse().ok())?
    });
    let mut addresses: Vec<IpAddr> = Vec::new();
    for server in servers {
        if !addresses.contains(&server) {
            addresses.push(server);
        }
    }
    addresses
}
