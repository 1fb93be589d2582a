//! Kubernetes' grammars of names (`k8s.io/apimachinery/pkg/util/validation`).

/// Longest value of a label, and longest name of a thing that is one DNS label.
const SHORT: usize = 63;
/// Longest DNS subdomain.
const LONG: usize = 253;

/// At most 63 letters, digits, `-`, `_` and `.`, with a letter or digit at both ends; or nothing.
pub(crate) fn is_label_value(text: &str) -> bool {
    let ends = |edge: Option<&u8>| edge.is_none_or(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    bytes.len() <= SHORT
        && ends(bytes.first())
        && ends(bytes.last())
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

/// Key of a label or an annotation: an optional DNS subdomain and `/`, then a name like a label's value that is not empty.
pub(crate) fn is_key(text: &str) -> bool {
    let (prefix, name) = match text.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, text),
    };
    !name.is_empty() && is_label_value(name) && prefix.is_none_or(is_dns_subdomain)
}

/// Lower-case letters, digits and `-`, with a letter or digit at both ends; not empty, at most 63.
pub(crate) fn is_dns_label(text: &str) -> bool {
    text.len() <= SHORT && is_dns_part(text)
}

/// DNS labels joined by dots, at most 253 in all.
pub(crate) fn is_dns_subdomain(text: &str) -> bool {
    text.len() <= LONG && text.split('.').all(is_dns_part)
}

fn is_dns_part(text: &str) -> bool {
    let edge = |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let bytes = text.as_bytes();
    edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-')
}

/// Name of a variable: printable ASCII without `=` (the rule since Kubernetes 1.30; older ones take less).
pub(crate) fn is_variable(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b'=')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_the_grammars_of_kubernetes() {
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
            let found = (is_label_value(text), is_key(text), is_dns_label(text), is_dns_subdomain(text));
            assert_eq!(found, (value, key, label, subdomain), "{text}");
        }
        assert!(is_variable("A B-1.c") && !is_variable("A=B") && !is_variable("") && !is_variable("ä"));
    }
}
