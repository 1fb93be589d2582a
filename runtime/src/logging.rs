//! The log on stderr: one line per event, as text or JSON, with levels that can change while the process runs.

use clap::{ArgAction, Args, ValueEnum};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};
use tracing_subscriber::{Layer as _, Registry, fmt, reload};

/// Istio's name of the scope that holds for everything else.
const DEFAULT_SCOPE: &str = "default";

/// Format of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Levels by scope, in Istio's grammar: `info`, or `default:info,install:debug`. A module with its whole path has `=` instead:
/// `info,weir_webhook::tls=debug`.
#[derive(Debug, Clone)]
pub struct LogLevels {
    text: String,
    targets: Targets,
}

impl LogLevels {
    /// Parses levels; a scope is a module of `crate_name` or of this crate.
    ///
    /// # Errors
    /// The name of a level that does not exist.
    pub fn parse(text: &str, crate_name: &str) -> Result<Self, String> {
        let mut default = LevelFilter::INFO;
        let mut scopes = Vec::new();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (module, part) = part.rsplit_once('=').map_or((None, part), |(module, name)| (Some(module), name));
            let (scope, name) = match module {
                Some(_) => (DEFAULT_SCOPE, part),
                None => part.rsplit_once(':').unwrap_or((DEFAULT_SCOPE, part)),
            };
            let level = match name {
                "none" => LevelFilter::OFF,
                "fatal" | "error" => LevelFilter::ERROR,
                "warn" => LevelFilter::WARN,
                "info" => LevelFilter::INFO,
                "debug" => LevelFilter::DEBUG,
                "trace" => LevelFilter::TRACE,
                _ => return Err(format!("level {name:?} must be one of none, error, warn, info, debug, trace")),
            };
            if let Some(module) = module {
                scopes.push((module.to_owned(), level));
            } else if scope == DEFAULT_SCOPE || scope == "all" {
                default = level;
            } else {
                scopes.extend([crate_name, env!("CARGO_CRATE_NAME")].map(|name| (format!("{name}::{scope}"), level)));
            }
        }
        Ok(Self { text: text.to_owned(), targets: Targets::new().with_default(default).with_targets(scopes) })
    }

    /// Returns the levels as they were written.
    pub fn text(&self) -> &str {
        &self.text
    }
}

impl From<LogLevels> for Targets {
    fn from(levels: LogLevels) -> Self {
        levels.targets
    }
}

/// Flags of the log, Istio's, the same for all processes.
#[derive(Debug, Clone, Args)]
pub struct LogArgs {
    /// Log at these levels: none, error, warn, info, debug or trace, or by module: default:info,install:debug
    #[arg(
        long = "log_output_level",
        aliases = ["log-output-level", "log-level"],
        env = "LOG_OUTPUT_LEVEL",
        value_name = "LEVELS",
        default_value = "default:info",
        value_parser = |text: &str| LogLevels::parse(text, "").map(|_| text.to_owned())
    )]
    pub log_output_level: String,
    /// Write the log as JSON, one object a line
    #[arg(long = "log_as_json", alias = "log-as-json", env = "LOG_AS_JSON", value_name = "BOOL", default_value_t = false,
          action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub log_as_json: bool,
    /// Name of `--log_as_json` in 0.1.0.
    #[arg(long, hide = true, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
}

impl LogArgs {
    /// Starts logging for the process, whose modules are those of `crate_name`.
    ///
    /// # Errors
    /// See [`init`].
    pub fn init(&self, crate_name: &str) -> Result<LogLevelHandle, TryInitError> {
        let format = if self.log_as_json { LogFormat::Json } else { self.log_format.unwrap_or(LogFormat::Text) };
        // The parser of the flag has accepted the levels.
        let targets =
            LogLevels::parse(&self.log_output_level, crate_name).map_or_else(|_| Targets::new(), Targets::from);
        init(format, targets)
    }
}

/// Changes the levels of the running log.
#[derive(Clone)]
pub struct LogLevelHandle(reload::Handle<Targets, Registry>);

impl std::fmt::Debug for LogLevelHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LogLevelHandle")
    }
}

impl LogLevelHandle {
    /// Replaces the levels.
    ///
    /// # Errors
    /// The log no longer exists.
    pub fn set(&self, levels: &LogLevels) -> Result<(), reload::Error> {
        self.0.reload(levels.targets.clone())
    }

    /// Returns the current levels, as tracing's own directives.
    pub fn current(&self) -> String {
        self.0.with_current(ToString::to_string).unwrap_or_default()
    }
}

/// Starts logging for the process. Panics go there too, as an event with a location that log collectors can parse.
///
/// # Errors
/// Logging was started before.
pub fn init(format: LogFormat, levels: impl Into<Targets>) -> Result<LogLevelHandle, TryInitError> {
    let (filter, handle) = reload::Layer::new(levels.into());
    let layer = match format {
        LogFormat::Text => fmt::layer().with_writer(std::io::stderr).with_ansi(false).boxed(),
        LogFormat::Json => fmt::layer().json().flatten_event(true).with_writer(std::io::stderr).boxed(),
    };
    tracing_subscriber::registry().with(layer.with_filter(filter)).try_init()?;
    std::panic::set_hook(Box::new(|panic| {
        let location = panic.location().map(ToString::to_string).unwrap_or_default();
        let reason = panic.payload_as_str().unwrap_or("no message");
        tracing::error!(location, reason, "thread panicked");
    }));
    Ok(LogLevelHandle(handle))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_istios_grammar() {
        for (text, directives) in [
            ("info", "info"),
            ("", "info"),
            ("default:warn", "warn"),
            ("all:none", "off"),
            ("default:warn,install:debug", "weir_runtime::install=debug,weir_agent::install=debug,warn"),
            ("none,weir_webhook::tls=debug", "weir_webhook::tls=debug,off"),
        ] {
            assert_eq!(LogLevels::parse(text, "weir_agent").unwrap().targets.to_string(), directives, "{text:?}");
        }
        for text in ["loud", "default:", "install:loud,info"] {
            assert!(LogLevels::parse(text, "x").unwrap_err().contains("must be one of"), "{text:?}");
        }
    }
}
