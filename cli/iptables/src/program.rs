//! Installs the rules, or removes those of every backend.

use weir_kernel::ApplyOutcome;
use weir_kernel::backend::{self, RuleStore};
use weir_kernel::route::RoutingOutcome;

use crate::error::IptablesError;
use crate::log::Log;
use crate::request::Request;

/// Carries out `--cleanup-only`, or installs the rules unless `--skip-rule-apply` is set.
///
/// # Errors
/// The kernel or a program of iptables fails.
pub(crate) fn run(request: &Request, log: Log) -> Result<(), IptablesError> {
    let (options, method) = (&request.options, request.method);
    if options.cleanup_only {
        for store in RuleStore::ALL {
            if store.clear()? {
                log.info(&format!("removed the rules in {store}"));
            }
        }
        return Ok(());
    }
    if options.skip_rule_apply {
        return Ok(());
    }
    let (applied, routed) = backend::install(&request.rules, method, options.force_apply)?;
    log.info(match applied {
        ApplyOutcome::Created => "installed capture rules",
        ApplyOutcome::Unchanged => "capture rules are already in place",
        ApplyOutcome::Replaced => "replaced capture rules",
    });
    if routed == RoutingOutcome::WithoutIpv6 {
        log.info("IPv6 is disabled; not adding address ::6 to lo");
    }
    for store in RuleStore::ALL {
        if store.is_target_of(method)? || !store.has_rules()? {
            continue;
        }
        // The new rules are in place, so no packet escapes while the others go.
        if options.reconcile {
            store.clear()?;
            log.info(&format!("removed the rules in {store}"));
        } else {
            log.warn(&format!("{store} has capture rules too; pass --reconcile to remove them"));
        }
    }
    Ok(())
}
