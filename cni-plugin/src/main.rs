//! The chained CNI plugin `weir-cni`: environment and stdin in, one write to stdout and an exit status out.

use std::io;
use std::os::fd::AsFd as _;
use std::panic;
use std::process::ExitCode;

use nix::errno::Errno;
use weir_cni::failure::Failure;
use weir_cni::{ABOUT, stdin};

fn main() -> ExitCode {
    panic::set_hook(Box::new(|info| {
        eprintln!("weir-cni: {info}");
        write_stdout(&Failure::Internal(info.to_string().replace('\n', " ")).to_json(None));
        // Before the abort, so that the runtime sees our error and not a signal.
        std::process::exit(1);
    }));
    let input = stdin::read_all(stdin::MAX_WAIT);
    if std::env::var_os("CNI_COMMAND").is_none_or(|command| command.is_empty())
        && input.as_ref().is_ok_and(Vec::is_empty)
    {
        eprintln!("{ABOUT}");
        return ExitCode::SUCCESS;
    }
    let outcome = weir_cni::run(&|name| std::env::var_os(name), input);
    if write_stdout(&outcome.stdout) { ExitCode::from(outcome.exit) } else { ExitCode::FAILURE }
}

/// Writes past the line buffer of the standard library, which would split the answer at its last newline.
fn write_stdout(mut bytes: &[u8]) -> bool {
    let stdout = io::stdout();
    while !bytes.is_empty() {
        match nix::unistd::write(stdout.as_fd(), bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::EINTR) => {}
            Err(error) => {
                eprintln!("weir-cni: stdout: {error}");
                return false;
            }
        }
    }
    true
}
