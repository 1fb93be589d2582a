//! Prints planned rules as text.

use std::fmt::Write as _;

use iptables_rules::RuleSet;
use iptables_rules::restore::{RestoreFamily, restore_text};
use weir_kernel::nft;

use super::planned::Planned;

/// Returns the input of both restore programs, each below a comment that names the program.
pub(crate) fn iptables(planned: &[Planned]) -> String {
    let lower = |rules: &RuleSet| {
        let families = [(RestoreFamily::V4, "iptables-restore"), (RestoreFamily::V6, "ip6tables-restore")];
        let texts = families.map(|(family, program)| match restore_text(rules, family) {
            lines if lines.is_empty() => lines,
            lines => format!("# {program} --noflush\n{lines}"),
        });
        texts.concat()
    };
    planned.iter().map(|planned| block(planned, lower)).collect()
}

/// Returns the input of `nft -f`, as nft lists the table that the plugin installs.
///
/// # Errors
/// Every subject whose rules the nft backend does not support.
pub(crate) fn nft(planned: &[Planned]) -> Result<String, Vec<String>> {
    let mut out = String::new();
    let mut findings = Vec::new();
    for planned in planned {
        match planned.rules.as_ref().map(nft::to_nft_script).transpose() {
            Ok(text) => out.push_str(&block(planned, |_| text.clone().unwrap_or_default())),
            Err(error) => findings.push(format!("{}: {error}", planned.subject.name)),
        }
    }
    if findings.is_empty() { Ok(out) } else { Err(findings) }
}

/// Returns the rules of one subject below its name, and the commands for addresses and routes as comments.
fn block(planned: &Planned, lower: impl Fn(&RuleSet) -> String) -> String {
    let mut out = format!("# {}\n", planned.subject.name);
    let Some(rules) = &planned.rules else { return out + "# no rules\n" };
    out += &lower(rules);
    // Writing to a String cannot fail.
    for address in &rules.routing.lo_addresses {
        let _ = writeln!(out, "# ip address add {address} dev lo");
    }
    if let Some(delivery) = rules.routing.local_delivery {
        let (mark, table) = (delivery.mark, delivery.table);
        let _ = writeln!(out, "# ip rule add fwmark {mark} lookup {table}");
        let _ = writeln!(out, "# ip route add local default dev lo table {table}");
    }
    out
}
