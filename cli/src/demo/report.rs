//! What the demo tells: as it goes for people, in one document at the end for machines.

use std::fmt::Display;
use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use serde::Serialize;

use super::flows::{Flow, Way};
use super::review::Admission;

/// The whole demo, as `--json` prints it.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// Whether everything was as expected; so is the exit code.
    pub(crate) ok: bool,
    pub(crate) manifest: &'static str,
    pub(crate) admission: Admission,
    /// Addresses that the plugins gave the pod.
    pub(crate) addresses: Vec<String>,
    /// Plugins in order, with the time each took to ADD the pod.
    pub(crate) plugins: Vec<PluginTime>,
    pub(crate) sidecar: String,
    pub(crate) flows: Vec<Flow>,
    /// What else had to hold.
    pub(crate) checks: Vec<Check>,
    pub(crate) add: AddTime,
}

#[derive(Debug, Serialize)]
pub(crate) struct PluginTime {
    pub(crate) plugin: String,
    pub(crate) microseconds: u64,
}

/// Something that has to hold, and what was found.
#[derive(Debug, Serialize)]
pub(crate) struct Check {
    pub(crate) what: &'static str,
    pub(crate) expected: &'static str,
    pub(crate) got: String,
    pub(crate) ok: bool,
}

impl Check {
    /// A step that has to succeed.
    pub(crate) fn succeeds(what: &'static str, result: &anyhow::Result<()>) -> Self {
        let got = result.as_ref().err().map_or_else(|| "ok".to_owned(), |error| format!("{error:#}"));
        Self { what, expected: "ok", got, ok: result.is_ok() }
    }
}

/// Time of `weir-cni` ADD in fresh namespaces, from the start of the process to its end.
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

/// Who tells it.
pub(crate) struct Teller {
    quiet: bool,
    colour: bool,
}

impl Teller {
    /// With `quiet`, only the document at the end is printed.
    pub(crate) fn new(quiet: bool) -> Self {
        let colour = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { quiet, colour }
    }

    /// A headline.
    pub(crate) fn step(&self, title: &str) -> io::Result<()> {
        self.write(format_args!("\n{}\n", self.paint("1", title)))
    }

    /// A line below it.
    pub(crate) fn line(&self, text: impl Display) -> io::Result<()> {
        self.write(format_args!("   {text}\n"))
    }

    /// One connection, as it happens.
    pub(crate) fn flow(&self, flow: &Flow) -> io::Result<()> {
        let way = flow.got.map_or("no answer", Way::describe);
        self.line(format_args!("{}  {:<34} {:<14}  {}", flow.family, flow.what, way, flow.seen))
    }

    /// Expected and got, one line each, and the sum.
    pub(crate) fn table(&self, report: &Report) -> io::Result<()> {
        self.step("Expected and got")?;
        let flows = report.flows.iter().map(|flow| {
            let got = flow.got.map_or("no answer", Way::describe).to_owned();
            (format!("{}  {}", flow.family, flow.what), flow.expected.describe(), got, flow.ok)
        });
        let checks =
            report.checks.iter().map(|check| (check.what.to_owned(), check.expected, check.got.clone(), check.ok));
        for (what, expected, got, ok) in flows.chain(checks) {
            let verdict = if ok { self.paint("32", "ok") } else { self.paint("31", "WRONG") };
            self.line(format_args!("{what:<42} {expected:<14} {got:<14} {verdict}"))?;
        }
        let (right, all) = (
            report.flows.iter().filter(|flow| flow.ok).count() + report.checks.iter().filter(|check| check.ok).count(),
            report.flows.len() + report.checks.len(),
        );
        let sum = format!("{right} of {all} as expected");
        self.write(format_args!("\n{}\n", self.paint(if report.ok { "1;32" } else { "1;31" }, &sum)))
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn write(&self, text: std::fmt::Arguments<'_>) -> io::Result<()> {
        if self.quiet { Ok(()) } else { io::stdout().lock().write_fmt(text) }
    }
}

/// A time as the report has it.
pub(crate) fn microseconds(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// A time for people.
pub(crate) fn milliseconds(microseconds: u64) -> String {
    format!("{}.{:02} ms", microseconds / 1000, microseconds % 1000 / 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_one_in_the_middle() {
        let times = [5, 1, 9].map(Duration::from_micros).to_vec();
        assert_eq!(AddTime::of(times).median_microseconds, 5);
        assert_eq!(AddTime::of(Vec::new()).median_microseconds, 0);
    }

    #[test]
    fn times_have_two_places() {
        assert_eq!(milliseconds(1_049), "1.04 ms");
    }
}
