//! The guest's side of the streams: the agent, or a script in tests.

use std::fmt::Debug;

use async_trait::async_trait;

use crate::error::Result;
use crate::guest::Agent;

/// A stream that a process writes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Standard output; all output with a terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

/// The streams of one process as seen from outside of the guest.
#[async_trait]
pub trait Remote: Send + Sync + Debug + 'static {
    /// Waits for output and answers 1 to `most` bytes; none at its end.
    async fn read(&self, output: Output, most: u32) -> Result<Vec<u8>>;
    /// Writes to stdin and answers how many bytes were taken, at least one.
    async fn write(&self, data: Vec<u8>) -> Result<usize>;
    /// Ends stdin.
    async fn close_stdin(&self) -> Result<()>;
}

/// A process in the guest.
#[derive(Debug)]
pub(super) struct Process {
    agent: Agent,
    container: String,
    exec: String,
}

impl Process {
    pub(super) fn new(agent: &Agent, container: &str, exec: &str) -> Self {
        Process { agent: agent.clone(), container: container.to_owned(), exec: exec.to_owned() }
    }
}

#[async_trait]
impl Remote for Process {
    async fn read(&self, output: Output, most: u32) -> Result<Vec<u8>> {
        match output {
            Output::Stdout => self.agent.read_stdout(&self.container, &self.exec, most).await,
            Output::Stderr => self.agent.read_stderr(&self.container, &self.exec, most).await,
        }
    }

    async fn write(&self, data: Vec<u8>) -> Result<usize> {
        self.agent.write_stdin(&self.container, &self.exec, data).await
    }

    async fn close_stdin(&self) -> Result<()> {
        self.agent.close_stdin(&self.container, &self.exec).await
    }
}
