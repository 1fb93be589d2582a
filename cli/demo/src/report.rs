//! Output of the demo: text as it goes, or one JSON document at the end.

use std::fmt::Display;
use std::io::{self, Write as _};
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use serde::Serialize;

use crate::flows::{CapturePath, Flow};
use crate::review::AppliedPatch;

/// Everything that the demo found, as `--json` prints it.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// Whether everything was as expected; decides the exit status.
    pub(crate) ok: bool,
    pub(crate) manifest: &'static str,
    pub(crate) admission: AppliedPatch,
    /// Addresses that the plugins assigned to the pod.
    pub(crate) addresses: Vec<String>,
    /// Plugins in order, with the time of ADD.
    pub(crate) plugins: Vec<PluginTime>,
    pub(crate) sidecar: String,
    pub(crate) flows: Vec<Flow>,
    pub(crate) checks: Vec<Check>,
    pub(crate) add: AddTime,
}

#[derive(Debug, Serialize)]
pub(crate) struct PluginTime {
    pub(crate) plugin: String,
    pub(crate) microseconds: u64,
}

/// A check beside the connections.
#[derive(Debug, Serialize)]
pub(crate) struct Check {
    pub(crate) what: &'static str,
    pub(crate) expected: &'static str,
    pub(crate) got: String,
    pub(crate) ok: bool,
}

impl Check {
    /// Checks that a step succeeded.
    pub(crate) fn succeeds(what: &'static str, result: &anyhow::Result<()>) -> Self {
        let got = result.as_ref().err().map_or_else(|| "ok".to_owned(), |error| format!("{error:#}"));
        Self { what, expected: "ok", got, ok: result.is_ok() }
    }
}

/// Time of `weir-cni` ADD in fresh namespaces, from process start to exit.
#[derive(Debug, Serialize)]
pub(crate) struct AddTime {
    pub(crate) namespaces: usize,
    pub(crate) median_microseconds: u64,
}

impl AddTime {
    pub(crate) fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let median = times.get(times.len() / 2).copied().unwrap_or_default();
        Self { namespaces: times.len(), median_microseconds: microseconds(median) }
    }
}

const HEADING: Style = Style::new().bold();
const OK: Style = AnsiColor::Green.on_default();
const FAILED: Style = AnsiColor::Red.on_default();

/// Prints the demo as text, with colours on a terminal.
pub(crate) struct Printer {
    /// Prints nothing; the JSON document follows at the end.
    pub(crate) quiet: bool,
}

impl Printer {
    pub(crate) fn heading(&self, title: &str) -> io::Result<()> {
        self.write(format_args!("\n{HEADING}{title}{HEADING:#}\n"))
    }

    /// Prints a line below a heading.
    pub(crate) fn line(&self, text: impl Display) -> io::Result<()> {
        self.write(format_args!("   {text}\n"))
    }

    /// Prints one connection as it happens.
    pub(crate) fn flow(&self, flow: &Flow) -> io::Result<()> {
        let path = flow.got.map_or("no answer", CapturePath::describe);
        self.line(format_args!("{}  {:<34} {:<14}  {}", flow.family, flow.what, path, flow.seen))
    }

    /// Prints expected and actual results, one line each, and the total.
    pub(crate) fn table(&self, report: &Report) -> io::Result<()> {
        self.heading("Expected and got")?;
        let flows = report.flows.iter().map(|flow| {
            let got = flow.got.map_or("no answer", CapturePath::describe).to_owned();
            (format!("{}  {}", flow.family, flow.what), flow.expected.describe(), got, flow.ok)
        });
        let checks =
            report.checks.iter().map(|check| (check.what.to_owned(), check.expected, check.got.clone(), check.ok));
        let rows: Vec<_> = flows.chain(checks).collect();
        for (what, expected, got, ok) in &rows {
            let (style, verdict) = if *ok { (OK, "ok") } else { (FAILED, "FAILED") };
            self.line(format_args!("{what:<42} {expected:<14} {got:<14} {style}{verdict}{style:#}"))?;
        }
        let passed = rows.iter().filter(|(.., ok)| *ok).count();
        let style = if report.ok { OK.bold() } else { FAILED.bold() };
        self.write(format_args!("\n{style}{passed} of {} as expected{style:#}\n", rows.len()))
    }

    fn write(&self, text: std::fmt::Arguments<'_>) -> io::Result<()> {
        // `anstream` drops the colours where standard output is not a terminal, or NO_COLOR is set.
        if self.quiet { Ok(()) } else { anstream::stdout().lock().write_fmt(text) }
    }
}

pub(crate) fn microseconds(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

pub(crate) fn milliseconds(microseconds: u64) -> String {
    format!("{}.{:02} ms", microseconds / 1000, microseconds % 1000 / 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_is_the_middle_value() {
        let times = [5, 1, 9].map(Duration::from_micros).to_vec();
        assert_eq!(AddTime::of(times).median_microseconds, 5);
        assert_eq!(AddTime::of(Vec::new()).median_microseconds, 0);
    }

    #[test]
    fn milliseconds_have_two_decimal_places() {
        assert_eq!(milliseconds(1_049), "1.04 ms");
    }
}
