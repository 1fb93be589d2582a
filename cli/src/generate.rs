//! `weir manifest generate`: prints the objects that `weir install` would apply.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::chart::{ChartArgs, to_yaml_stream};
use crate::failure::Failure;
use crate::files::{self, OutputFileArgs};

/// Options of `weir manifest`.
#[derive(Debug, Args)]
pub(crate) struct ManifestArgs {
    #[command(subcommand)]
    command: ManifestCommand,
}

#[derive(Debug, Subcommand)]
enum ManifestCommand {
    /// Print the objects that `weir install` applies, in the same order
    #[command(after_long_help = "\
Examples:
  weir manifest generate --platform k3s | kubectl apply --server-side -f -
  weir manifest generate --set webhook.replicas=3 --output-file weir.yaml

Exit status: 0 done, 1 a setting is invalid, 2 wrong usage or a file cannot be read or written.")]
    Generate(GenerateArgs),
}

#[derive(Debug, Args)]
struct GenerateArgs {
    #[command(flatten)]
    settings: ChartArgs,

    #[command(flatten)]
    output: OutputFileArgs,
}

/// Runs `weir manifest`.
///
/// # Errors
/// Settings are invalid, or a file cannot be read or written.
pub(crate) fn run(args: &ManifestArgs) -> Result<ExitCode, Failure> {
    let ManifestCommand::Generate(args) = &args.command;
    let text = to_yaml_stream(&args.settings.release()?.objects()?)?;
    files::write(args.output.target()?, &text)?;
    Ok(ExitCode::SUCCESS)
}
