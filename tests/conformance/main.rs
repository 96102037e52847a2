//! Runs other people's test suites against our runtime, in a test host. Called by `cargo xtask test --only critest`.

mod critest;
mod excused;
mod images;
mod report;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use tests::host::{self, Payload};

#[derive(Debug, Parser)]
struct Arguments {
    /// The workspace's target folder
    #[arg(long, default_value = "target")]
    target: PathBuf,
    /// Folder laid over the test host's tree: the suite's programs, and what `cargo xtask install --root` made
    #[arg(long)]
    installed: Option<PathBuf>,
    /// Runtime handler: microvm or runc
    #[arg(long, default_value = "microvm")]
    handler: String,
    /// Set in the test host
    #[arg(long, hide = true)]
    inside: bool,
    /// Run only specs whose full name matches this regular expression
    filter: Option<String>,
}

fn main() -> ExitCode {
    host::main(|| run(Arguments::parse()))
}

fn run(arguments: Arguments) -> Result<i32> {
    let suite = critest::Suite { handler: arguments.handler.clone(), filter: arguments.filter.clone() };
    if arguments.inside {
        return critest::run(&suite);
    }
    let mut inside: Vec<OsString> = vec!["--inside".into(), "--handler".into(), arguments.handler.into()];
    inside.extend(arguments.filter.map(OsString::from));
    let target = std::path::absolute(&arguments.target)?;
    let payload = Payload {
        name: suite.name(),
        arguments: inside,
        installed: arguments.installed,
        ..Payload::default()
    };
    host::run(&target, &payload)
}
