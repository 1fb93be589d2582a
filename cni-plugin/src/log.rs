//! Writes the log: JSON lines on stderr, which runtimes keep only of calls that fail.

use std::io::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde_json::{Map, Value};

pub use weir_protocol::log_level::LogLevel;

/// Log of one call.
#[derive(Debug, Default)]
pub struct CallLog {
    /// Least severe level that is written.
    pub level: LogLevel,
    /// `CNI_COMMAND`.
    pub command: &'static str,
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `namespace/name`; empty where the call names no pod.
    pub pod: String,
}

#[derive(Serialize)]
struct Line<'a> {
    time: String,
    level: &'static str,
    msg: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    command: &'static str,
    #[serde(rename = "containerID", skip_serializing_if = "str::is_empty")]
    container_id: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    pod: &'a str,
    #[serde(flatten)]
    fields: Map<String, Value>,
}

impl CallLog {
    /// Writes one line; errors of stderr are ignored.
    pub fn write(&self, level: LogLevel, msg: &str, fields: &[(&str, Value)]) {
        if level < self.level || self.level == LogLevel::None {
            return;
        }
        let line = self.line(level, msg, fields, SystemTime::now());
        let _ = std::io::stderr().write_all(line.as_bytes());
    }

    fn line(&self, level: LogLevel, msg: &str, fields: &[(&str, Value)], now: SystemTime) -> String {
        let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let line = Line {
            time: rfc3339(seconds),
            level: level.name(),
            msg,
            command: self.command,
            container_id: &self.container_id,
            pod: &self.pod,
            fields: fields.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect(),
        };
        let mut text = serde_json::to_string(&line).unwrap_or_default();
        text.push('\n');
        text
    }
}

/// Formats seconds since 1970 as RFC 3339 in UTC, with Howard Hinnant's `civil_from_days`: eras of 400 years that begin in March.
fn rfc3339(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let shifted = days + 719_468; // days since 0000-03-01
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3_600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leap_years_are_formatted_correctly() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_200, "2024-03-01T00:00:00Z"),
            (4_107_542_399, "2100-02-28T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(seconds), text);
        }
    }

    #[test]
    fn a_line_is_one_json_object() {
        let log =
            CallLog { command: "ADD", container_id: "c1".to_owned(), pod: "shop/web".to_owned(), ..CallLog::default() };
        let line = log.line(LogLevel::Info, "a \"b\"\nc", &[("rules", 7.into())], UNIX_EPOCH);
        assert_eq!(
            line,
            "{\"time\":\"1970-01-01T00:00:00Z\",\"level\":\"info\",\"msg\":\"a \\\"b\\\"\\nc\",\"command\":\"ADD\",\
             \"containerID\":\"c1\",\"pod\":\"shop/web\",\"rules\":7}\n"
        );
    }
}
