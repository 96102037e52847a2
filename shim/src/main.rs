//! Parse and dispatch; nothing else.

use std::process::ExitCode;

use shim::{bootstrap, sandbox, share::virtiofsd, stub, template};

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1).peekable();
    let mode = arguments.peek().and_then(|mode| mode.to_str()).unwrap_or_default().to_owned();
    match mode.as_str() {
        stub::MODE => stub::main(arguments.skip(1)),
        virtiofsd::MODE => virtiofsd::main(arguments.skip(1)),
        template::MODE => sandbox::template::main(arguments.skip(1)),
        bootstrap::SERVE => bootstrap::serve(arguments.skip(1)),
        _ => bootstrap::main(arguments),
    }
}
