//! Writes YAML as Istio's injector does (`sigs.k8s.io/yaml`, with the emitter of yaml.v2): keys are sorted, lists are not indented
//! below their key, and strings have the quotes that `emitterc.go` and `resolve.go` choose.

use std::fmt::Write as _;

use serde_json::Value;

/// Returns a value as one YAML document.
pub(super) fn to_string(value: &Value) -> String {
    let mut out = String::new();
    match value {
        Value::Object(fields) if !fields.is_empty() => mapping(&mut out, fields, 0),
        Value::Array(items) if !items.is_empty() => sequence(&mut out, items, 0),
        leaf => {
            scalar(&mut out, leaf, 2, false);
            out.push('\n');
        }
    }
    out
}

fn mapping(out: &mut String, fields: &serde_json::Map<String, Value>, indent: usize) {
    let mut sorted: Vec<_> = fields.iter().collect();
    sorted.sort_by_key(|(key, _)| *key);
    for (index, (key, value)) in sorted.into_iter().enumerate() {
        if index > 0 {
            pad(out, indent);
        }
        string(out, key, indent, true);
        out.push(':');
        match value {
            Value::Object(inner) if !inner.is_empty() => {
                out.push('\n');
                pad(out, indent + 2);
                mapping(out, inner, indent + 2);
            }
            Value::Array(items) if !items.is_empty() => {
                out.push('\n');
                pad(out, indent);
                sequence(out, items, indent);
            }
            leaf => {
                out.push(' ');
                scalar(out, leaf, indent + 2, false);
                out.push('\n');
            }
        }
    }
}

fn sequence(out: &mut String, items: &[Value], indent: usize) {
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            pad(out, indent);
        }
        out.push_str("- ");
        match item {
            Value::Object(fields) if !fields.is_empty() => mapping(out, fields, indent + 2),
            Value::Array(inner) if !inner.is_empty() => sequence(out, inner, indent + 2),
            leaf => {
                scalar(out, leaf, indent + 2, false);
                out.push('\n');
            }
        }
    }
}

fn pad(out: &mut String, indent: usize) {
    out.extend(std::iter::repeat_n(' ', indent));
}

fn scalar(out: &mut String, value: &Value, indent: usize, key: bool) {
    match value {
        Value::String(text) => string(out, text, indent, key),
        Value::Object(_) => out.push_str("{}"),
        Value::Array(_) => out.push_str("[]"),
        other => out.push_str(&other.to_string()),
    }
}

/// Writes a string in the style that the emitter chooses. `indent` is that of the lines of a block.
fn string(out: &mut String, text: &str, indent: usize, key: bool) {
    let styles = Styles::of(text);
    if text.contains('\n') && !key {
        if styles.block_allowed { block(out, text, indent) } else { double_quoted(out, text) }
    } else if is_other_type(text) {
        double_quoted(out, text);
    } else if styles.plain_allowed {
        out.push_str(text);
    } else if styles.single_quoted_allowed {
        out.push('\'');
        out.push_str(&text.replace('\'', "''"));
        out.push('\'');
    } else {
        double_quoted(out, text);
    }
}

/// The styles in which a text can be written (`yaml_emitter_analyze_scalar`).
struct Styles {
    plain_allowed: bool,
    single_quoted_allowed: bool,
    block_allowed: bool,
}

impl Styles {
    fn of(text: &str) -> Self {
        let chars: Vec<char> = text.chars().collect();
        let is_blank = |at: usize| chars.get(at).is_none_or(|c| matches!(c, ' ' | '\t' | '\n' | '\r' | '\0'));
        let mut indicators = text.starts_with("---") || text.starts_with("...");
        let mut special = false;
        let (mut space_break, mut break_space) = (false, false);
        for (at, &c) in chars.iter().enumerate() {
            let first = at == 0;
            indicators |= match c {
                '#' => first || is_blank(at - 1),
                ',' | '[' | ']' | '{' | '}' | '&' | '*' | '!' | '|' | '>' | '\'' | '"' | '%' | '@' | '`' => first,
                ':' | '?' | '-' if first => is_blank(at + 1),
                ':' => is_blank(at + 1),
                _ => false,
            };
            special |= !(c == '\n' || is_printable(c));
            let before = at.checked_sub(1).and_then(|before| chars.get(before));
            space_break |= c == '\n' && before == Some(&' ');
            break_space |= c == ' ' && before == Some(&'\n');
        }
        let edge = |c: Option<&char>| c.is_some_and(|c| matches!(c, ' ' | '\n'));
        let edges = edge(chars.first()) || edge(chars.last());
        Self {
            plain_allowed: !(indicators || special || edges || text.contains('\n')),
            single_quoted_allowed: !(special || space_break || break_space),
            block_allowed: !(special || space_break || chars.last() == Some(&' ')),
        }
    }
}

fn is_printable(c: char) -> bool {
    matches!(c, ' '..='~' | '\u{a0}'..='\u{d7ff}' | '\u{e000}'..='\u{fefe}' | '\u{ff00}'..='\u{fffd}')
        || ('\u{10000}'..='\u{10ffff}').contains(&c)
}

/// Writes a literal block; `indent` is that of its lines.
fn block(out: &mut String, text: &str, indent: usize) {
    out.push('|');
    if text.starts_with([' ', '\n']) {
        out.push('2');
    }
    if !text.ends_with('\n') {
        out.push('-');
    } else if text == "\n" || text.ends_with("\n\n") {
        out.push('+');
    }
    for line in text.strip_suffix('\n').unwrap_or(text).split('\n') {
        out.push('\n');
        if !line.is_empty() {
            pad(out, indent);
            out.push_str(line);
        }
    }
}

fn double_quoted(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            '\u{0}' => out.push_str("\\0"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{b}' => out.push_str("\\v"),
            '\u{c}' => out.push_str("\\f"),
            '\u{1b}' => out.push_str("\\e"),
            '\u{85}' => out.push_str("\\N"),
            '\u{2028}' => out.push_str("\\L"),
            '\u{2029}' => out.push_str("\\P"),
            c if is_printable(c) => out.push(c),
            // Writing to a string does not fail.
            c => drop(match u32::from(c) {
                code @ ..=0xff => write!(out, "\\x{code:02X}"),
                code @ ..=0xffff => write!(out, "\\u{code:04X}"),
                code => write!(out, "\\U{code:08X}"),
            }),
        }
    }
    out.push('"');
}

/// Returns whether an unquoted text would be parsed as another type than a string.
fn is_other_type(text: &str) -> bool {
    const WORDS: [&str; 36] = [
        "", "~", "null", "Null", "NULL", "y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON", "n",
        "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF", ".nan", ".NaN", ".NAN", ".inf", ".Inf",
        ".INF", "<<", "-.inf", "+.inf",
    ];
    WORDS.contains(&text) || is_number(text) || is_sexagesimal(text) || is_date(text)
}

fn is_number(text: &str) -> bool {
    let digits = text.replace('_', "");
    let unsigned = digits.strip_prefix(['+', '-']).unwrap_or(&digits);
    if !unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return false;
    }
    let radix = |prefix: [&str; 2], radix: u32| {
        let rest = prefix.iter().find_map(|prefix| unsigned.strip_prefix(prefix));
        rest.is_some_and(|rest| u64::from_str_radix(rest, radix).is_ok() && !rest.starts_with('+'))
    };
    if radix(["0x", "0X"], 16) || radix(["0b", "0B"], 2) || radix(["0o", "0O"], 8) {
        return true;
    }
    // `[-+]?[0-9]*\.?[0-9]+([eE][-+][0-9]+)?`, and whole numbers.
    let (mantissa, exponent) = match unsigned.find(['e', 'E']) {
        Some(at) => (&unsigned[..at], Some(&unsigned[at + 1..])),
        None => (unsigned, None),
    };
    let is_digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let (whole, fraction) =
        mantissa.split_once('.').map_or((mantissa, None), |(whole, fraction)| (whole, Some(fraction)));
    let mantissa_ok = match fraction {
        None => is_digits(whole),
        Some(fraction) => (whole.is_empty() || is_digits(whole)) && is_digits(fraction),
    };
    mantissa_ok && exponent.is_none_or(|exponent| exponent.strip_prefix(['+', '-']).is_some_and(is_digits))
}

/// Returns whether the text is like `12:30:45`, a number to base 60 in YAML 1.1.
fn is_sexagesimal(text: &str) -> bool {
    let text = text.strip_prefix(['+', '-']).unwrap_or(text);
    let mut parts = text.split(':');
    let head = parts.next().unwrap_or_default();
    let is_part = |part: &str| matches!(part.len(), 1 | 2) && part.parse::<u8>().is_ok_and(|number| number < 60);
    head.starts_with(|c: char| c.is_ascii_digit())
        && head.bytes().all(|byte| byte.is_ascii_digit() || byte == b'_')
        && text.contains(':')
        && parts.all(|part| is_part(part.split('.').next().unwrap_or_default()))
}

/// Returns whether the text is like `2001-12-31`, with or without a time.
fn is_date(text: &str) -> bool {
    let mut parts = text.splitn(3, '-');
    let is_digits =
        |text: &str, most: usize| (1..=most).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    let (Some(year), Some(month), Some(rest)) = (parts.next(), parts.next(), parts.next()) else { return false };
    let day = rest.split(['T', 't', ' ']).next().unwrap_or_default();
    year.len() == 4 && is_digits(year, 4) && is_digits(month, 2) && is_digits(day, 2)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn quotes_match_go() {
        for (text, yaml) in [
            ("", "\"\""),
            ("plain text", "plain text"),
            ("true", "\"true\""),
            ("1000620000", "\"1000620000\""),
            ("100m", "100m"),
            ("12:30", "\"12:30\""),
            ("2001-12-31", "\"2001-12-31\""),
            ("'x'", "'''x'''"),
            ("{\"a\": 1}", "'{\"a\": 1}'"),
            ("a: b", "'a: b'"),
            ("a:b", "a:b"),
            ("a #b", "'a #b'"),
            (" x", "' x'"),
            ("a\tb", "\"a\\tb\""),
            ("é", "é"),
        ] {
            assert_eq!(to_string(&json!(text)), format!("{yaml}\n"), "{text:?}");
        }
    }

    #[test]
    fn blocks_and_nesting_match_go() {
        let value = json!({"b": {"list": [1, {"y": null, "x": []}, ["s"]]}, "a": "one\ntwo\n", "c": "\n  three"});
        let want = "a: |\n  one\n  two\nb:\n  list:\n  - 1\n  - x: []\n    \"y\": null\n  - - s\nc: |2-\n\n    three\n";
        assert_eq!(to_string(&value), want);
    }
}
