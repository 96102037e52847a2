//! Runs the demo, a shell or a command in a test host. Called by `cargo xtask demo | shell`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use tests::host::{self, Payload};

#[derive(Debug, Parser)]
struct Arguments {
    /// The workspace's target folder
    #[arg(long, default_value = "target")]
    target: PathBuf,
    /// Folder made by `cargo xtask install --root`, laid over the test host's tree
    #[arg(long)]
    installed: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Gives a prompt in a test host with a running containerd
    Shell {
        /// Run this command instead of a prompt
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Shows the main job from beginning to end
    Demo {
        /// Runtime handler: microvm, or runc for what runc can do of it
        #[arg(long, default_value = "microvm")]
        handler: String,
    },
    #[command(hide = true, name = "inside-shell")]
    InsideShell { command: Vec<String> },
    #[command(hide = true, name = "inside-demo")]
    InsideDemo { handler: String },
}

fn main() -> ExitCode {
    host::main(run)
}

fn run() -> Result<i32> {
    let Arguments { target, installed, command } = Arguments::parse();
    let inside = |name: &str, arguments: Vec<OsString>| {
        let payload = Payload { name: name.to_owned(), arguments, installed, ..Payload::default() };
        host::run(&std::path::absolute(&target)?, &payload)
    };
    match command {
        Command::Shell { command } => {
            let mut arguments = vec!["inside-shell".into(), "--".into()];
            arguments.extend(command.into_iter().map(OsString::from));
            inside("shell", arguments)
        }
        Command::Demo { handler } => inside("demo", vec!["inside-demo".into(), handler.into()]),
        Command::InsideShell { command } => shell(&command),
        Command::InsideDemo { handler } => tests::demo::run(&handler).map(|()| 0),
    }
}

/// Inside: containerd, then the prompt or the command.
fn shell(command: &[String]) -> Result<i32> {
    let containerd = host::containerd::Containerd::start()?;
    tests::images::import("default", &tests::images::shared()?)?;
    let mut program = match command.split_first() {
        Some((program, rest)) => {
            let mut command = std::process::Command::new(program);
            command.args(rest);
            command
        }
        None => {
            println!("test host: containerd is running; its log and the shims' are in {}", host::LOGS);
            let mut command = std::process::Command::new("script");
            command.args(["--quiet", "--command", "bash", "/dev/null"]);
            command
        }
    };
    let status = program.status()?;
    containerd.stop()?;
    Ok(status.code().unwrap_or(1))
}
