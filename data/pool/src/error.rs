//! Errors of whole pools and replicas; errors of single I/Os are [`device::Status`].

use device::Status;
use std::fmt;

/// What kind of thing went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The device carries no Orlop pool.
    NotAPool,
    /// The device carries something already; nothing was changed.
    Occupied,
    /// The device is too small.
    TooSmall,
    /// Written by a newer version of Orlop.
    Newer,
    /// Metadata is torn or rotten beyond what a crash can do.
    Damaged,
    /// The device failed.
    Io,
    /// Exists already, with other properties.
    Exists,
    /// No such object.
    NotFound,
    /// No space is left.
    NoSpace,
    /// Malformed arguments.
    Invalid,
    /// The pool or replica has been closed or deleted.
    Gone,
}

/// An error of a pool: what happened to which object, and what to do.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    context: String,
    source: Option<Status>,
}

impl Error {
    /// An error of `kind`, described by `context`.
    pub(crate) fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Self { kind, context: context.into(), source: None }
    }

    /// The device or an operation failed with `status` while doing `context`.
    pub(crate) fn io(context: impl Into<String>, status: Status) -> Self {
        let kind = match status {
            Status::NoSpace => ErrorKind::NoSpace,
            Status::Gone => ErrorKind::Gone,
            _ => ErrorKind::Io,
        };
        Self { kind, context: context.into(), source: Some(status) }
    }

    /// What kind of thing went wrong.
    pub const fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The status of the I/O that failed, if one did.
    pub const fn status(&self) -> Option<Status> {
        self.source
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|status| status as _)
    }
}
