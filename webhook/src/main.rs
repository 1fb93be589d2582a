//! The admission server `weir-webhook`.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::SystemTime;

use clap::Parser as _;

use weir_webhook::args::{CertsArgs, Cli, Command, ServeArgs};
use weir_webhook::server::{self, certs, config::Config, logging};

/// `EX_USAGE` of sysexits.h: flags or files are wrong, nothing was started.
const BAD_CONFIGURATION: u8 = 64;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let ended = match &cli.command {
        Some(Command::Certs(args)) => make_certs(args),
        None => serve(&cli.serve),
    };
    ended.unwrap_or_else(|error| {
        let _ = writeln!(std::io::stderr(), "weir-webhook: {error:#}");
        ExitCode::FAILURE
    })
}

fn make_certs(args: &CertsArgs) -> anyhow::Result<ExitCode> {
    let files = certs::make(&args.dns, args.days, SystemTime::now())?.write(&args.out, args.force)?;
    for file in files {
        writeln!(std::io::stdout(), "{}", file.display())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn serve(args: &ServeArgs) -> anyhow::Result<ExitCode> {
    logging::start(args.log_format, args.log_level.clone())?;
    let config = match Config::resolve(args) {
        Ok(config) => config,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "weir-webhook: {error}");
            return Ok(ExitCode::from(BAD_CONFIGURATION));
        }
    };
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(server::run(config))?;
    Ok(ExitCode::SUCCESS)
}
