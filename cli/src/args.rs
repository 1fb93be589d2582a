//! The command line as the user wrote it.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::demo;

/// Exit codes besides 0, the same for every command.
pub(crate) mod exit {
    /// The input holds something that was refused, or what was checked does not hold.
    pub(crate) const FINDINGS: u8 = 1;
    /// The command line is wrong, or a file cannot be read or written.
    pub(crate) const USAGE: u8 = 2;
}

/// Istio sidecars and capture rules, from the command line.
#[derive(Debug, Parser)]
#[command(name = "weir", version, propagate_version = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show the whole pipeline on this machine: injection, rules, captured connections (root on Linux)
    Demo(demo::DemoArgs),
}

impl Command {
    /// Carries the command out.
    pub(crate) fn run(&self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Demo(args) => demo::run(args),
        }
    }
}
