//! The command line tool `weir`.
//!
//! ```text
//! main ─▶ cli (arguments) ─┬▶ inject, uninject, rules, explain, diff, assert ─▶ settings, files, manifest (streams, and the pods in them)
//!                          ├▶ install, uninstall, tag, generate, version ─▶ chart (settings to objects), objects (in a cluster)
//!                          ├▶ check, support_bundle (library weir-check)
//!                          ├▶ migrate ─▶ the comparison of diff, the injector's settings, rollout
//!                          └▶ iptables (library weir-iptables)
//! cluster: the connection to an API server; failure: all findings at once, and the exit code
//! ```

mod agent;
mod assert;
mod chart;
mod check;
mod cli;
mod cluster;
mod completion;
mod console;
mod diff;
mod duration;
mod explain;
mod failure;
mod files;
mod generate;
mod groups;
mod html;
mod inject;
mod install;
mod manifest;
mod migrate;
mod node_release;
mod objects;
mod output;
mod revisions;
mod rollout;
mod rules;
mod sarif;
mod settings;
mod splice;
mod support_bundle;
mod tag;
mod uninject;
mod uninstall;
mod version;

use std::process::ExitCode;

use clap::FromArgMatches as _;
use clap_complete::CompleteEnv;

use cli::Cli;

fn main() -> ExitCode {
    // Answers a shell that asks for completions (`COMPLETE=bash weir`), and exits.
    CompleteEnv::with_factory(cli::command).complete();
    let mut command = cli::command();
    let cli =
        Cli::from_arg_matches(&command.get_matches_mut()).unwrap_or_else(|error| error.format(&mut command).exit());
    match cli.run() {
        Ok(code) => code,
        Err(failure) => {
            eprint!("{failure}");
            failure.exit_code()
        }
    }
}
