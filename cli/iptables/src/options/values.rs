//! Parsers of single values. Their errors are predicates whose subject is the value, such as "must be true or false".

use std::net::IpAddr;
use std::time::Duration;

use iptables_rules::ports;
use iptables_rules::text::parse_bool;

fn invalid<T>(reason: impl Into<String>) -> Result<T, Vec<String>> {
    Err(vec![reason.into()])
}

pub(super) fn port(text: &str) -> Result<u16, Vec<String>> {
    match ports::parse(text)?.as_slice() {
        [port] => Ok(*port),
        _ => invalid("is not a single port"),
    }
}

pub(super) fn number(text: &str) -> Result<u32, Vec<String>> {
    match text.trim().parse() {
        Ok(number) if text.trim().bytes().all(|byte| byte.is_ascii_digit()) => Ok(number),
        _ => invalid("is not a number from 0 to 4294967295"),
    }
}

/// Parses a comma-separated list of ids; an empty one counts as not given.
pub(super) fn ids(text: &str) -> Result<Option<Vec<u32>>, Vec<String>> {
    let (mut ids, mut errors) = (Vec::new(), Vec::new());
    for element in text.split(',').map(str::trim).filter(|element| !element.is_empty()) {
        match number(element) {
            Ok(id) if !ids.contains(&id) => ids.push(id),
            Ok(_) => {}
            Err(_) => errors.push(format!("'{element}' is not an id")),
        }
    }
    if errors.is_empty() { Ok((!ids.is_empty()).then_some(ids)) } else { Err(errors) }
}

pub(super) fn addresses(text: &str) -> Result<Vec<IpAddr>, Vec<String>> {
    let (mut addresses, mut errors) = (Vec::new(), Vec::new());
    for element in text.split(',').map(str::trim).filter(|element| !element.is_empty()) {
        match element.parse() {
            Ok(address) if !addresses.contains(&address) => addresses.push(address),
            Ok(_) => {}
            Err(_) => errors.push(format!("'{element}' is not an IP address")),
        }
    }
    if errors.is_empty() { Ok(addresses) } else { Err(errors) }
}

pub(super) fn boolean(text: &str) -> Result<bool, Vec<String>> {
    parse_bool(text).ok_or_else(|| vec!["must be true or false".to_owned()])
}

pub(super) fn one_of<T: Copy>(text: &str, names: &[&str], values: &[T]) -> Result<T, Vec<String>> {
    let found = names.iter().position(|name| *name == text).and_then(|at| values.get(at));
    found.copied().ok_or_else(|| vec![format!("must be one of {}", names.join(", "))])
}

/// Parses a duration such as `5s`, `500ms` or `1m 30s`; a bare number is in seconds.
pub(super) fn duration(text: &str) -> Result<Duration, Vec<String>> {
    /// Longer than any pod should wait for its rules.
    const MAX: Duration = Duration::from_hours(1);
    let parsed = match text.parse() {
        Ok(seconds) => Ok(Duration::from_secs(seconds)),
        Err(_) => humantime::parse_duration(text),
    };
    match parsed {
        Ok(duration) if !duration.is_zero() && duration <= MAX => Ok(duration),
        _ => invalid("is not a duration such as 5s or 500ms, at most 1h"),
    }
}
