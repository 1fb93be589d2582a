//! `weir-demo`: the whole pipeline on this machine, with the real binaries.
//!
//! ```text
//! preflight ─▶ webhook + review ─▶ cni (bridge, portmap, weir-cni) ─▶ app + sidecar ─▶ flows ─▶ CHECK, DEL ─▶ report
//!               in the namespace "node"                    ╰─▶ in the namespace "pod"
//! ```
//!
//! Only this process holds the two namespaces, so no bridge, address or rule ever appears on the machine. Child processes die with this
//! one, even if it is killed; only then does its temporary directory stay behind.

mod app;
mod child;
mod cni;
mod demo;
mod flows;
mod interrupt;
mod preflight;
mod report;
mod review;
mod sidecar;
mod webhook;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;

use interrupt::Interrupt;
use report::Printer;

/// Exit code that a shell reports for a process that SIGINT ended.
const INTERRUPTED: u8 = 130;

/// Show the whole pipeline on this machine: injection, capture rules, captured connections (root on Linux)
#[derive(Debug, Parser)]
#[command(name = "weir-demo", version)]
struct Cli {
    /// Print one JSON document instead of text
    #[arg(long)]
    json: bool,
    /// Run this Envoy as the sidecar [default: WEIR_ENVOY if that file exists, else a built-in proxy]
    #[arg(long, value_name = "FILE")]
    envoy: Option<PathBuf>,
    /// Run as a child process of the demo
    #[arg(long, hide = true, value_name = "JSON")]
    child: Option<String>,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("weir-demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<ExitCode> {
    if let Some(spec) = &cli.child {
        child::run(spec)?;
        return Ok(ExitCode::SUCCESS);
    }
    let default_envoy = std::env::var_os("WEIR_ENVOY").map(PathBuf::from).filter(|path| path.is_file());
    let prerequisites = match preflight::find(cli.envoy.as_deref().or(default_envoy.as_deref())) {
        Ok(prerequisites) => prerequisites,
        Err(missing) => {
            for message in missing {
                eprintln!("weir-demo: {message}");
            }
            return Ok(ExitCode::FAILURE);
        }
    };
    let stop = Interrupt::listen().context("cannot install signal handlers")?;
    match demo::run(&prerequisites, &Printer { quiet: cli.json }, &stop) {
        Ok(report) => {
            if cli.json {
                let mut out = std::io::stdout().lock();
                serde_json::to_writer_pretty(&mut out, &report).context("cannot write the report")?;
                writeln!(out).context("cannot write the report")?;
            }
            Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        // Whatever failed, failed because of the signal.
        Err(_) if stop.is_set() => {
            eprintln!("weir-demo: interrupted; cleaned up");
            Ok(ExitCode::from(INTERRUPTED))
        }
        Err(error) => Err(error),
    }
}
