//! The generated pages of `docs/reference`: `UPDATE=1 cargo test -p weir-tests --test it reference observability` writes them.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

/// Columns of a help text.
const WIDTH: &str = "100";

/// Compares a page of `docs/reference` with what it should be, or writes it if `UPDATE` is set.
pub(crate) fn assert_page(name: &str, wanted: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference").join(name);
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, wanted).unwrap();
        return;
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    let difference = similar::TextDiff::from_lines(found.as_str(), wanted).unified_diff().to_string();
    assert!(difference.is_empty(), "docs/reference/{name} is not current; UPDATE=1 writes it:\n{difference}");
}

/// Returns what a command prints as its help. It depends on neither the environment nor a terminal.
fn help(binary: &str, subcommand: &[String]) -> String {
    let mut command = Command::new(weir_tests::bin(binary));
    command.args(subcommand).arg("--help").env_clear().env("COLUMNS", WIDTH).stdin(Stdio::null());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{binary} {subcommand:?} --help: {output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

/// Returns the names of the subcommands that a help text lists.
fn subcommands(help: &str) -> Vec<String> {
    let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    // The lines of a text that is wrapped have more spaces in front.
    let names = lines.filter_map(|line| line.strip_prefix("  ").filter(|line| !line.starts_with(' ')));
    names.filter_map(|line| line.split(' ').next()).filter(|name| *name != "help").map(str::to_owned).collect()
}

/// Appends the help of a command and of all below it.
fn append(page: &mut String, binary: &str, subcommand: &[String]) {
    let text = help(binary, subcommand);
    let name = [&[binary.to_owned()], subcommand].concat().join(" ");
    write!(page, "\n## {name}\n\n```text\n{text}```\n").unwrap();
    for below in subcommands(&text) {
        append(page, binary, &[subcommand, &[below]].concat());
    }
}

#[test]
fn flags_are_those_of_the_binaries() {
    for (binary, purpose) in [
        ("weir", "the command line tool; [cli.md](../cli.md) explains it with examples"),
        ("weir-webhook", "the admission webhook; [webhook.md](../webhook.md) explains it"),
        ("weir-agent", "the node agent; [node-agent.md](../node-agent.md) explains it"),
        ("weir-iptables", "the capture rules of one network namespace, for containers and hosts"),
    ] {
        let mut page = format!("# {binary}\n\nGenerated from the program: {purpose}.\n");
        append(&mut page, binary, &[]);
        assert_page(&format!("{binary}.md"), &page);
    }
}

/// A metric as Prometheus knows it.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Metric {
    /// Name of its family.
    pub(crate) name: String,
    /// `counter`, `gauge`, ...
    pub(crate) kind: String,
    /// Help text.
    pub(crate) help: String,
}

/// Compares the page of the metrics with the metrics of each component.
pub(crate) fn assert_metrics_page(components: &[(&str, BTreeSet<Metric>)]) {
    let mut page = "# Metrics\n\nGenerated from what the processes serve at `/metrics`.\n".to_owned();
    for (component, metrics) in components {
        write!(page, "\n## {component}\n\n| metric | type | meaning |\n|---|---|---|\n").unwrap();
        for Metric { name, kind, help } in metrics {
            let suffix = match kind.as_str() {
                "counter" => "_total",
                "info" => "_info",
                _ => "",
            };
            writeln!(page, "| `{name}{suffix}` | {kind} | {} |", help.trim_end_matches('.').replace('|', "\\|"))
                .unwrap();
        }
    }
    assert_page("metrics.md", &page);
}

#[test]
fn subcommands_are_read_from_a_help_text() {
    let text = "Usage\n\nCommands:\n  run     Run it\n  check   Check it, with a text\n          that is wrapped\n  help    Print\n\nOptions:\n  -h\n";
    assert_eq!(subcommands(text), ["run", "check"]);
}
