//! Lines on standard error, as Istio's own tools write them: for people, or one JSON object each.

use k8s_openapi::jiff::Timestamp;
use serde_json::json;

use super::options::Draft;

/// Where lines go, and which.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Log {
    json: bool,
    info: bool,
}

impl Log {
    /// As `--log_as_json` and `--log_output_level` say. Of the scopes in the latter only `default` and `all` exist here.
    pub(crate) fn new(draft: &Draft) -> Self {
        let levels = draft.log_level.as_deref().unwrap_or_default();
        let info = levels.split(',').all(|level| {
            let (scope, level) = level.split_once(':').unwrap_or(("default", level));
            !["default", "all"].contains(&scope) || !["none", "fatal", "error", "warn"].contains(&level)
        });
        Self { json: draft.log_json, info }
    }

    /// Something that is as it should be.
    pub(crate) fn info(self, message: &str) {
        if self.info {
            self.line("info", message);
        }
    }

    /// Something that may not be as the user wants it.
    pub(crate) fn warn(self, message: &str) {
        self.line("warn", message);
    }

    fn line(self, level: &str, message: &str) {
        if self.json {
            eprintln!("{}", json!({"level": level, "time": Timestamp::now().to_string(), "msg": message}));
        } else if level == "info" {
            eprintln!("weir: {message}");
        } else {
            eprintln!("weir: {level}: {message}");
        }
    }
}
