//! Why a device could not be named or opened. Failures of single I/Os are [`crate::Status`].

use std::fmt;
use std::io;

/// The class of an [`Error`], for code to match on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The URI is malformed.
    Uri,
    /// There is no such file or disk.
    NotFound,
    /// Somebody else uses it: a mount, another process, a volume manager.
    InUse,
    /// It has a size that does not fit.
    WrongSize,
    /// This crate cannot open URIs of this scheme.
    Unsupported,
    /// The operating system failed.
    Io,
}

/// A device that could not be named or opened.
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

    pub(crate) fn with_source(kind: ErrorKind, message: impl Into<String>, source: io::Error) -> Self {
        Self { kind, message: message.into(), source: Some(source) }
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
        self.source.as_ref().map(|source| source as _)
    }
}
