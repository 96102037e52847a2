//! What the scripted VMM is told to do wrong, and what it was asked: files of the test.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::http::Request;

/// The script of one VMM process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Script {
    /// What it says its version is.
    pub version: String,
    /// What goes wrong, and at which verb, like `vm.pause`.
    pub fault: Option<(String, Fault)>,
    /// File that gets a line for each request: its verb, and its body if there is one.
    pub log: PathBuf,
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fault {
    /// The verb is refused with status 500.
    Refuse,
    /// The connection ends in the middle of the answer.
    Half,
    /// There is no answer.
    Hang,
    /// The process ends.
    Die(When),
    /// The verb succeeds, and then the guest resets itself.
    Reboot,
}

/// When the process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum When {
    /// Before the verb is answered.
    Before,
    /// Right after it was.
    After,
}

impl Script {
    /// Reads it; none if it can't be read.
    pub(super) fn read(path: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(path).ok()?).ok()
    }

    pub(super) fn fault(&self, verb: &str) -> Option<Fault> {
        self.fault.as_ref().filter(|(at, _)| at == verb).map(|(_, fault)| *fault)
    }

    pub(super) fn note(&self, request: &Request) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&self.log);
        let line = format!("{} {}", request.verb, request.body);
        if let Err(error) = log.and_then(|mut log| writeln!(log, "{}", line.trim_end())) {
            eprintln!("the scripted VMM can't write {}: {error}", self.log.display());
        }
    }
}
