//! Arguments to a role or a one-shot command, nothing else.

use std::process::ExitCode;

fn main() -> ExitCode {
    holm::cli::main(std::env::args_os().skip(1))
}
