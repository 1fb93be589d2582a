//! The admission webhook `weir-webhook`.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::SystemTime;

use clap::Parser as _;
use weir_webhook::args::{CertsArgs, Cli, Command, ServeArgs};
use weir_webhook::certs;
use weir_webhook::config::Config;
use weir_webhook::run;

/// Flags or files are wrong; nothing was started. clap uses the same.
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match &cli.command {
        Some(Command::Certs(args)) => generate_certs(args),
        None => serve(cli.serve),
    };
    result.unwrap_or_else(|error| {
        let _ = writeln!(std::io::stderr(), "weir-webhook: {error:#}");
        ExitCode::FAILURE
    })
}

fn generate_certs(args: &CertsArgs) -> anyhow::Result<ExitCode> {
    let files = certs::generate(&args.dns, args.days, SystemTime::now())?.write(&args.out, args.force)?;
    for file in files {
        writeln!(std::io::stdout(), "{}", file.display())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn serve(flags: ServeArgs) -> anyhow::Result<ExitCode> {
    flags.log.init("weir_webhook")?;
    let config = match Config::resolve(flags) {
        Ok(config) => config,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "weir-webhook: {error}");
            return Ok(ExitCode::from(EXIT_USAGE));
        }
    };
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(run::run(config))?;
    Ok(ExitCode::SUCCESS)
}
