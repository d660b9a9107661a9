//! What can go wrong with the store, told apart by what the caller must do.

use model::Kind;
use serde::{Deserialize, Serialize};
use std::{error, fmt};

/// A result of the store.
pub type Result<T> = std::result::Result<T, Error>;

/// What the caller must do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ErrorKind {
    /// The object is not as expected: read it again and decide anew. Nothing was done.
    Conflict,
    /// There is no such object. Nothing was done.
    NotFound,
    /// The object is not well formed. Nothing was done, and trying again does not help.
    Invalid,
    /// The store cannot be reached or used. Nothing was done; try again.
    Unavailable,
    /// The write may have happened, or may still happen: read the object from the store before acting on it.
    Unknown,
    /// What the store holds, or the answer of the store, cannot be understood.
    Corrupt,
    /// Another process has the store open.
    InUse,
}

impl ErrorKind {
    /// All kinds.
    pub const ALL: [Self; 7] = [
        Self::Conflict,
        Self::NotFound,
        Self::Invalid,
        Self::Unavailable,
        Self::Unknown,
        Self::Corrupt,
        Self::InUse,
    ];

    /// The name, as in JSON and in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Conflict => "Conflict",
            Self::NotFound => "NotFound",
            Self::Invalid => "Invalid",
            Self::Unavailable => "Unavailable",
            Self::Unknown => "Unknown",
            Self::Corrupt => "Corrupt",
            Self::InUse => "InUse",
        }
    }
}

/// A failure of the store.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    context: String,
    source: Option<Box<dyn error::Error + Send + Sync>>,
}

impl Error {
    /// A failure without a cause below it.
    pub fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Self { kind, context: context.into(), source: None }
    }

    /// A failure because of `source`.
    pub fn because(
        kind: ErrorKind,
        context: impl Into<String>,
        source: impl Into<Box<dyn error::Error + Send + Sync>>,
    ) -> Self {
        Self { kind, context: context.into(), source: Some(source.into()) }
    }

    /// The object is not as expected.
    pub fn conflict(kind: Kind, key: &str) -> Self {
        Self::new(ErrorKind::Conflict, format!("{kind}/{key} has changed meanwhile; read it again"))
    }

    /// There is no such object.
    pub fn not_found(kind: Kind, key: &str) -> Self {
        Self::new(ErrorKind::NotFound, format!("there is no {kind}/{key}"))
    }

    /// What the caller must do.
    pub const fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl fmt::Display for Error {
    /// The causes are part of the line: these errors are shown to people and sent over HTTP, where no chain survives.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)?;
        let mut source = self.source.as_deref().map(|source| source as &dyn error::Error);
        while let Some(cause) = source {
            write!(f, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}

impl error::Error for Error {}
