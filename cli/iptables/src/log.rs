//! Log lines on standard error in the forms of Istio's tools: text, or one JSON object a line.

use std::time::SystemTime;

use serde_json::json;

use crate::options::ParsedOptions;

/// Form and level of the log lines.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Log {
    json: bool,
    info: bool,
}

impl Log {
    /// Follows `--log_as_json` and `--log_output_level`. Of the latter's scopes only `default` and `all` exist here.
    pub(crate) fn new(options: &ParsedOptions) -> Self {
        let levels = options.log_level.as_deref().unwrap_or_default();
        let info = levels.split(',').all(|level| {
            let (scope, level) = level.split_once(':').unwrap_or(("default", level));
            !["default", "all"].contains(&scope) || !["none", "fatal", "error", "warn"].contains(&level)
        });
        Self { json: options.log_json, info }
    }

    pub(crate) fn info(self, message: &str) {
        if self.info {
            self.line("info", message);
        }
    }

    pub(crate) fn warn(self, message: &str) {
        self.line("warn", message);
    }

    fn line(self, level: &str, message: &str) {
        if self.json {
            let time = humantime::format_rfc3339_micros(SystemTime::now()).to_string();
            eprintln!("{}", json!({"level": level, "time": time, "msg": message}));
        } else if level == "info" {
            eprintln!("weir: {message}");
        } else {
            eprintln!("weir: {level}: {message}");
        }
    }
}
