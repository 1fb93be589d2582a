//! Durations in flags.

use std::time::Duration;

/// Parses a duration such as `90s`, `5m` or `1h 30m`; a bare number is in seconds.
///
/// # Errors
/// The text is not a duration.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds) => Ok(Duration::from_secs(seconds)),
        Err(_) => {
            humantime::parse_duration(text).map_err(|error| format!("not a duration such as 90s, 5m or 1h: {error}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bare_numbers_are_seconds() {
        assert_eq!(parse("90"), Ok(Duration::from_secs(90)));
        assert_eq!(parse("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse("2m"), Ok(Duration::from_mins(2)));
        assert_eq!(parse("1h 30m"), Ok(Duration::from_mins(90)));
        for text in ["", "m", "-1s", "99999999999999999999s"] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }
}
