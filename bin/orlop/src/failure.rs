//! What a command says when it cannot do what was asked: one line with object, cause and what to do, and an exit code.

use api::client;
use std::fmt;
use std::process::ExitCode;

/// Why a command failed, as far as a script wants to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// What was asked failed.
    Failed,
    /// The arguments make no sense.
    Usage,
    /// The API did not answer.
    Unreachable,
    /// There is nothing of that name.
    NotFound,
    /// It exists already, or is in use.
    Conflict,
}

/// The exit codes, for `--help`.
pub(crate) const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed, 2 wrong arguments, 3 the API cannot be reached, \
                                     4 nothing of that name, 5 it exists or is in use.";

/// One line for a person, and a code for a script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    kind: Kind,
    what: String,
    hint: Option<String>,
}

/// What a command returns.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    /// A failure that names the object and the cause.
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Self { kind: Kind::Failed, what: what.into(), hint: None }
    }

    /// The same with another exit code.
    #[must_use]
    pub(crate) fn kind(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self
    }

    /// Adds what to do.
    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Whether it is of this kind.
    #[cfg(test)]
    pub(crate) fn is(&self, kind: Kind) -> bool {
        self.kind == kind
    }

    /// The exit code of the process.
    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self.kind {
            Kind::Failed => 1,
            Kind::Usage => 2,
            Kind::Unreachable => 3,
            Kind::NotFound => 4,
            Kind::Conflict => 5,
        })
    }
}

impl fmt::Display for Failure {
    /// One line, whatever the parts contain.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let one_line = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        f.write_str(&one_line(&self.what))?;
        if let Some(hint) = &self.hint {
            write!(f, "; {}", one_line(hint))?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

impl From<client::Error> for Failure {
    fn from(error: client::Error) -> Self {
        let failure = Self::new(error.detail).kind(match error.kind {
            client::ErrorKind::Usage => Kind::Usage,
            client::ErrorKind::Unreachable => Kind::Unreachable,
            client::ErrorKind::Refused(status) => match status {
                404 => Kind::NotFound,
                409 | 412 => Kind::Conflict,
                _ => Kind::Failed,
            },
            client::ErrorKind::Garbled => Kind::Failed,
        });
        if error.hint.is_empty() { failure } else { failure.hint(error.hint) }
    }
}

/// Turns an error of the system into a failure that names the object.
pub(crate) trait OrFail<T> {
    /// `what` names the object and what was tried, such as `cannot read /x`.
    fn or_fail(self, what: impl FnOnce() -> String) -> Outcome<T>;
}

impl<T, E: fmt::Display> OrFail<T> for Result<T, E> {
    fn or_fail(self, what: impl FnOnce() -> String) -> Outcome<T> {
        self.map_err(|error| Failure::new(format!("{}: {error}", what())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_one_line_with_its_hint() {
        let failure = Failure::new("cannot open\n  \"x\"").hint("check\nthe name");
        assert_eq!(failure.to_string(), "cannot open \"x\"; check the name");
    }
}
