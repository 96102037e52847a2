//! The shim's one error type. Its kinds become gRPC codes at the edge (`service`), its text is written where
//! the failure happens, and the chain of causes is printed once, by [`Error::chain`].

use std::error::Error as StdError;
use std::fmt;

/// Result of everything in the shim that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a failure means to the caller. The mapping to gRPC codes is in [`Kind::code`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The named thing does not exist (any more).
    NotFound,
    /// The named thing exists already.
    AlreadyExists,
    /// The request, config, snapshot or image is malformed.
    InvalidArgument,
    /// The request is legal, but not in this state.
    FailedPrecondition,
    /// A wait came to its deadline.
    DeadlineExceeded,
    /// The other side (guest, VMM, daemon) is gone or does not answer.
    Unavailable,
    /// No space, memory or other resource left.
    ResourceExhausted,
    /// This runtime does not do that.
    Unimplemented,
    /// Anything else: a system call or a child process failed.
    Internal,
}

impl Kind {
    /// The gRPC code that containerd sees.
    #[must_use]
    pub fn code(self) -> ttrpc::Code {
        match self {
            Kind::NotFound => ttrpc::Code::NOT_FOUND,
            Kind::AlreadyExists => ttrpc::Code::ALREADY_EXISTS,
            Kind::InvalidArgument => ttrpc::Code::INVALID_ARGUMENT,
            Kind::FailedPrecondition => ttrpc::Code::FAILED_PRECONDITION,
            Kind::DeadlineExceeded => ttrpc::Code::DEADLINE_EXCEEDED,
            Kind::Unavailable => ttrpc::Code::UNAVAILABLE,
            Kind::ResourceExhausted => ttrpc::Code::RESOURCE_EXHAUSTED,
            Kind::Unimplemented => ttrpc::Code::UNIMPLEMENTED,
            Kind::Internal => ttrpc::Code::INTERNAL,
        }
    }
}

/// A failure: what was tried on which object, why it failed, and which cleanup steps failed after it.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    message: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
    cleanup: Vec<Error>,
}

impl Error {
    /// A failure without a cause of its own.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None, cleanup: Vec::new() }
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

    /// Attaches failures of the cleanup that followed; the first cause stays the message.
    #[must_use]
    pub fn with_cleanup(mut self, failures: Vec<Error>) -> Self {
        self.cleanup.extend(failures);
        self
    }

    /// One result of what undoes several things to the end whatever fails.
    ///
    /// # Errors
    /// The first failure, with the others as its cleanup.
    pub fn first_of(mut failures: Vec<Error>) -> Result<()> {
        if failures.is_empty() {
            return Ok(());
        }
        Err(failures.remove(0).with_cleanup(failures))
    }

    /// The whole chain of causes in one line, outermost first.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.message.clone();
        let mut cause = self.source();
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        for failure in &self.cleanup {
            text.push_str("; then cleanup failed: ");
            text.push_str(&failure.chain());
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

/// Adds what was tried to a foreign error.
pub trait Context<T> {
    /// Wraps the error as [`Kind::Internal`] (kept if it is an [`Error`] already) under `message`.
    fn context(self, message: impl FnOnce() -> String) -> Result<T>;
    /// Wraps the error as `kind` under `message`.
    fn kind(self, kind: Kind, message: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<Box<dyn StdError + Send + Sync>>> Context<T> for std::result::Result<T, E> {
    fn context(self, message: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| {
            let source = source.into();
            let kind = source.downcast_ref::<Error>().map_or(Kind::Internal, Error::kind);
            Error { source: Some(source), ..Error::new(kind, message()) }
        })
    }

    fn kind(self, kind: Kind, message: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::caused(kind, message(), source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_names_every_cause_and_every_failed_cleanup_once() {
        let cause = std::io::Error::other("no such device");
        let error = Err::<(), _>(cause).context(|| "Could not open tap tap0".into()).unwrap_err();
        let error = Err::<(), _>(error).context(|| "Could not attach the network".into()).unwrap_err();
        let error = error.with_cleanup(vec![Error::new(Kind::Internal, "Could not remove qdisc")]);
        assert_eq!(
            error.chain(),
            "Could not attach the network: Could not open tap tap0: no such device; \
             then cleanup failed: Could not remove qdisc"
        );
    }

    #[test]
    fn context_keeps_the_kind_of_our_own_errors() {
        let error = Err::<(), _>(Error::new(Kind::NotFound, "x")).context(|| "y".into()).unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound);
    }
}
