//! How the agent's errors look on the wire, and how its work outlives a caller that goes away.

use ttrpc::Code;

use crate::error::{Error, Kind, Result};

/// An error with all its causes.
pub(super) fn status(error: &Error) -> ttrpc::Error {
    let code = match error.kind() {
        Kind::NotFound => Code::NOT_FOUND,
        Kind::AlreadyExists => Code::ALREADY_EXISTS,
        Kind::InvalidArgument => Code::INVALID_ARGUMENT,
        Kind::FailedPrecondition => Code::FAILED_PRECONDITION,
        Kind::DeadlineExceeded => Code::DEADLINE_EXCEEDED,
        Kind::Unimplemented => Code::UNIMPLEMENTED,
        Kind::Internal => Code::INTERNAL,
    };
    ttrpc::Error::RpcStatus(ttrpc::get_status(code, error.chain()))
}

/// Runs work that changes something: ttrpc drops a call's future when its connection is lost, and half of a
/// mount is worse than one that nobody hears of.
pub(super) async fn detached<T: Send + 'static>(
    what: &'static str,
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> ttrpc::Result<T> {
    let task = tokio::spawn(async move {
        let result = work.await;
        if let Err(error) = &result {
            log::info!("{what}: {}", error.chain());
        }
        result
    });
    match task.await {
        Ok(result) => result.map_err(|error| status(&error)),
        Err(error) => Err(status(&Error::caused(
            Kind::Internal,
            format!("The agent broke off its work on {what}"),
            error,
        ))),
    }
}

/// Answers a method that this agent does not have. The generated default says "not found", which a runtime takes for
/// a container that is gone.
pub(super) fn refuse<T>(method: &str, why: &str) -> ttrpc::Result<T> {
    Err(status(&Error::new(
        Kind::Unimplemented,
        format!("This guest agent does not implement {method}: {why}"),
    )))
}
