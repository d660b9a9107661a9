//! What the API refuses, as the specification of CSI wants it said.

use api::client::{Error, ErrorKind};
use tonic::{Code, Status};

/// The request makes no sense.
pub(crate) fn invalid(what: impl Into<String>) -> Status {
    Status::invalid_argument(what)
}

/// A field that has to be there is not.
pub(crate) fn missing(field: &str) -> Status {
    Status::invalid_argument(format!("{field} is missing from the request"))
}

/// What the API said no to.
pub(crate) fn of_api(error: &Error) -> Status {
    Status::new(code(error), error.to_string())
}

/// The code by which an orchestrator decides whether to try again.
fn code(error: &Error) -> Code {
    let no_room = ["too-few-nodes", "too-few-domains", "too-little-space", "not-there", "node-full"];
    let problem = error.problem.strip_prefix("urn:orlop:problem:").unwrap_or_default();
    match error.kind {
        ErrorKind::Usage => Code::InvalidArgument,
        ErrorKind::Unreachable => Code::Unavailable,
        ErrorKind::Garbled => Code::Internal,
        ErrorKind::Refused(_) if no_room.contains(&problem) => Code::ResourceExhausted,
        ErrorKind::Refused(status) => match status {
            400 | 422 => Code::InvalidArgument,
            404 => Code::NotFound,
            409 => Code::FailedPrecondition,
            412 => Code::Aborted,
            503 | 504 => Code::Unavailable,
            _ => Code::Internal,
        },
    }
}
