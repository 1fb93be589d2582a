//! Findings that the user knows about: `--suppress CODE=KIND NAMESPACE/NAME`.

use std::str::FromStr;

use super::fault;
use super::finding::Finding;

/// One rule. Every part may have `*` for any number of characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Suppressed {
    fault: String,
    kind: String,
    object: String,
}

impl FromStr for Suppressed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = "CODE=KIND NAMESPACE/NAME is (or CODE alone), such as WEIR801=Pod shop/* or single-replica";
        let (fault, rest) =
            text.trim().split_once('=').map_or((text.trim(), "* *"), |(fault, rest)| (fault, rest.trim()));
        let (kind, object) = rest.split_once(' ').ok_or_else(|| format!("{text:?} is no such rule: {form}"))?;
        if !fault::ALL.iter().any(|known| fits(fault, known.code) || fits(fault, known.name)) {
            return Err(format!("no fault is called {fault:?}; docs/check.md lists them"));
        }
        Ok(Self { fault: fault.to_owned(), kind: kind.to_owned(), object: object.trim().to_owned() })
    }
}

impl Suppressed {
    /// Whether it is about this finding.
    pub(crate) fn fits(&self, finding: &Finding) -> bool {
        let object = &finding.object;
        let name = if object.namespace.is_empty() {
            object.name.clone()
        } else {
            format!("{}/{}", object.namespace, object.name)
        };
        (fits(&self.fault, finding.fault.code) || fits(&self.fault, finding.fault.name))
            && fits(&self.kind, &object.kind)
            && fits(&self.object, &name)
    }
}

/// Whether a text fits a pattern with `*`.
fn fits(pattern: &str, text: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(text) = text.strip_prefix(first) else { return false };
    let mut starts = text.char_indices().map(|(at, _)| at).chain([text.len()]);
    starts.any(|at| fits(rest, &text[at..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::finding::Object;

    fn rule(text: &str) -> Suppressed {
        text.parse().unwrap()
    }

    #[test]
    fn a_rule_is_about_a_fault_a_kind_and_a_name() {
        let finding = Finding {
            fault: &fault::POD_WITHOUT_SIDECAR,
            object: Object::new("Pod", "shop", "web-1"),
            text: String::new(),
            fix: String::new(),
            alike: 0,
        };
        for yes in ["WEIR801=Pod shop/web-1", "WEIR8*=* shop/*", "pod-without-sidecar", "WEIR801=Pod *-1"] {
            assert!(rule(yes).fits(&finding), "{yes}");
        }
        for no in ["WEIR802=Pod shop/web-1", "WEIR801=Node *", "WEIR801=Pod other/*", "WEIR801=Pod shop/web"] {
            assert!(!rule(no).fits(&finding), "{no}");
        }
    }

    #[test]
    fn rules_that_can_be_about_nothing_are_refused() {
        assert!("WEIR999=Pod a/b".parse::<Suppressed>().unwrap_err().contains("docs/check.md"));
        assert!("WEIR801=Pod".parse::<Suppressed>().unwrap_err().contains("NAMESPACE/NAME"));
    }
}
