//! The backends that install rules into a namespace.

use std::process::Command;

use iptables_rules::backend::Visibility;
use iptables_rules::restore::{RestoreFamily, restore_text};
use iptables_rules::{CaptureConfig, RuleSet, plan};
use weir_kernel::backend::{self, BackendOptions};
use weir_kernel::iptables::IptablesVariant;
use weir_kernel::route;
use weir_lab::{Netns, process};
use weir_tests::TIMEOUT;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backend {
    /// nf_tables over netlink.
    Nft,
    /// nf_tables over netlink, in the form of iptables-nft.
    IptablesCompat,
    /// The programs of iptables, in the variant that is found.
    Iptables,
    /// The programs of iptables-legacy.
    IptablesLegacy,
    /// The printed rules through iptables-nft-restore.
    TextNft,
    /// The printed rules through iptables-legacy-restore.
    TextLegacy,
}

impl Backend {
    /// Returns every backend that this machine can run. iptables-legacy needs a kernel with x_tables.
    pub(crate) fn all() -> Vec<Self> {
        let mut all = vec![Self::Nft, Self::IptablesCompat, Self::Iptables, Self::TextNft];
        if has_x_tables() {
            all.extend([Self::IptablesLegacy, Self::TextLegacy]);
        } else {
            weir_lab::skip_or_fail("iptables-legacy does not work on this kernel");
        }
        all
    }

    /// Installs the rules for `config`, with the addresses and routes they rely on.
    pub(crate) fn install(self, pod: &Netns, config: &CaptureConfig) {
        let rules = plan(config).unwrap_or_else(|refused| panic!("{refused:?}"));
        let options = match self {
            Self::Nft => BackendOptions::default(),
            Self::IptablesCompat => BackendOptions { visibility: Visibility::Iptables, ..BackendOptions::default() },
            Self::Iptables => BackendOptions::from(iptables_rules::backend::Backend::Iptables),
            Self::IptablesLegacy => BackendOptions {
                backend: iptables_rules::backend::Backend::Iptables,
                variant: Some(IptablesVariant::Legacy),
                ..BackendOptions::default()
            },
            Self::TextNft | Self::TextLegacy => {
                let variant = if self == Self::TextNft { "nft" } else { "legacy" };
                restore_both(
                    pod,
                    &rules,
                    &format!("iptables-{variant}-restore"),
                    &format!("ip6tables-{variant}-restore"),
                );
                pod.run(|| route::apply(&rules.routing)).unwrap().unwrap_or_else(|error| panic!("routing: {error}"));
                return;
            }
        };
        let installed = pod.run(|| backend::install(&rules, options, false)).unwrap();
        installed.unwrap_or_else(|error| panic!("{self:?}: {error}"));
    }
}

fn restore_both(pod: &Netns, rules: &RuleSet, v4: &str, v6: &str) {
    for (program, family) in [(v4, RestoreFamily::V4), (v6, RestoreFamily::V6)] {
        let text = restore_text(rules, family);
        if !text.is_empty() {
            restore(pod, program, &text).unwrap_or_else(|error| panic!("{error}\n{text}"));
        }
    }
}

fn restore(pod: &Netns, program: &str, text: &str) -> Result<(), String> {
    let run = || process::run(Command::new(program).arg("--noflush"), text.as_bytes(), TIMEOUT);
    let output = pod.run(run).and_then(|result| result).map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{program} {}: {}", output.status, String::from_utf8_lossy(&output.stderr)))
}

fn has_x_tables() -> bool {
    let scratch = Netns::new("scratch").unwrap();
    let text = "*nat\n-A OUTPUT -p tcp -m owner --uid-owner 1 -j REDIRECT --to-ports 1\nCOMMIT\n";
    ["iptables-legacy-restore", "ip6tables-legacy-restore"]
        .iter()
        .all(|program| restore(&scratch, program, text).is_ok())
}
