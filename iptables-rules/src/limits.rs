//! Limits of one pod's capture configuration, checked before anything is built from it.
//!
//! Whoever may create a pod writes these values, and they are read as root on its node. So each list has a limit, and the number of rules
//! is at most linear in the length of the lists: a product of two lists is never planned (see `plan/outbound.rs`). The limits are far above
//! what pods use, and low enough that the largest accepted pod is planned within a few milliseconds.

/// Bytes of one annotation or variable: half of what Kubernetes allows for all annotations of an object together
/// (`TotalAnnotationSizeLimitB`, 256 KiB, k8s.io/apimachinery).
pub const MAX_VALUE_BYTES: usize = 128 * 1024;

/// Interfaces of one list. Multus attaches a few to a pod.
pub const MAX_INTERFACES: usize = 64;

/// Users, and groups, that the proxy runs as. Istio uses one of each.
pub const MAX_PROXY_IDS: usize = 64;

/// Groups in [`OwnerGroups::Only`](crate::config::OwnerGroups::Only): Istio's limit (`ValidateOwnerGroups`), as they all become conditions of one rule.
pub const MAX_INCLUDED_GROUPS: usize = 64;

/// Groups in [`OwnerGroups::AllBut`](crate::config::OwnerGroups::AllBut), one rule each. Istio has no limit.
pub const MAX_EXCLUDED_GROUPS: usize = 1_000;

/// Ports of one list. A Service of Kubernetes has at most a few hundred.
pub const MAX_PORTS: usize = 1_000;

/// Networks of one list. Published lists of a cloud's address ranges have up to some 5,000 of each family.
pub const MAX_CIDRS: usize = 10_000;

/// DNS servers. `resolv.conf` has at most three.
pub const MAX_DNS_SERVERS: usize = 64;

/// Rules in all, both families together.
pub const MAX_RULES: usize = 20_000;

/// Checks the length of a list before its elements are parsed.
///
/// # Errors
/// Returns the fault, as the predicate of a sentence whose subject is the list.
pub(crate) fn check_count(count: usize, limit: usize, what: &str) -> Result<(), String> {
    if count > limit { Err(format!("lists {count} {what}; at most {limit} are allowed")) } else { Ok(()) }
}

/// Checks the length of a value before it is parsed.
///
/// # Errors
/// Returns the fault, as the predicate of a sentence whose subject is the value.
pub(crate) fn check_bytes(value: &str) -> Result<(), String> {
    let length = value.len();
    if length > MAX_VALUE_BYTES {
        Err(format!("is {length} bytes long; the limit is {MAX_VALUE_BYTES}"))
    } else {
        Ok(())
    }
}
