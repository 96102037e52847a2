//! Parse and dispatch; nothing else.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    match arguments.next() {
        Some(mode) if mode == shim::share::virtiofsd::MODE => shim::share::virtiofsd::main(arguments),
        Some(mode) if mode == shim::stub::MODE => shim::stub::main(arguments),
        _ => ExitCode::FAILURE,
    }
}
