//! The node agent `weir-agent`.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;

use weir_agent::args::{Cli, Command, RunArgs};
use weir_agent::{logging, run};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let ended = match cli.command {
        Some(Command::Run(args)) => serve(*args),
        Some(Command::Version) => print_version(),
        Some(Command::Install(_) | Command::Uninstall(_)) => Err(anyhow::anyhow!("not there yet")),
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

fn serve(args: RunArgs) -> anyhow::Result<ExitCode> {
    let levels = logging::start(args.log.log_as_json, &args.log.log_output_level)?;
    // Two threads: the agent waits nearly always, and has to stay small.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(run::run(args, Some(levels)))?;
    Ok(ExitCode::SUCCESS)
}
