//! Prints the rules that capture the traffic of a pod, as text for `iptables-restore`.
//!
//! ```text
//! annotations ──▶ CaptureConfig ──plan──▶ RuleSet ──▶ text
//! ```

#![expect(clippy::print_stdout, reason = "the output of the example")]

use std::collections::BTreeMap;

use anyhow::bail;
use iptables_rules::annotations::ProxySpec;
use iptables_rules::restore::{RestoreFamily, restore_text};
use iptables_rules::{CaptureConfig, plan};

fn main() -> anyhow::Result<()> {
    // Istio's annotations of the pod.
    let annotations = BTreeMap::from(
        [
            ("traffic.sidecar.istio.io/excludeInboundPorts", "9000"),
            ("traffic.sidecar.istio.io/excludeOutboundIPRanges", "10.1.0.0/16,fd01::/32"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned())),
    );
    // What the pod's spec says about the proxy container: its user, its group, its environment.
    let proxy = ProxySpec { uid: Some(1337), gid: Some(1337), ..ProxySpec::default() };

    // Nothing is defaulted silently: every invalid annotation is an error with its name, value and reason.
    let config = match CaptureConfig::from_annotations(&annotations, &proxy) {
        Ok(config) => config,
        Err(errors) => bail!("invalid annotations: {errors:?}"),
    };
    // The only place that knows how capturing works. Backends only translate the rules; the crate weir-kernel installs them.
    let rules = match plan(&config) {
        Ok(rules) => rules,
        Err(unsupported) => bail!("unsupported settings: {unsupported:?}"),
    };
    for family in RestoreFamily::ALL {
        println!("# {}\n{}", family.tool(), restore_text(&rules, family));
    }
    Ok(())
}

#[test]
fn runs() {
    main().unwrap();
}
