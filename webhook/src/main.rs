//! The admission webhook `weir-webhook`.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::SystemTime;

use clap::Parser as _;
use weir_runtime::logging;
use weir_webhook::args::{CertsArgs, Cli, Command, ServeArgs};
use weir_webhook::certs;
use weir_webhook::config::Config;
use weir_webhook::run;

/// `EX_USAGE` of sysexits.h: flags or files are wrong; nothing was started.
const EX_USAGE: u8 = 64;

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
    logging::init(flags.log_format, flags.log_level.clone())?;
    let config = match Config::resolve(flags) {
        Ok(config) => config,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "weir-webhook: {error}");
            return Ok(ExitCode::from(EX_USAGE));
        }
    };
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(run::run(config))?;
    Ok(ExitCode::SUCCESS)
}
