//! The log: stderr, one line an event, its level adjustable while the agent runs.

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, Registry, fmt, reload};

/// Name of the scope that means everything, as in Istio.
const DEFAULT_SCOPE: &str = "default";

/// Levels by scope, in Istio's grammar: `info`, or `default:info,install:debug`. A scope is a module of the agent.
#[derive(Debug, Clone)]
pub struct Levels {
    text: String,
    targets: Targets,
}

impl Levels {
    /// As it was written.
    pub fn text(&self) -> &str {
        &self.text
    }
}

impl std::str::FromStr for Levels {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut default = LevelFilter::INFO;
        let mut scopes = Vec::new();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (scope, name) = part.rsplit_once(':').unwrap_or((DEFAULT_SCOPE, part));
            let level = match name {
                "none" => LevelFilter::OFF,
                "fatal" | "error" => LevelFilter::ERROR,
                "warn" => LevelFilter::WARN,
                "info" => LevelFilter::INFO,
                "debug" => LevelFilter::DEBUG,
                "trace" => LevelFilter::TRACE,
                _ => return Err(format!("{name:?} is none of none, error, warn, info, debug, trace")),
            };
            if scope == DEFAULT_SCOPE || scope == "all" {
                default = level;
            } else {
                scopes.push((format!("{}::{scope}", env!("CARGO_CRATE_NAME")), level));
            }
        }
        // Libraries are as loud as the agent, but never tell their own details unasked.
        Ok(Self { text: text.to_owned(), targets: Targets::new().with_default(default).with_targets(scopes) })
    }
}

/// Changes levels of a log that runs.
#[derive(Clone)]
pub struct LevelHandle(reload::Handle<Targets, Registry>);

impl std::fmt::Debug for LevelHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LevelHandle")
    }
}

impl LevelHandle {
    /// From now on these levels.
    ///
    /// # Errors
    /// The log is gone.
    pub fn set(&self, levels: &Levels) -> Result<(), reload::Error> {
        self.0.reload(levels.targets.clone())
    }

    /// The levels now, in the form of tracing's own directives.
    pub fn current(&self) -> String {
        self.0.with_current(ToString::to_string).unwrap_or_default()
    }
}

/// Starts logging for the process, and sends panics there too.
///
/// # Errors
/// Somebody else started logging before.
pub fn start(json: bool, levels: &Levels) -> Result<LevelHandle, tracing_subscriber::util::TryInitError> {
    let (filter, handle) = reload::Layer::new(levels.targets.clone());
    let lines = if json {
        fmt::layer().json().flatten_event(true).with_writer(std::io::stderr).boxed()
    } else {
        fmt::layer().with_writer(std::io::stderr).with_ansi(false).boxed()
    };
    tracing_subscriber::registry().with(lines.with_filter(filter)).try_init()?;
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let reason = panic.payload_as_str().unwrap_or("no text");
        tracing::error!(place, reason, "a defect: the thread panicked");
    }));
    Ok(LevelHandle(handle))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_istios_grammar() {
        for (text, directives) in [
            ("info", "info"),
            ("", "info"),
            ("default:warn", "warn"),
            ("all:none", "off"),
            ("default:warn,install:debug", "weir_agent::install=debug,warn"),
        ] {
            let levels: Levels = text.parse().unwrap();
            assert_eq!(levels.targets.to_string(), directives, "{text:?}");
        }
        for text in ["loud", "default:", "install:loud,info"] {
            assert!(text.parse::<Levels>().unwrap_err().contains("is none of"), "{text:?}");
        }
    }
}
