//! Planned rules as text.

use std::fmt::{self, Write as _};

use iptables_rules::restore::{RestoreFamily, restore_text};
use iptables_rules::{RuleSet, plan};
use weir_kernel::nft;

use super::subject::{Capture, Subject};

/// A subject with its rules; `None` where nothing is captured.
#[derive(Debug)]
pub(crate) struct Planned {
    pub(crate) subject: Subject,
    pub(crate) rules: Option<RuleSet>,
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.subject.fmt(f)
    }
}

/// Plans the rules of all subjects.
///
/// # Errors
/// Every setting of every subject that cannot be carried out.
pub(crate) fn plan_all(subjects: Vec<Subject>) -> Result<Vec<Planned>, Vec<String>> {
    let mut planned = Vec::new();
    let mut findings = Vec::new();
    for subject in subjects {
        let rules = match &subject.capture {
            Capture::Nothing(_) => Ok(None),
            Capture::Configured { config, .. } => plan(config).map(Some),
        };
        match rules {
            Ok(rules) => planned.push(Planned { subject, rules }),
            Err(errors) => findings.extend(errors.iter().map(|error| format!("{}: {error}", subject.name))),
        }
    }
    if findings.is_empty() { Ok(planned) } else { Err(findings) }
}

/// Input of both restore programs, told apart by comments that name them.
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

/// Input of `nft -f`: what the plugin programs, as nft would list it.
///
/// # Errors
/// Every subject whose rules this backend does not carry out.
pub(crate) fn nft(planned: &[Planned]) -> Result<String, Vec<String>> {
    let mut out = String::new();
    let mut findings = Vec::new();
    for planned in planned {
        match planned.rules.as_ref().map(nft::describe).transpose() {
            Ok(text) => out.push_str(&block(planned, |_| text.clone().unwrap_or_default())),
            Err(error) => findings.push(format!("{}: {error}", planned.subject.name)),
        }
    }
    if findings.is_empty() { Ok(out) } else { Err(findings) }
}

/// One subject under its name, and what has to hold besides the rules as the commands for it. Comments of both languages start with `#`.
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
