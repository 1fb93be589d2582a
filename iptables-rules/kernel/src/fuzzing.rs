//! What the fuzz targets reach of the private parts (`fuzz/`); each function panics where something does not hold.
#![allow(clippy::missing_panics_doc, reason = "that is what they are for")]

use std::sync::LazyLock;

use ipnet::Ipv4Net;

use iptables_rules::config::{DnsCapture, InterceptionMode};
use iptables_rules::names::chain;
use iptables_rules::restore::{self, RestoreFamily};
use iptables_rules::ruleset::{Family, Reason, Rule};
use iptables_rules::{CaptureConfig, RuleSet};

use crate::nft;

/// The text of a rule set, read back: every line is a rule that is understood.
pub fn text_of(rules: &RuleSet) {
    for family in [RestoreFamily::V4, RestoreFamily::V6] {
        read_twice(&restore::restore_text(rules, family), true);
    }
}

/// A text that may be anything.
pub fn restore_text(text: &str) {
    read_twice(text, false);
}

/// Bytes as the kernel's answer to a listing.
pub fn netlink_answer(bytes: &[u8]) {
    nft::fuzz(bytes);
}

/// The messages that install some rules, which are those of a listing too, with bytes exchanged: three of the input for each, where and
/// by what.
pub fn edited_netlink_answer(edits: &[u8]) {
    static UNEDITED: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let config = CaptureConfig {
            mode: InterceptionMode::Tproxy,
            outbound_ports_exclude: (1..9).collect(),
            outbound_cidrs_exclude: (0..9).map(|n| Ipv4Net::new_assert([10, n, 0, 0].into(), 15).into()).collect(),
            dns: DnsCapture::All,
            drop_invalid: true,
            ..CaptureConfig::default()
        };
        iptables_rules::plan(&config).ok().and_then(|rules| nft::fuzz_messages(&rules).ok()).unwrap_or_default()
    });
    let mut bytes = UNEDITED.clone();
    assert!(!bytes.is_empty());
    for edit in edits.chunks_exact(3) {
        if let Some(byte) = bytes.get_mut(usize::from(u16::from_le_bytes([edit[0], edit[1]]))) {
            *byte = edit[2];
        }
    }
    netlink_answer(&bytes);
}

/// Reads a text, and whatever is taken for a rule of ours a second time from its own spelling.
fn read_twice(text: &str, all_ours: bool) {
    for line in restore::parse::parse(text).lines {
        assert!(line.rule.is_some() || !all_ours, "{line:?}");
        let Some(read) = line.rule else { continue };
        let rule = Rule {
            table: line.table,
            chain: chain::OUTPUT,
            position: line.position,
            family: Family::Any,
            matches: read.matches.clone(),
            action: read.action,
            reason: Reason::Hook,
        };
        let written = format!("*{}\n{}\n", line.table.name(), restore::rule_line(&rule));
        let again = restore::parse::parse(&written).lines;
        assert!(matches!(&again[..], [one] if one.rule.as_ref() == Some(&read)), "{written} of {read:?}");
    }
}
