//! Times in flags.

use std::time::Duration;

/// `90s`, `1500ms`, `2m` or `24h`, as Go's tools and Kubernetes manifests write times.
///
/// # Errors
/// What is no such time.
pub fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is not a time such as 500ms, 10s, 2m or 24h");
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u32 = text[..digits].parse().map_err(|_| bad())?;
    match &text[digits..] {
        "ms" => Ok(Duration::from_millis(u64::from(number))),
        "s" => Ok(Duration::from_secs(u64::from(number))),
        "m" => Ok(Duration::from_secs(60 * u64::from(number))),
        "h" => Ok(Duration::from_secs(3600 * u64::from(number))),
        _ => Err(bad()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_times_with_a_unit_only() {
        assert_eq!(duration("1500ms"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("0s"), Ok(Duration::ZERO));
        assert_eq!(duration("2m"), Ok(Duration::from_mins(2)));
        assert_eq!(duration("24h"), Ok(Duration::from_hours(24)));
        for text in ["", "5", "s", "-1s", "1d", "5 s", "99999999999s", "1.5s"] {
            assert!(duration(text).is_err(), "{text:?}");
        }
    }
}
