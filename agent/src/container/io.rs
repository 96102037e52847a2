//! The standard streams of a container's processes, for the stream RPCs.

use super::Container;
use super::process::Found;
use crate::error::Result;

impl Container {
    /// Writes all of `data` to the process's standard input; waits while its pipe is full. No deadline.
    ///
    /// # Errors
    /// `Kind::FailedPrecondition` if it is closed.
    pub async fn write_stdin(&self, exec_id: &str, data: &[u8]) -> Result<()> {
        self.running(exec_id)?.streams.stdin.write(data).await
    }

    /// Closes the standard input once the write in flight, if any, is done. At once; without effect on a terminal.
    ///
    /// # Errors
    /// `Kind::NotFound` for an unknown process.
    pub fn close_stdin(&self, exec_id: &str) -> Result<()> {
        if let Found::Process(process) = self.find(exec_id)? {
            process.streams.stdin.close();
        }
        Ok(())
    }

    /// Waits for output and answers at most `len` bytes and 32 KiB of it; empty at its end. No deadline. Dropping
    /// the call loses nothing. With a terminal all output is here.
    ///
    /// # Errors
    /// `Kind::NotFound` for an unknown process.
    pub async fn read_stdout(&self, exec_id: &str, len: usize) -> Result<Vec<u8>> {
        match self.find(exec_id)? {
            Found::Process(process) => self.told(exec_id, process.streams.stdout.read(len).await),
            Found::Code(_) => Ok(Vec::new()),
        }
    }

    /// As [`Container::read_stdout`]; empty at once with a terminal.
    ///
    /// # Errors
    /// `Kind::NotFound` for an unknown process.
    pub async fn read_stderr(&self, exec_id: &str, len: usize) -> Result<Vec<u8>> {
        match self.find(exec_id)? {
            Found::Process(process) => self.told(exec_id, process.streams.stderr.read(len).await),
            Found::Code(_) => Ok(Vec::new()),
        }
    }

    /// Sets the size of a process's terminal.
    ///
    /// # Errors
    /// `Kind::FailedPrecondition` if it has none.
    pub fn resize(&self, exec_id: &str, rows: u16, columns: u16) -> Result<()> {
        self.running(exec_id)?.streams.resize(rows, columns)
    }

    fn told(&self, exec_id: &str, read: Result<Vec<u8>>) -> Result<Vec<u8>> {
        if read.as_ref().is_ok_and(Vec::is_empty) {
            self.execs().retire(exec_id);
        }
        read
    }
}
