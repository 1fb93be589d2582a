//! The log: stderr, one line an event.

use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, fmt};

use crate::args::LogFormat;

/// Starts logging for the process, and sends panics there too: a line with a place in it, instead of a text that no collector can parse.
///
/// # Errors
/// Somebody else started logging before.
pub fn start(format: LogFormat, level: Targets) -> Result<(), tracing_subscriber::util::TryInitError> {
    let layer = match format {
        LogFormat::Text => fmt::layer().with_writer(std::io::stderr).with_ansi(false).boxed(),
        LogFormat::Json => fmt::layer().json().flatten_event(true).with_writer(std::io::stderr).boxed(),
    };
    tracing_subscriber::registry().with(layer.with_filter(level)).try_init()?;
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let reason = panic.payload_as_str().unwrap_or("no text");
        tracing::error!(place, reason, "a defect: the thread panicked");
    }));
    Ok(())
}
