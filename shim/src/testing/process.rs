//! A process of the scripted guest, which does what its first argument says (see [`super::agent`]).

use serde::{Deserialize, Serialize};

use super::agent::{Answer, SIGKILL, not_found};

/// A process in the scripted guest.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Process {
    pub(super) args: Vec<String>,
    pub(super) running: bool,
    pub(super) frozen: bool,
    pub(super) exit: Option<i32>,
    pub(super) input: Vec<u8>,
    pub(super) input_closed: bool,
    pub(super) output: Vec<u8>,
}

impl Process {
    pub(super) fn new(args: &[String]) -> Self {
        Process {
            args: args.to_vec(),
            running: false,
            frozen: false,
            exit: None,
            input: Vec::new(),
            input_closed: false,
            output: Vec::new(),
        }
    }

    pub(super) fn start(&mut self) -> Answer<()> {
        let args: Vec<&str> = self.args.iter().map(String::as_str).collect();
        match args[..] {
            ["missing", ..] => {
                return Err(not_found("exec: \"missing\": executable file not found in $PATH".into()));
            }
            ["exit", status] => self.exit = status.parse().ok(),
            ["say", text] => self.output.extend_from_slice(text.as_bytes()),
            _ => {}
        }
        self.running = true;
        self.proceed();
        Ok(())
    }

    /// What `cat` does with its input so far.
    pub(super) fn proceed(&mut self) {
        if self.args.first().is_some_and(|arg| arg == "cat") && self.running && !self.frozen {
            let input = std::mem::take(&mut self.input);
            self.output.extend(input);
            if self.input_closed && self.exit.is_none() {
                self.exit = Some(0);
            }
        }
    }

    /// At most so much of what it wrote; empty at the end. None while there is nothing.
    pub(super) fn take_output(&mut self, most: usize) -> Option<Vec<u8>> {
        if self.args.first().is_some_and(|arg| arg == "flood") && self.exit.is_none() {
            return Some(vec![b'x'; most]);
        }
        let some = self.output.len().min(most);
        (some > 0 || self.exit.is_some()).then(|| self.output.drain(..some).collect())
    }

    pub(super) fn signal(&mut self, signal: u32) {
        let deaf = self.args.first().is_some_and(|arg| arg == "deaf");
        if self.exit.is_none() && (signal == SIGKILL || !deaf) {
            self.exit = i32::try_from(128 + signal).ok();
        }
    }

    pub(super) fn hangs(&self) -> bool {
        self.args.first().is_some_and(|arg| arg == "hang")
    }
}
