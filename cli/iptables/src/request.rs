//! Combines the options into a request, as a pure function that reports all errors at once.

use std::collections::BTreeMap;
use std::fmt;

use iptables_rules::annotations::{SettingError, SettingSource, combine_owner_groups};
use iptables_rules::backend::Backend;
use iptables_rules::config::{DnsCapture, Ipv6Policy};
use iptables_rules::names::{PROXY_ID, variable};
use iptables_rules::{CaptureConfig, RuleSet, plan};
use weir_kernel::backend::BackendOptions;

use crate::args::IptablesArgs;
use crate::host::HostInfo;
use crate::options::{Ipv6, OPTIONS, ParsedOptions};

/// Work that the options ask for.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Request {
    /// The effective capture configuration.
    pub(crate) config: CaptureConfig,
    pub(crate) rules: RuleSet,
    pub(crate) method: BackendOptions,
    pub(crate) options: ParsedOptions,
    pub(crate) warnings: Vec<String>,
}

impl Request {
    /// Combines command line, environment and the defaults of the host.
    ///
    /// # Errors
    /// Every invalid value, and every pair of options that contradict each other.
    pub(crate) fn new(args: &IptablesArgs, host: &HostInfo<'_>) -> Result<Self, Vec<String>> {
        let mut options = ParsedOptions::default();
        let mut findings = Vec::new();
        let mut variables = BTreeMap::new();
        for option in OPTIONS {
            let Some(given) = args.value(option, host.env) else { continue };
            if let Err(faults) = (option.parse_into)(&mut options, &given.value) {
                let source = if given.name.starts_with('-') { SettingSource::Flag } else { SettingSource::Variable };
                findings.push(SettingError::with_faults(source, &given.name, &given.value, &faults).to_string());
            }
            if option.env == [variable::OWNER_GROUPS_EXCLUDE] {
                variables.insert(given.name, given.value);
            }
        }
        findings.extend(combine_owner_groups(&mut options.config, &variables).map(|error| error.to_string()));
        let mut warnings: Vec<String> =
            args.ignored.iter().map(|name| format!("option --{name} has no effect and is ignored")).collect();
        let mut config = options.config.clone();
        config.proxy_uids = options.uids.clone().unwrap_or_else(|| vec![proxy_user(&options, host)]);
        config.proxy_gids = options.gids.clone().unwrap_or_else(|| config.proxy_uids.clone());
        config.dns = dns(&options, host, &mut warnings);
        config.ipv6 = match options.ipv6 {
            Ipv6::Off => Ipv6Policy::Leave,
            Ipv6::Auto if (host.lacks_ipv6)() => Ipv6Policy::Leave,
            Ipv6::Auto | Ipv6::On => Ipv6Policy::Capture,
        };
        let method = method(&options).map_err(|finding| findings.push(finding)).unwrap_or_default();
        if options.cleanup_only && options.run_validation {
            findings.push("--cleanup-only contradicts --run-validation: no rules are left to validate".to_owned());
        }
        match plan(&config) {
            Ok(rules) if findings.is_empty() => Ok(Self { config, rules, method, options, warnings }),
            planned => {
                findings.extend(planned.err().into_iter().flatten().map(|unsupported| unsupported.to_string()));
                Err(findings)
            }
        }
    }
}

/// Returns the id of the user that `ENVOY_USER` names.
fn proxy_user(options: &ParsedOptions, host: &HostInfo<'_>) -> u32 {
    (host.user)(options.user_name.as_deref().unwrap_or("istio-proxy")).unwrap_or(PROXY_ID)
}

fn dns(options: &ParsedOptions, host: &HostInfo<'_>, warnings: &mut Vec<String>) -> DnsCapture {
    if !options.redirect_dns {
        return DnsCapture::Off;
    }
    if options.capture_all_dns {
        return DnsCapture::All;
    }
    let servers = options.dns_servers.clone().unwrap_or_else(|| (host.dns_servers)());
    if servers.is_empty() {
        warnings
            .push("DNS is not captured: no DNS server is known; pass --dns-servers or --capture-all-dns".to_owned());
    }
    DnsCapture::Servers(servers)
}

fn method(options: &ParsedOptions) -> Result<BackendOptions, String> {
    let backend = match (options.backend, options.native_nftables, options.variant) {
        (Some(Backend::Iptables), true, _) | (None, true, Some(_)) => {
            return Err("--native-nftables contradicts --backend iptables and --force-iptables-binary".to_owned());
        }
        (Some(Backend::Nft), _, Some(_)) => {
            return Err("--force-iptables-binary contradicts --backend nft".to_owned());
        }
        (_, true, _) => Backend::Nft,
        (_, _, Some(_)) => Backend::Iptables,
        (backend, false, None) => backend.unwrap_or_default(),
    };
    Ok(BackendOptions { backend, visibility: options.visibility, variant: options.variant })
}

impl fmt::Display for Request {
    /// Prints the effective configuration: the annotation `weir.dev/capture`, and the options that are not in it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "capture {}", self.config.to_capture_annotation())?;
        write!(f, " backend {} visibility {}", self.method.backend.name(), self.method.visibility.name())?;
        for (name, on) in [
            ("dry-run", self.options.dry_run),
            ("skip-rule-apply", self.options.skip_rule_apply),
            ("cleanup-only", self.options.cleanup_only),
            ("reconcile", self.options.reconcile),
            ("force-apply", self.options.force_apply),
            ("run-validation", self.options.run_validation),
        ] {
            if on {
                write!(f, " {name}")?;
            }
        }
        if let Some(path) = &self.options.network_namespace {
            write!(f, " network-namespace {}", path.display())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
