//! How containerd and the shim's binary come together: `start` makes a server and answers its address, `delete` cleans
//! up after one, `-info` and `-v` describe the runtime. Called by `main`.

mod bundle;
mod daemon;
mod delete;
mod dialect;
mod flags;
mod info;
mod launch;
mod serve;
mod socket;
mod start;

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::process::ExitCode;

use crate::error::{Context, Error, Kind, Result};
use flags::{Action, Flags};

/// `argv[1]` that makes our binary the server of a sandbox.
pub const SERVE: &str = "serve";

/// Longest input that is read: options are small, and a pod's config may be part of them.
const MAX_INPUT: u64 = 4 << 20;

/// Does what containerd's command line says. `arguments` are those after the program's name.
pub fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    match Flags::parse(arguments).and_then(|flags| run(&flags)) {
        Ok(output) => {
            // The reply, in one piece and with nothing around it: containerd parses stdout and stderr together.
            let mut stdout = io::stdout().lock();
            match stdout.write_all(&output).and_then(|()| stdout.flush()) {
                Ok(()) => ExitCode::SUCCESS,
                Err(_) => ExitCode::FAILURE,
            }
        }
        Err(error) => {
            // containerd shows this text to the user. Nobody is left to tell if that fails too.
            let _ = io::stderr().lock().write_all(error.chain().as_bytes());
            ExitCode::FAILURE
        }
    }
}

/// Serves one sandbox until it ends. `arguments` are those after [`SERVE`].
pub fn serve(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    match Flags::parse(arguments).and_then(|flags| serve::run(&flags)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("The shim ends: {}", error.chain());
            ExitCode::FAILURE
        }
    }
}

fn run(flags: &Flags) -> Result<Vec<u8>> {
    match flags.action {
        Action::Version => Ok(info::version().into_bytes()),
        Action::Info => info::encoded(),
        Action::Start => start::start(flags, &input()?),
        Action::Delete => delete::delete(flags),
        Action::None => {
            let usage = "Usage: containerd-shim-microvm-v1 -namespace NAMESPACE -address SOCKET -id ID \
                         [-bundle PATH] [-debug] start|delete, or -info, or -v. containerd starts this program, people don't";
            Err(Error::new(Kind::InvalidArgument, usage))
        }
    }
}

fn input() -> Result<Vec<u8>> {
    let mut input = Vec::new();
    let read = io::stdin().lock().take(MAX_INPUT + 1).read_to_end(&mut input);
    read.context(|| "Could not read containerd's parameters from stdin".into())?;
    if input.len() as u64 > MAX_INPUT {
        let text = format!("containerd's parameters on stdin are larger than {MAX_INPUT} bytes");
        return Err(Error::new(Kind::InvalidArgument, text));
    }
    Ok(input)
}

#[cfg(test)]
mod tests;
