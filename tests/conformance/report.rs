//! What a suite's run found, for a person, for `cargo xtask test` and for `docs/conformance.md`. Called by the suites.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

/// One run of a suite. `xtask/src/conformance.rs` reads it back.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) suite: String,
    pub(crate) version: String,
    pub(crate) containerd: String,
    pub(crate) handler: String,
    pub(crate) seconds: u64,
    pub(crate) specs: Vec<Spec>,
}

/// One spec of a suite.
#[derive(Debug, Serialize)]
pub(crate) struct Spec {
    pub(crate) name: String,
    pub(crate) state: State,
    pub(crate) seconds: u64,
    /// Why it was skipped or how it failed.
    pub(crate) reason: String,
    /// The file that refuses what it wants.
    pub(crate) refused_by: String,
}

/// How it went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    Passed,
    Failed,
    Skipped,
}

impl Report {
    pub(crate) fn failed(&self) -> usize {
        self.count(State::Failed)
    }

    fn count(&self, state: State) -> usize {
        self.specs.iter().filter(|spec| spec.state == state).count()
    }

    /// Prints each spec as Rust's test runner prints a test, and the closing line.
    pub(crate) fn print(&self) {
        let Report { suite, version, containerd, handler, .. } = self;
        println!(
            "running {} specs of {suite} {version} on containerd {containerd} with {handler}",
            self.specs.len()
        );
        for Spec { name, state, seconds, reason, .. } in &self.specs {
            match state {
                State::Passed => println!("test {name} ... ok ({seconds} s)"),
                State::Failed => println!("test {name} ... FAILED ({seconds} s)\n    {reason}"),
                State::Skipped => println!("test {name} ... skipped: {reason}"),
            }
        }
        println!(
            "\ntest result: {}. {} passed; {} failed; {} ignored; finished in {} s",
            if self.failed() == 0 { "ok" } else { "FAILED" },
            self.count(State::Passed),
            self.failed(),
            self.count(State::Skipped),
            self.seconds
        );
    }

    /// Writes it as JSON.
    pub(crate) fn write(&self, to: &Path) -> Result<()> {
        fs::write(to, serde_json::to_vec_pretty(self)?)
            .with_context(|| format!("Could not write {}", to.display()))
    }
}
