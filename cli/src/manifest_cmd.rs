//! `weir manifest generate`: the objects that `weir install` would apply, as YAML.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::chart::{SettingsArgs, stream};
use crate::failure::Failure;
use crate::files;

/// What becomes of the objects.
#[derive(Debug, Args)]
pub(crate) struct ManifestArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Print the objects that `weir install` applies, in the order in which it does
    #[command(after_long_help = "\
Examples:
  weir manifest generate --platform k3s | kubectl apply --server-side -f -
  weir manifest generate --set webhook.replicas=3 -o weir.yaml

Exit status: 0 done, 1 a setting was refused, 2 wrong usage or a file cannot be read or written.")]
    Generate(GenerateArgs),
}

#[derive(Debug, Args)]
struct GenerateArgs {
    #[command(flatten)]
    settings: SettingsArgs,

    /// Write here instead of to standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Carries it out.
///
/// # Errors
/// All settings that are wrong.
pub(crate) fn run(args: &ManifestArgs) -> Result<ExitCode, Failure> {
    let What::Generate(args) = &args.what;
    let text = stream(&args.settings.release()?.objects()?)?;
    files::write(args.output.as_deref(), &text)?;
    Ok(ExitCode::SUCCESS)
}
