//! End-to-end tests: a real containerd with our shim, in a test host of its own. Called by `cargo xtask test`.
//!
//! All tests share one test host, run one after another, and must each leave it as they found it.

mod checkpoint;
mod cri;
mod ctr;
mod faults;
mod harness;
mod images;
mod share;
mod support;
mod templates;
mod tree;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use tests::host::{self, Payload};

use harness::Test;

#[derive(Debug, Parser)]
struct Arguments {
    /// The workspace's target folder
    #[arg(long, default_value = "target")]
    target: PathBuf,
    /// Folder made by `cargo xtask install --root`, laid over the test host's tree
    #[arg(long)]
    installed: Option<PathBuf>,
    /// Runtime handler: microvm or runc
    #[arg(long, default_value = "microvm")]
    handler: String,
    /// Print the names of the tests
    #[arg(long)]
    list: bool,
    /// Set in the test host
    #[arg(long, hide = true)]
    inside: bool,
    /// Run only tests whose name contains this
    filter: Option<String>,
}

/// Every test, in the order in which they run.
fn all() -> Vec<Test> {
    [ctr::TESTS, cri::TESTS, images::TESTS, share::TESTS, checkpoint::TESTS, templates::TESTS, faults::TESTS]
        .concat()
}

fn main() -> ExitCode {
    host::dispatch();
    match run(Arguments::parse()) {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<i32> {
    let filter = arguments.filter.as_deref().unwrap_or_default();
    let tests: Vec<Test> = all().into_iter().filter(|test| test.name.contains(filter)).collect();
    if arguments.list {
        for test in tests {
            println!("{}: test", test.name);
        }
        return Ok(0);
    }
    if arguments.inside {
        return harness::run(&tests, &arguments.handler);
    }
    let mut inside: Vec<OsString> = vec!["--inside".into(), "--handler".into(), arguments.handler.into()];
    inside.extend(arguments.filter.map(OsString::from));
    let payload = Payload {
        name: "e2e".into(),
        arguments: inside,
        installed: arguments.installed,
        // Built beside this program: see `xtask/src/test.rs`.
        files: vec![(std::env::current_exe()?.with_file_name("intruder"), share::INTRUDER.into())],
        ..Payload::default()
    };
    host::run(&std::path::absolute(&arguments.target)?, &payload)
}
