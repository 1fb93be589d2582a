//! The node agent `weir-agent`.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;

use weir_agent::args::{Cli, Command, InstallArgs, OnceArgs, RunArgs};
use weir_agent::install::once::{self, Done};
use weir_agent::install::settings::Settings;
use weir_agent::{logging, run};

/// `EX_USAGE` of sysexits.h: flags do not fit together, nothing was started.
const BAD_CONFIGURATION: u8 = 64;
/// `EX_TEMPFAIL`: the rest cannot be done yet, try again later.
const LATER: u8 = 75;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let ended = match cli.command {
        Some(Command::Run(args)) => serve(*args),
        Some(Command::Version) => print_version(),
        Some(Command::Install(args)) => once(&args, |settings| once::install(settings, args.wait)),
        Some(Command::Uninstall(args)) => once(&args, |settings| once::uninstall(&settings, args.wait)),
        None => serve(cli.run),
    };
    ended.unwrap_or_else(|error| {
        let _ = writeln!(std::io::stderr(), "weir-agent: {error:#}");
        ExitCode::FAILURE
    })
}

fn print_version() -> anyhow::Result<ExitCode> {
    writeln!(std::io::stdout(), "weir-agent {}", env!("CARGO_PKG_VERSION"))?;
    Ok(ExitCode::SUCCESS)
}

fn once(args: &OnceArgs, act: impl FnOnce(Settings) -> Result<Done, Vec<String>>) -> anyhow::Result<ExitCode> {
    logging::start(args.log.log_as_json, &args.log.log_output_level)?;
    let Some(settings) = resolve(args.install.clone()) else { return Ok(ExitCode::from(BAD_CONFIGURATION)) };
    match act(settings) {
        Ok(Done { text, all }) => {
            writeln!(std::io::stdout(), "{text}")?;
            Ok(if all { ExitCode::SUCCESS } else { ExitCode::from(LATER) })
        }
        Err(wrong) => Err(anyhow::anyhow!(wrong.join("\n  "))),
    }
}

/// The flags, or nothing where they do not fit together; everything that is wrong has been said then.
fn resolve(args: InstallArgs) -> Option<Settings> {
    Settings::resolve(args)
        .map_err(|wrong| {
            let _ = writeln!(std::io::stderr(), "weir-agent: {}", wrong.join("\n  "));
        })
        .ok()
}

fn serve(args: RunArgs) -> anyhow::Result<ExitCode> {
    let levels = logging::start(args.log.log_as_json, &args.log.log_output_level)?;
    let Some(settings) = resolve(args.install.clone()) else { return Ok(ExitCode::from(BAD_CONFIGURATION)) };
    // Two threads: the agent waits nearly always, and has to stay small.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(run::run(args, settings, Some(levels)))?;
    Ok(ExitCode::SUCCESS)
}
