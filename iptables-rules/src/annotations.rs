//! Reads Istio's annotations, and what the pod spec says about the proxy, into a [`CaptureConfig`].
//!
//! [`SETTINGS`] lists everything that is read, with defaults and meaning. The annotation `weir.dev/capture`, which carries a finished
//! configuration from the webhook to the plugin, has a module of its own: [`capture_annotation`](crate::capture_annotation).

use std::collections::{BTreeMap, HashSet};

use crate::CaptureConfig;
use crate::config::{Ipv6Policy, OwnerGroups};
use crate::names::{self, annotation, variable};

mod error;
mod proxy_spec;
mod settings;

pub(crate) use error::join_faults;
pub use error::{SettingError, SettingSource};
pub use proxy_spec::ProxySpec;
pub use settings::{SETTINGS, Setting};

impl CaptureConfig {
    /// Builds a configuration from Istio's annotations, with the defaults of Istio's CNI plugin.
    ///
    /// # Errors
    /// Returns one error for every invalid annotation or variable.
    pub fn from_annotations(
        annotations: &BTreeMap<String, String>,
        proxy: &ProxySpec,
    ) -> Result<Self, Vec<SettingError>> {
        let id = |given: Option<u32>| given.filter(|&id| id != 0).unwrap_or(names::PROXY_ID);
        let mut config = Self {
            proxy_uids: vec![id(proxy.uid)],
            proxy_gids: vec![id(proxy.gid)],
            ipv6: Ipv6Policy::Auto,
            ..Self::default()
        };
        let mut errors = Vec::new();
        for setting in SETTINGS {
            let given = match setting.source {
                SettingSource::Annotation => annotations.get(setting.name),
                SettingSource::Variable => proxy.env.get(setting.name),
                SettingSource::Flag => None,
            };
            let Some(value) = given else { continue };
            if setting.name == annotation::KUBEVIRT_INTERFACES
                && annotations.contains_key(annotation::REROUTE_VIRTUAL_INTERFACES)
            {
                continue; // the deprecated name counts only without the current one
            }
            if let Err(faults) = setting.parse_into(&mut config, value) {
                errors.push(SettingError::with_faults(setting.source, setting.name, value, &faults));
            }
        }
        // A proxy that may accept IPv6 must not be bypassed.
        if config.ipv6 == Ipv6Policy::Auto && !proxy.is_known && !proxy.env.contains_key(variable::DUAL_STACK) {
            config.ipv6 = Ipv6Policy::Capture;
        }
        errors.extend(combine_owner_groups(&mut config, &proxy.env));
        if errors.is_empty() { Ok(config) } else { Err(errors) }
    }
}

/// Applies the excluded groups after [`variable::OWNER_GROUPS`] has been read. Next to `*` they are excluded from capture; next to a list
/// of groups they have no effect and must not contradict it.
pub fn combine_owner_groups(config: &mut CaptureConfig, env: &BTreeMap<String, String>) -> Option<SettingError> {
    let excluded = env.get(variable::OWNER_GROUPS_EXCLUDE)?;
    let groups = settings::excluded_groups(excluded).ok()?; // faults are reported with the setting itself
    match &mut config.owner_groups {
        OwnerGroups::AllBut(all_but) => {
            *all_but = groups;
            None
        }
        OwnerGroups::Only(only) => {
            let only: HashSet<_> = only.iter().collect();
            let both = groups.iter().find(|group| only.contains(group))?;
            let reason = format!("'{both}' is also in {}", variable::OWNER_GROUPS);
            Some(SettingError::variable(variable::OWNER_GROUPS_EXCLUDE, excluded, reason))
        }
    }
}

#[cfg(test)]
mod tests;
