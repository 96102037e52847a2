//! The agent's error type. Its kinds become gRPC codes in the RPC layer; [`Error::chain`] prints the causes there.

use std::error::Error as StdError;
use std::fmt;

use serde::{Deserialize, Serialize};

/// Result of everything in the agent that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a failure means to the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// The named container, process or stream does not exist (any more).
    NotFound,
    /// The named thing exists already.
    AlreadyExists,
    /// The request cannot be carried out as it is written.
    InvalidArgument,
    /// The request is legal, but not in this state.
    FailedPrecondition,
    /// A wait came to its deadline.
    DeadlineExceeded,
    /// This agent does not do that.
    Unimplemented,
    /// Anything else: a system call or a child process failed.
    Internal,
}

/// A failure: what was tried on which object, and why it failed.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    message: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// A failure without a cause of its own.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    /// A failure caused by `source`.
    pub fn caused(
        kind: Kind,
        message: impl Into<String>,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        Self { source: Some(source.into()), ..Self::new(kind, message) }
    }

    /// What the failure means to the caller.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The message and all its causes in one line.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.message.clone();
        let mut cause = self.source();
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

/// Adds what was tried, and on which object, to a lower failure.
pub trait Context<T> {
    /// Wraps the failure as [`Kind::Internal`]; `message` is made only when there is one.
    ///
    /// # Errors
    /// Exactly when `self` is one.
    fn context<M: Into<String>>(self, message: impl FnOnce() -> M) -> Result<T>;
}

impl<T, E: Into<Box<dyn StdError + Send + Sync>>> Context<T> for std::result::Result<T, E> {
    fn context<M: Into<String>>(self, message: impl FnOnce() -> M) -> Result<T> {
        self.map_err(|source| Error::caused(Kind::Internal, message(), source))
    }
}
