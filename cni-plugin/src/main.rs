//! The chained CNI plugin `weir-cni`: environment and stdin in, one write to stdout and an exit_code status out.

use std::io;
use std::os::fd::AsFd as _;
use std::panic;
use std::process::ExitCode;

use nix::errno::Errno;
use weir_cni::arena::Arena;
use weir_cni::error::CniError;
use weir_cni::{ABOUT, limits, stdin};

#[global_allocator]
static ARENA: Arena = Arena::new();

fn main() -> ExitCode {
    panic::set_hook(Box::new(|info| {
        eprintln!("weir-cni: {info}");
        write_stdout(&CniError::Internal(info.to_string().replace('\n', " ")).to_json(None));
        // Without this the runtime would see the signal of the abort instead of a CNI error.
        std::process::exit(1);
    }));
    limits::start();
    let input = stdin::read_all(stdin::MAX_WAIT);
    if std::env::var_os("CNI_COMMAND").is_none_or(|command| command.is_empty())
        && input.as_ref().is_ok_and(Vec::is_empty)
    {
        eprintln!("{ABOUT}");
        return ExitCode::SUCCESS;
    }
    let output = weir_cni::run(&|name| std::env::var_os(name), input);
    if write_stdout(&output.stdout) { ExitCode::from(output.exit_code) } else { ExitCode::FAILURE }
}

/// Writes to stdout without the line buffer of `std`, which would split the answer at its last newline.
fn write_stdout(mut bytes: &[u8]) -> bool {
    limits::begin_answer();
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
