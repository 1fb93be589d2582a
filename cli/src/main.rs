//! The command line tool `weir`.
//!
//! ```text
//! main ─▶ cli (arguments) ─┬▶ inject, uninject, rules, explain, diff ─▶ settings, files, manifest (streams, and the pods in them)
//!                          ├▶ install, uninstall, tag, generate, version ─▶ chart (settings to objects), objects (in a cluster)
//!                          ├▶ migrate ─▶ the comparison of diff, the injector's settings, rollout
//!                          ├▶ check (library weir-check)
//!                          └▶ iptables (library weir-iptables)
//! cluster: the connection to an API server; failure: all findings at once, and the exit code
//! ```

mod agent;
mod chart;
mod check;
mod cli;
mod cluster;
mod console;
mod diff;
mod duration;
mod explain;
mod failure;
mod files;
mod generate;
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
mod settings;
mod splice;
mod tag;
mod uninject;
mod uninstall;
mod version;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};
use clap_complete::CompleteEnv;

use cli::Cli;

fn main() -> ExitCode {
    // Answers a shell that asks for completions (`COMPLETE=bash weir`), and exits.
    CompleteEnv::with_factory(Cli::command).complete();
    match Cli::parse().command.run() {
        Ok(code) => code,
        Err(failure) => {
            eprint!("{failure}");
            failure.exit_code()
        }
    }
}
