//! The reference of all options in `docs/reference`, from the command lines of the binaries. `UPDATE=1` writes it, a test compares it.

use std::fmt::Write as _;
use std::path::Path;

use clap::{Arg, Args as _, Command, CommandFactory as _};

use crate::cli::Cli;

/// Returns the page of a binary.
fn page(command: Command) -> String {
    let mut command = command.term_width(0);
    command.build();
    let name = command.get_name().to_owned();
    let mut text = format!(
        "# `{name}`\n\nWritten from the source; `UPDATE=1 cargo test -p weir-cli reference` writes it again.\n"
    );
    section(&command, &name, &mut text);
    text
}

fn section(command: &Command, path: &str, text: &mut String) {
    // Writing to a string does not fail.
    let _ = write!(text, "\n## `{path}`\n\n{}\n", about(command));
    let _ = write!(text, "\n```text\n{}\n```\n", command.clone().render_usage().to_string().trim_end());
    let is_shown = |arg: &&Arg| !arg.is_hide_set() && !matches!(arg.get_id().as_str(), "help" | "version" | "verbose");
    let shown: Vec<&Arg> = command.get_arguments().filter(is_shown).collect();
    if !shown.is_empty() {
        text.push_str("\n| option | meaning |\n|---|---|\n");
        for arg in shown {
            let _ = writeln!(text, "| {} | {} |", option(arg), meaning(arg));
        }
    }
    let is_shown = |sub: &&Command| !sub.is_hide_set() && sub.get_name() != "help";
    for sub in command.get_subcommands().filter(is_shown) {
        section(sub, &format!("{path} {}", sub.get_name()), text);
    }
}

fn about(command: &Command) -> String {
    let text = command.get_long_about().or(command.get_about()).map(ToString::to_string).unwrap_or_default();
    text.trim_end().trim_end_matches('.').to_owned() + "."
}

/// Returns `-o`, `--output FORMAT`, or `FILE...` for a positional argument.
fn option(arg: &Arg) -> String {
    let names: Vec<String> = arg.get_value_names().unwrap_or_default().iter().map(|name| format!("<{name}>")).collect();
    let takes_value = arg.get_action().takes_values();
    let values = if takes_value { names.join(" ") } else { String::new() };
    let is_optional = takes_value && arg.get_num_args().is_some_and(|range| range.min_values() == 0);
    let values = match (values.as_str(), is_optional) {
        ("", _) => String::new(),
        (values, true) => format!("[={values}]"),
        (values, false) => format!(" {values}"),
    };
    match (arg.get_short(), arg.get_long()) {
        (None, None) => format!("`{}`", values.trim_start()),
        (Some(short), None) => format!("`-{short}{values}`"),
        (None, Some(long)) => format!("`--{long}{values}`"),
        (Some(short), Some(long)) => format!("`-{short}`, `--{long}{values}`"),
    }
}

fn meaning(arg: &Arg) -> String {
    let help = arg.get_long_help().or(arg.get_help()).map(ToString::to_string).unwrap_or_default();
    let mut text = help.split_whitespace().collect::<Vec<_>>().join(" ");
    let values: Vec<String> = arg
        .get_possible_values()
        .iter()
        .filter(|value| !value.is_hide_set())
        .map(|value| value.get_name().to_owned())
        .collect();
    let is_switch = !arg.get_action().takes_values();
    if !values.is_empty() && !is_switch && values != ["true", "false"] {
        let _ =
            write!(text, "; one of {}", values.iter().map(|value| format!("`{value}`")).collect::<Vec<_>>().join(", "));
    }
    let defaults: Vec<String> =
        arg.get_default_values().iter().map(|value| value.to_string_lossy().into_owned()).collect();
    if !defaults.is_empty() && !arg.is_hide_default_value_set() && !is_switch && defaults != [""] {
        let _ = write!(text, " [default: `{}`]", defaults.join(","));
    }
    if let Some(variable) = arg.get_env() {
        let _ = write!(text, " [env: `{}`]", variable.to_string_lossy());
    }
    // A reader of Markdown takes the names of values for tags, and a bar for the end of a cell.
    text.replace('|', "\\|").replace('<', "&lt;")
}

#[test]
fn reference_has_every_option() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference");
    let about = "Install or validate the capture rules of a network namespace, with the options of istio-iptables";
    let iptables = weir_iptables::IptablesArgs::augment_args(Command::new("weir-iptables").about(about));
    let pages = [Cli::command(), weir_webhook::args::Cli::command(), weir_agent::args::Cli::command(), iptables];
    let is_update = std::env::var_os("UPDATE").is_some_and(|value| !value.is_empty());
    let mut stale = Vec::new();
    for command in pages {
        let path = folder.join(format!("{}.md", command.get_name()));
        let wanted = page(command);
        if is_update {
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(&path, &wanted).unwrap();
        } else if std::fs::read_to_string(&path).unwrap_or_default() != wanted {
            stale.push(path);
        }
    }
    assert!(stale.is_empty(), "UPDATE=1 writes these again: {stale:?}");
}
