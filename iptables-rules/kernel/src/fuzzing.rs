//! Entry points for the fuzz targets (`fuzz/`). Each function panics if a property does not hold.
#![allow(clippy::missing_panics_doc, reason = "the purpose of these functions")]

use std::sync::LazyLock;

use ipnet::Ipv4Net;

use iptables_rules::config::{DnsCapture, InterceptionMode};
use iptables_rules::names::chain;
use iptables_rules::restore::{self, RestoreFamily};
use iptables_rules::ruleset::{Family, Rule, RuleReason};
use iptables_rules::{CaptureConfig, RuleSet};

use crate::nft;

/// Parses the text of a rule set: every line must be a rule of ours.
pub fn text_of(rules: &RuleSet) {
    for family in [RestoreFamily::V4, RestoreFamily::V6] {
        read_twice(&restore::restore_text(rules, family), true);
    }
}

/// Parses any text.
pub fn restore_text(text: &str) {
    read_twice(text, false);
}

/// Decodes bytes as a listing of the kernel.
pub fn netlink_answer(bytes: &[u8]) {
    nft::fuzz(bytes);
}

/// Decodes the messages that install rules, which are also those of a listing, with changed bytes: three bytes of input are position and value
/// of one change.
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

/// Parses a text, formats the rules in it, and parses them again.
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
            reason: RuleReason::Hook,
        };
        let written = format!("*{}\n{}\n", line.table.name(), restore::rule_line(&rule));
        let again = restore::parse::parse(&written).lines;
        assert!(matches!(&again[..], [one] if one.rule.as_ref() == Some(&read)), "{written} of {read:?}");
    }
}
