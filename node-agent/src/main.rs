//! Binary `weir-agent`.

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser as _;
use tokio::signal::unix::{SignalKind, signal};

use weir_agent::args::{Cli, Command, InstallArgs, OnceArgs, RunArgs};
use weir_agent::install::once;
use weir_agent::install::settings::InstallSettings;
use weir_agent::run;

/// Flags exclude each other; nothing was changed. clap uses the same.
const EXIT_USAGE: u8 = 2;
/// Crate of the modules whose log levels can be set.
const CRATE: &str = "weir_agent";
/// File from which a kubelet reads a container's last message.
const TERMINATION_LOG: &str = "/dev/termination-log";

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Some(Command::Run(args)) => serve(*args),
        Some(Command::Version) => print_version(),
        Some(Command::Pause) => pause(),
        Some(Command::Install(args)) => once(&args, |settings| once::install(settings, args.wait)),
        Some(Command::Uninstall(args)) => once(&args, |settings| once::uninstall(&settings, args.wait)),
        None => serve(cli.run),
    };
    result.unwrap_or_else(|error| {
        let _ = writeln!(std::io::stderr(), "weir-agent: {error:#}");
        ExitCode::FAILURE
    })
}

fn print_version() -> anyhow::Result<ExitCode> {
    writeln!(std::io::stdout(), "weir-agent {}", env!("CARGO_PKG_VERSION"))?;
    Ok(ExitCode::SUCCESS)
}

fn once(args: &OnceArgs, act: impl FnOnce(InstallSettings) -> Result<String, Vec<String>>) -> anyhow::Result<ExitCode> {
    args.log.init(CRATE)?;
    let Some(settings) = resolve(args.install.clone()) else { return Ok(ExitCode::from(EXIT_USAGE)) };
    match act(settings) {
        Ok(summary) => {
            writeln!(std::io::stdout(), "{summary}")?;
            if Path::new(TERMINATION_LOG).exists() {
                // The log has the summary, too.
                let _ = std::fs::write(TERMINATION_LOG, &summary);
            }
            Ok(ExitCode::SUCCESS)
        }
        Err(errors) => Err(anyhow::anyhow!(errors.join("\n  "))),
    }
}

/// Waits for a signal to terminate.
fn pause() -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// Resolves the flags; prints all errors and returns `None` where they exclude each other.
fn resolve(args: InstallArgs) -> Option<InstallSettings> {
    InstallSettings::resolve(args)
        .map_err(|errors| {
            let _ = writeln!(std::io::stderr(), "weir-agent: {}", errors.join("\n  "));
        })
        .ok()
}

fn serve(args: RunArgs) -> anyhow::Result<ExitCode> {
    let levels = args.log.init(CRATE)?;
    let Some(settings) = resolve(args.install.clone()) else { return Ok(ExitCode::from(EXIT_USAGE)) };
    // Two threads, to stay small: the agent nearly always waits.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(run::run(args, settings, Some(levels)))?;
    Ok(ExitCode::SUCCESS)
}
