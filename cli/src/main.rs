//! The command line tool `weir`.
//!
//! ```text
//! main ─▶ args.rs (what the user wrote) ─▶ demo.rs
//! ```

mod args;
mod demo;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    let cli = args::Cli::parse();
    match cli.command.run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("weir: {error:#}");
            ExitCode::from(args::exit::USAGE)
        }
    }
}
