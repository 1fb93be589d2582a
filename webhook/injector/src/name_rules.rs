//! Kubernetes' rules for names (`k8s.io/apimachinery/pkg/util/validation`).

/// Maximum length of a label value and of a DNS label.
pub(crate) const LABEL_MAX: usize = 63;
/// Maximum length of a DNS subdomain.
const SUBDOMAIN_MAX: usize = 253;

/// Returns whether a label may have this value: at most 63 letters, digits, `-`, `_` and `.`, with a letter or digit at both
/// ends; or nothing.
pub(crate) fn is_label_value(text: &str) -> bool {
    let ends = |edge: Option<&u8>| edge.is_none_or(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    bytes.len() <= LABEL_MAX
        && ends(bytes.first())
        && ends(bytes.last())
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

/// Returns whether the text is a key of a label or an annotation: an optional DNS subdomain and `/`, then a name that follows the
/// rules of a label value and is not empty.
pub(crate) fn is_qualified_name(text: &str) -> bool {
    let (prefix, name) = match text.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, text),
    };
    !name.is_empty() && is_label_value(name) && prefix.is_none_or(is_dns_subdomain)
}

/// Returns whether the text has 1 to 63 lower-case letters, digits and `-`, with a letter or digit at both ends.
pub(crate) fn is_dns_label(text: &str) -> bool {
    text.len() <= LABEL_MAX && is_dns_part(text)
}

/// Returns whether the text is DNS labels joined by dots, at most 253 bytes in all.
pub(crate) fn is_dns_subdomain(text: &str) -> bool {
    text.len() <= SUBDOMAIN_MAX && text.split('.').all(is_dns_part)
}

fn is_dns_part(text: &str) -> bool {
    let edge = |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let bytes = text.as_bytes();
    edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-')
}

/// Returns whether the text is printable ASCII without `=`: the rule since Kubernetes 1.30; older versions accept less.
pub(crate) fn is_env_var_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b'=')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_rules_of_kubernetes() {
        let long = |length: usize| "a".repeat(length);
        for (text, value, key, label, subdomain) in [
            ("", true, false, false, false),
            ("a", true, true, true, true),
            ("A_b.c-1", true, true, false, false),
            ("-a", false, false, false, false),
            ("a.", false, false, false, false),
            ("a.b", true, true, false, true),
            ("example.com/a", false, true, false, false),
            ("Example.com/a", false, false, false, false),
            ("a/b/c", false, false, false, false),
            (&long(63), true, true, true, true),
            (&long(64), false, false, false, true),
            (&long(254), false, false, false, false),
        ] {
            let found = (is_label_value(text), is_qualified_name(text), is_dns_label(text), is_dns_subdomain(text));
            assert_eq!(found, (value, key, label, subdomain), "{text}");
        }
        assert!(is_env_var_name("A B-1.c") && !is_env_var_name("A=B") && !is_env_var_name("") && !is_env_var_name("ä"));
    }
}
