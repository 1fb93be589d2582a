//! The command line tool `weir`.
//!
//! ```text
//! main ─▶ args (what the user wrote) ─┬▶ inject ─┐
//!                                     ├▶ uninject┤
//!                                     ├▶ rules ──┼▶ settings, files, manifest (streams and their pods), yaml_text
//!                                     ├▶ explain ┘
//!                                     ├▶ check (a cluster as a whole; a node's agent)
//!                                     ├▶ manifest, install, uninstall, tag, version ─▶ chart (settings to objects), objects (in a cluster)
//!                                     ├▶ iptables (a network namespace)
//!                                     └▶ demo
//! cluster: the way to an API server; failure: all that is wrong at once, and the exit code
//! ```

mod agent;
mod args;
mod chart;
mod check;
mod cluster;
mod demo;
mod explain;
mod failure;
mod files;
mod inject;
mod install;
mod iptables;
mod manifest;
mod manifest_cmd;
mod objects;
mod rules;
mod settings;
mod splice;
mod tag;
mod uninject;
mod version;
mod xml;
mod yaml_text;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    match args::Cli::parse().command.run() {
        Ok(code) => code,
        Err(failure) => {
            eprint!("{failure}");
            failure.exit_code()
        }
    }
}
