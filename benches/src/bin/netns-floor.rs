//! `netns-floor PATH` enters the network namespace at PATH and exits: no plugin can be faster.
//! `netns-floor --rss COMMAND [ARG...]` runs a command and prints its peak resident memory in KiB. Its own memory is
//! small, because a child starts with the high-water mark of its parent.

use std::fs::File;
use std::process::{Command, ExitCode};

use nix::sched::{CloneFlags, setns};
use nix::sys::resource::{UsageWho, getrusage};

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    match args.next() {
        Some(flag) if flag == "--rss" => {
            let Some(command) = args.next() else { return ExitCode::from(2) };
            let ran = Command::new(command).args(args).stdout(std::process::Stdio::null()).status();
            match (ran, getrusage(UsageWho::RUSAGE_CHILDREN)) {
                (Ok(status), Ok(usage)) if status.success() => {
                    eprintln!("{}", usage.max_rss());
                    ExitCode::SUCCESS
                }
                _ => ExitCode::FAILURE,
            }
        }
        Some(path) => match File::open(path).map(|namespace| setns(namespace, CloneFlags::CLONE_NEWNET)) {
            Ok(Ok(())) => ExitCode::SUCCESS,
            _ => ExitCode::FAILURE,
        },
        None => ExitCode::from(2),
    }
}
