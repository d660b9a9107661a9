//! Why a volume could not be attached or detached.

use std::fmt;
use std::io;

/// The class of an [`Error`], for code to match on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// What was asked for cannot be: a name too long, a size that is none.
    Invalid,
    /// The device is mounted or open.
    InUse,
    /// The right to mount or to make devices is missing.
    NotPermitted,
    /// The kernel lacks something.
    Unsupported,
    /// The process that holds descriptors does not answer.
    Holder,
    /// The operating system failed.
    Io,
}

/// An attach or detach that failed.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<io::Error>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    /// `doing` failed with what the operating system said.
    pub(crate) fn os(doing: impl fmt::Display, error: impl Into<io::Error>) -> Self {
        let error = error.into();
        let (kind, advice) = match error.kind() {
            io::ErrorKind::PermissionDenied => (ErrorKind::NotPermitted, ": run as root"),
            _ => (ErrorKind::Io, ""),
        };
        Self { kind, message: format!("{doing}: {error}{advice}"), source: Some(error) }
    }

    /// The class of this error.
    pub const fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        // The message says what it said.
        self.source.as_ref().and_then(std::error::Error::source)
    }
}
