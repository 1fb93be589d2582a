//! `weir demo`: the whole pipeline on this machine.

use std::process::ExitCode;

use clap::Args;

/// Options of `weir demo`.
#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Print one JSON document instead of text
    #[arg(long)]
    pub(crate) json: bool,
}

/// Runs the demo.
///
/// # Errors
/// What keeps the demo from running at all; a flow that is not captured is an exit code.
pub(crate) fn run(args: &DemoArgs) -> anyhow::Result<ExitCode> {
    let _ = args.json;
    anyhow::bail!("this build carries no demo")
}
