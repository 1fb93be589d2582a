//! Suppression of known findings: `--suppress CODE=KIND NAMESPACE/NAME`.

use std::str::FromStr;

use crate::fault;
use crate::finding::Finding;

/// A rule that suppresses findings. In every part, `*` matches any number of characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suppression {
    fault: String,
    kind: String,
    object: String,
}

/// Error returned when a suppression rule cannot be parsed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SuppressionError {
    /// The rule is neither a code nor `CODE=KIND NAMESPACE/NAME`.
    #[error("cannot parse {0:?}; write CODE or CODE=KIND NAMESPACE/NAME, such as single-replica or WEIR801=Pod shop/*")]
    Syntax(String),
    /// No fault has this code or name.
    #[error("unknown code or name {0:?}; docs/check.md lists them")]
    UnknownFault(String),
}

impl FromStr for Suppression {
    type Err = SuppressionError;

    fn from_str(text: &str) -> Result<Self, SuppressionError> {
        let (fault, rest) =
            text.trim().split_once('=').map_or((text.trim(), "* *"), |(fault, rest)| (fault, rest.trim()));
        let (kind, object) = rest.split_once(' ').ok_or_else(|| SuppressionError::Syntax(text.to_owned()))?;
        if !fault::ALL.iter().any(|known| is_match(fault, known.code) || is_match(fault, known.name)) {
            return Err(SuppressionError::UnknownFault(fault.to_owned()));
        }
        Ok(Self { fault: fault.to_owned(), kind: kind.to_owned(), object: object.trim().to_owned() })
    }
}

impl Suppression {
    /// Returns whether the rule suppresses a finding.
    pub fn matches(&self, finding: &Finding) -> bool {
        let object = &finding.object;
        let name = if object.namespace.is_empty() {
            object.name.clone()
        } else {
            format!("{}/{}", object.namespace, object.name)
        };
        (is_match(&self.fault, finding.fault.code) || is_match(&self.fault, finding.fault.name))
            && is_match(&self.kind, &object.kind)
            && is_match(&self.object, &name)
    }
}

/// Returns the findings that no rule suppresses.
pub fn unsuppressed(mut findings: Vec<Finding>, rules: &[Suppression]) -> Vec<Finding> {
    findings.retain(|finding| !rules.iter().any(|rule| rule.matches(finding)));
    findings
}

fn is_match(pattern: &str, text: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(text) = text.strip_prefix(first) else { return false };
    let mut starts = text.char_indices().map(|(at, _)| at).chain([text.len()]);
    starts.any(|at| is_match(rest, &text[at..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::FindingObject;

    #[test]
    fn a_rule_matches_fault_kind_and_name() {
        let finding = Finding {
            fault: &fault::POD_WITHOUT_SIDECAR,
            object: FindingObject::new("Pod", "shop", "web-1"),
            text: String::new(),
            fix: String::new(),
            similar: 0,
        };
        let matches = |rule: &str| rule.parse::<Suppression>().unwrap().matches(&finding);
        for rule in ["WEIR801=Pod shop/web-1", "WEIR8*=* shop/*", "pod-without-sidecar", "WEIR801=Pod *-1"] {
            assert!(matches(rule), "{rule}");
        }
        for rule in ["WEIR802=Pod shop/web-1", "WEIR801=Node *", "WEIR801=Pod other/*", "WEIR801=Pod shop/web"] {
            assert!(!matches(rule), "{rule}");
        }
    }

    #[test]
    fn rules_that_match_nothing_are_rejected() {
        let error = |rule: &str| rule.parse::<Suppression>().unwrap_err().to_string();
        assert!(error("WEIR999=Pod a/b").contains("docs/check.md"));
        assert!(error("WEIR801=Pod").contains("NAMESPACE/NAME"));
    }
}
