//! `microvmctl`, the operator's command for `io.containerd.microvm.v1`: whether pods can start here, and the node's
//! snapshots and templates. Run by people and scripts; the shim never calls it.
//!
//! Exit status: 0 done, 1 failed or the doctor found something broken, 2 wrong usage.

mod cli;
mod doctor;
mod snapshot;
mod table;
mod template;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use shim::Config;
use shim::config::Source;

use cli::{Cli, Verb};

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("microvmctl: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

/// Does it; whether all is well.
fn run(cli: &Cli) -> Result<bool> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("Could not start a runtime")?;
    match &cli.verb {
        Verb::Config => {
            print!("{}", shim::config::template());
            Ok(true)
        }
        Verb::Doctor => runtime.block_on(doctor::run(cli)),
        Verb::Snapshot(verb) => {
            let config = config(cli)?;
            runtime.block_on(snapshot::run(cli, &config, verb)).map(|()| true)
        }
        Verb::Template(verb) => template::run(cli, &config(cli)?, verb).map(|()| true),
    }
}

/// The node's config, or the one that the command line names.
fn config(cli: &Cli) -> Result<Config> {
    Ok(Config::load(&source(cli), [])?)
}

/// Where the config comes from.
fn source(cli: &Cli) -> Source {
    cli.config.clone().map_or(Source::Node, Source::Path)
}

/// The whole error in one line. The shim's errors know their causes, and what failed in the cleanup after them.
fn chain(error: &anyhow::Error) -> String {
    let mut parts = Vec::new();
    for cause in error.chain() {
        if let Some(ours) = cause.downcast_ref::<shim::Error>() {
            parts.push(ours.chain());
            break;
        }
        parts.push(cause.to_string());
    }
    parts.join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use shim::error::Kind;

    #[test]
    fn errors_show_their_context_causes_and_failed_cleanup_once() {
        let left = shim::Error::new(Kind::Internal, "Could not remove x");
        let cause = std::io::Error::other("disk is gone");
        let error = shim::Error::caused(Kind::Internal, "Could not write x", cause).with_cleanup(vec![left]);
        let error = anyhow::Error::new(error).context("Could not import a");
        let text =
            "Could not import a: Could not write x: disk is gone; then cleanup failed: Could not remove x";
        assert_eq!(chain(&error), text);
    }
}
