//! Runs the examples of `docs/cli.md`.
//!
//! A block ```` ```yaml NAME ```` is a file. In a block ```` ```console ````, a line `$ COMMAND` is run, and the lines below it are its
//! expected output, standard error first; `...` matches any number of lines.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A fenced block without its indentation.
struct Block {
    info: String,
    lines: Vec<String>,
}

fn blocks(text: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut open: Option<usize> = None;
    for line in text.lines() {
        let (indent, fence) = (line.len() - line.trim_start().len(), line.trim_start().strip_prefix("```"));
        match (open, fence) {
            (None, Some(info)) => {
                open = Some(indent);
                blocks.push(Block { info: info.to_owned(), lines: Vec::new() });
            }
            (Some(_), Some(_)) => open = None,
            (Some(indent), None) => blocks.last_mut().unwrap().lines.push(line.get(indent..).unwrap_or("").to_owned()),
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "the last block is open");
    blocks
}

/// Compares lines with the expected ones, in which `...` matches any number.
fn matches(want: &[String], got: &[&str]) -> bool {
    match want.split_first() {
        None => got.is_empty(),
        Some((first, rest)) if first == "..." => (0..=got.len()).any(|skipped| matches(rest, &got[skipped..])),
        Some((first, rest)) => got.first() == Some(&first.as_str()) && matches(rest, &got[1..]),
    }
}

/// Runs a command in a shell, with `$?` of the previous one; returns output and exit status.
fn run(directory: &Path, command: &str, status: i32) -> (String, i32) {
    let binary = PathBuf::from(assert_cmd::cargo::cargo_bin!("weir"));
    let path = format!("{}:{}", binary.parent().unwrap().display(), std::env::var("PATH").unwrap());
    let output = Command::new("bash")
        .args(["-c", &format!("exec 3>&1; out=$(mktemp); (exit {status}); {{ {command}\n}} >$out 2>&3; code=$?; cat $out; rm $out; exit $code")])
        .current_dir(directory)
        .env("PATH", path)
        .env_remove("COMPLIANCE_POLICY")
        .output()
        .unwrap();
    (String::from_utf8(output.stdout).unwrap(), output.status.code().unwrap())
}

#[test]
fn examples_print_what_the_docs_show() {
    let text = std::fs::read_to_string(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/cli.md")).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let mut commands = 0;
    for block in blocks(&text) {
        if let Some(name) = block.info.strip_prefix("yaml ") {
            std::fs::write(directory.path().join(name), block.lines.join("\n") + "\n").unwrap();
        }
        if block.info != "console" {
            continue;
        }
        let mut status = 0;
        let mut lines = block.lines.as_slice();
        while let Some((first, rest)) = lines.split_first() {
            let command = first.strip_prefix("$ ").unwrap_or_else(|| panic!("{first:?} is no command"));
            let end = rest.iter().position(|line| line.starts_with("$ ")).unwrap_or(rest.len());
            let (got, code) = run(directory.path(), command, status);
            assert!(matches(&rest[..end], &got.lines().collect::<Vec<_>>()), "$ {command}\n{got}");
            (lines, status) = (&rest[end..], code);
            commands += 1;
        }
    }
    assert!(commands > 5, "only {commands} commands were found");
}

#[test]
fn every_option_is_documented() {
    let text = std::fs::read_to_string(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/cli.md")).unwrap();
    let commands = [
        "inject",
        "uninject",
        "rules",
        "diff",
        "assert",
        "iptables",
        "explain inject",
        "install",
        "uninstall",
        "manifest generate",
        "migrate plan",
        "migrate run",
        "migrate rollback",
        "migrate finish",
        "tag set",
        "version",
    ];
    for command in commands {
        let arguments: Vec<&str> = command.split(' ').chain(["--help"]).collect();
        let help = crate::run::weir(&arguments, "").stdout;
        let options = help.lines().map(str::trim_start).filter(|line| line.starts_with('-'));
        let words = options.filter_map(|line| line.split_whitespace().find(|word| word.starts_with("--")));
        // Help prints the optional value of a switch, and the dots of one that repeats, behind its name.
        let words = words.filter_map(|word| word.split(['[', '.']).next());
        for option in words.filter(|word| !["--help", "--version", "--filename", "--output"].contains(word)) {
            assert!(text.contains(option), "{option} of weir {command} is not in docs/cli.md");
        }
    }
}

#[test]
fn every_command_has_a_manual_page() {
    let directory = tempfile::tempdir().unwrap();
    let run = crate::run::weir(&["man", directory.path().to_str().unwrap()], "");
    assert_eq!(run.code, 0, "{}", run.stderr);
    for page in ["weir.1", "weir-inject.1", "weir-tag-set.1"] {
        assert!(directory.path().join(page).is_file(), "{page}");
    }
}
