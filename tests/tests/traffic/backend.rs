//! The ways to put a rule set into a namespace.

use std::process::Command;
use std::time::Duration;

use iptables_rules::restore::{RestoreFamily, restore_text};
use iptables_rules::{CaptureConfig, RuleSet, plan};
use weir_kernel::backend::{self, Method, Visibility};
use weir_kernel::iptables::Variant;
use weir_kernel::route;
use weir_lab::{Netns, process};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backend {
    /// Our own transaction over netlink.
    Nft,
    /// The same over netlink, as iptables-nft would have written it.
    Visible,
    /// Our own fallback: the programs of iptables, the variant that is found.
    Fallback,
    /// The same by the legacy variant.
    FallbackLegacy,
    /// The printed text through iptables on nf_tables.
    TextNft,
    /// The printed text through iptables on x_tables.
    TextLegacy,
}

impl Backend {
    /// Every backend that this machine can run. iptables-legacy needs a kernel with x_tables, which new ones leave out; where it is
    /// missing, this says so.
    pub(crate) fn all() -> Vec<Self> {
        let mut all = vec![Self::Nft, Self::Visible, Self::Fallback, Self::TextNft];
        if x_tables_work() {
            all.extend([Self::FallbackLegacy, Self::TextLegacy]);
        } else {
            eprintln!("skipped: iptables-legacy does not work on this kernel");
        }
        all
    }

    /// Installs the rules for `config`, with the addresses and routes they rely on.
    pub(crate) fn install(self, pod: &Netns, config: &CaptureConfig) {
        let rules = plan(config).unwrap_or_else(|refused| panic!("{refused:?}"));
        let method = match self {
            Self::Nft => Method::default(),
            Self::Visible => Method { visibility: Visibility::Iptables, ..Method::default() },
            Self::Fallback => Method::from(weir_kernel::backend::Backend::Iptables),
            Self::FallbackLegacy => Method {
                backend: weir_kernel::backend::Backend::Iptables,
                variant: Some(Variant::Legacy),
                ..Method::default()
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
        let installed = pod.run(|| backend::install(&rules, method, false)).unwrap();
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
    let run = || process::run(Command::new(program).arg("--noflush"), text.as_bytes(), Duration::from_secs(20));
    let output = pod.run(run).and_then(|result| result).map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{program} {}: {}", output.status, String::from_utf8_lossy(&output.stderr)))
}

fn x_tables_work() -> bool {
    let scratch = Netns::new("scratch").unwrap();
    let text = "*nat\n-A OUTPUT -p tcp -m owner --uid-owner 1 -j REDIRECT --to-ports 1\nCOMMIT\n";
    ["iptables-legacy-restore", "ip6tables-legacy-restore"]
        .iter()
        .all(|program| restore(&scratch, program, text).is_ok())
}
