//! `weir-iptables`: the stand-in for `istio-iptables` in init and validation containers.

use std::process::ExitCode;

use clap::Parser;
use weir_iptables::IptablesArgs;

/// Install or validate the capture rules of a network namespace, with the options of istio-iptables (root, or `CAP_NET_ADMIN`)
#[derive(Debug, Parser)]
#[command(name = "weir-iptables", version, after_long_help = weir_iptables::help("weir-iptables"))]
struct Cli {
    #[command(flatten)]
    args: IptablesArgs,
}

fn main() -> ExitCode {
    // Istio's templates name the program in the first argument, because their image has several.
    let mut arguments: Vec<_> = std::env::args_os().collect();
    if arguments.get(1).is_some_and(|first| first == "istio-iptables") {
        arguments.remove(1);
    }
    match weir_iptables::run(&Cli::parse_from(arguments).args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            for message in error.messages() {
                eprintln!("weir: {message}");
            }
            ExitCode::from(error.exit_code())
        }
    }
}
