//! From the values of the options to what has to be done: a pure function, which names everything that is wrong.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use iptables_rules::annotations::{AnnotationError, Source, combine_owner_groups};
use iptables_rules::config::{DnsCapture, Ipv6Policy};
use iptables_rules::names::{PROXY_ID, variable};
use iptables_rules::{CaptureConfig, RuleSet, plan};
use weir_kernel::backend::{Backend, Method};

use super::args::IptablesArgs;
use super::options::{Draft, Ipv6, OPTIONS};

/// What the machine says where the options leave it open.
pub(crate) struct Machine<'a> {
    /// The environment.
    pub(crate) env: &'a dyn Fn(&str) -> Option<String>,
    /// Id of a user (`/etc/passwd`).
    pub(crate) user: &'a dyn Fn(&str) -> Option<u32>,
    /// Addresses of DNS servers (`/etc/resolv.conf`).
    pub(crate) dns_servers: &'a dyn Fn() -> Vec<IpAddr>,
    /// Whether there is no IPv6 at all.
    pub(crate) without_ipv6: &'a dyn Fn() -> bool,
}

/// What has to be done.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Request {
    /// The capture configuration, complete.
    pub(crate) config: CaptureConfig,
    /// The rules for it.
    pub(crate) rules: RuleSet,
    /// How rules get into the kernel.
    pub(crate) method: Method,
    /// Everything else.
    pub(crate) draft: Draft,
    /// What the user should know.
    pub(crate) warnings: Vec<String>,
}

impl Request {
    /// Puts options, environment and machine together.
    ///
    /// # Errors
    /// Every value that cannot be taken, and every pair that contradicts itself.
    pub(crate) fn new(args: &IptablesArgs, machine: &Machine<'_>) -> Result<Self, Vec<String>> {
        let mut draft = Draft::default();
        let mut findings = Vec::new();
        let mut variables = BTreeMap::new();
        for option in OPTIONS {
            let Some(given) = args.value(option, machine.env) else { continue };
            if let Err(faults) = (option.read)(&mut draft, &given.value) {
                let source = if given.name.starts_with('-') { Source::Flag } else { Source::Variable };
                findings.push(AnnotationError::of(source, &given.name, &given.value, &faults).to_string());
            }
            if option.env == [variable::OWNER_GROUPS_EXCLUDE] {
                variables.insert(given.name, given.value);
            }
        }
        findings.extend(combine_owner_groups(&mut draft.config, &variables).map(|error| error.to_string()));
        let mut warnings: Vec<String> =
            args.ignored.iter().map(|name| format!("option --{name} has no meaning any more and is ignored")).collect();
        let mut config = draft.config.clone();
        config.proxy_uids = draft.uids.clone().unwrap_or_else(|| vec![proxy_user(&draft, machine)]);
        config.proxy_gids = draft.gids.clone().unwrap_or_else(|| config.proxy_uids.clone());
        config.dns = dns(&draft, machine, &mut warnings);
        config.ipv6 = match draft.ipv6 {
            Ipv6::Off => Ipv6Policy::Leave,
            Ipv6::Auto if (machine.without_ipv6)() => Ipv6Policy::Leave,
            Ipv6::Auto | Ipv6::On => Ipv6Policy::Capture,
        };
        let method = method(&draft).map_err(|finding| findings.push(finding)).unwrap_or_default();
        if draft.cleanup_only && draft.run_validation {
            findings.push("--cleanup-only and --run-validation: nothing is left to validate".to_owned());
        }
        match plan(&config) {
            Ok(rules) if findings.is_empty() => Ok(Self { config, rules, method, draft, warnings }),
            planned => {
                findings.extend(planned.err().into_iter().flatten().map(|unsupported| unsupported.to_string()));
                Err(findings)
            }
        }
    }
}

/// The user that `ENVOY_USER` names, as the proxy's image has it.
fn proxy_user(draft: &Draft, machine: &Machine<'_>) -> u32 {
    (machine.user)(draft.user_name.as_deref().unwrap_or("istio-proxy")).unwrap_or(PROXY_ID)
}

fn dns(draft: &Draft, machine: &Machine<'_>, warnings: &mut Vec<String>) -> DnsCapture {
    if !draft.redirect_dns {
        return DnsCapture::Off;
    }
    if draft.capture_all_dns {
        return DnsCapture::All;
    }
    let servers = draft.dns_servers.clone().unwrap_or_else(|| (machine.dns_servers)());
    if servers.is_empty() {
        warnings.push(
            "DNS is not captured: no server is known; name some with --dns-servers, or give --capture-all-dns"
                .to_owned(),
        );
    }
    DnsCapture::Servers(servers)
}

fn method(draft: &Draft) -> Result<Method, String> {
    let backend = match (draft.backend, draft.native_nftables, draft.variant) {
        (Some(Backend::Iptables), true, _) | (None, true, Some(_)) => {
            return Err("--native-nftables contradicts the choice of iptables".to_owned());
        }
        (Some(Backend::Nft), _, Some(_)) => {
            return Err("--force-iptables-binary contradicts --backend nft".to_owned());
        }
        (_, true, _) => Backend::Nft,
        (_, _, Some(_)) => Backend::Iptables,
        (backend, false, None) => backend.unwrap_or_default(),
    };
    Ok(Method { backend, visibility: draft.visibility, variant: draft.variant })
}

impl fmt::Display for Request {
    /// The effective configuration: the capture in the form of the annotation `weir.dev/capture`, and what is not in there.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "capture {}", self.config.to_capture_annotation())?;
        write!(f, " backend {} visibility {}", self.method.backend.name(), self.method.visibility.name())?;
        for (name, on) in [
            ("dry-run", self.draft.dry_run),
            ("skip-rule-apply", self.draft.skip_rule_apply),
            ("cleanup-only", self.draft.cleanup_only),
            ("reconcile", self.draft.reconcile),
            ("force-apply", self.draft.force_apply),
            ("run-validation", self.draft.run_validation),
        ] {
            if on {
                write!(f, " {name}")?;
            }
        }
        if let Some(path) = &self.draft.network_namespace {
            write!(f, " network-namespace {}", path.display())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
