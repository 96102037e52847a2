//! The commands of the README: `cargo xtask demo | test | install | shell` and their friends, one file each.

mod bench;
mod build;
mod check;
mod clients;
mod conformance;
mod demo;
mod install;
mod licences;
mod nested;
mod packages;
mod shell;
mod test;
mod tidy;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use workspace::Workspace;

#[derive(Debug, Parser)]
#[command(about = "Builds, installs, shows and tests io.containerd.microvm.v1")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs a pod, checkpoints it and restores it as a new pod, in a test host of its own
    Demo(demo::Demo),
    /// Runs all checks and tests
    Test(test::Test),
    /// Runs end-to-end tests where KVM works: in a virtual machine, emulated as a whole
    Nested(nested::Nested),
    /// Lays down what a node needs, or takes it away
    Install(install::Install),
    /// Gives a prompt in a test host with containerd and the shim
    Shell(shell::Shell),
    /// Measures microvm beside runc, in a test host of its own
    Bench(bench::Bench),
    /// Builds the static release programs
    Build,
    /// Checks formatting, lints, documentation, licences and tidiness
    Check,
    /// Writes docs/conformance.md from the last runs of other people's suites
    Conformance,
    /// Checks the habits that no other tool knows
    Tidy,
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    let workspace = Workspace::find()?;
    match command {
        Command::Demo(demo) => demo::run(&workspace, &demo),
        Command::Test(test) => test::run(&workspace, &test),
        Command::Nested(nested) => nested::run(&workspace, &nested),
        Command::Install(install) => install::run(&workspace, &install).map(|()| ExitCode::SUCCESS),
        Command::Shell(shell) => shell::run(&workspace, &shell),
        Command::Bench(bench) => bench::run(&workspace, &bench),
        Command::Build => build::run(&workspace).map(|_| ExitCode::SUCCESS),
        Command::Check => check::run(&workspace).map(|()| ExitCode::SUCCESS),
        Command::Conformance => conformance::run(&workspace).map(|()| ExitCode::SUCCESS),
        Command::Tidy => tidy::run(&workspace).map(|()| ExitCode::SUCCESS),
    }
}
