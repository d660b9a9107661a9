//! Why an initiator could not connect or discover.

use crate::link::Broken;
use crate::wire::auth::Reason;
use crate::wire::status::StatusCode;
use device::Status;
use std::fmt;
use std::net::SocketAddr;

/// What went wrong, for control flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// Nobody listens there, or nobody can be reached.
    Unreachable,
    /// The other end speaks something else, or not as the specification says.
    Protocol,
    /// The target refuses the connection.
    Refused(StatusCode),
    /// The other end does not answer in time.
    TimedOut,
    /// What was asked for cannot be: a name or a setting.
    Invalid,
    /// The connection was lost on the way.
    Gone,
    /// The ends do not trust each other.
    Unauthenticated(Unauthenticated),
}

/// Why the ends do not trust each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unauthenticated {
    /// The target asks for a proof, and this host has no key.
    NoKey,
    /// This host has a key, and the target does not ask for a proof.
    NotAsked,
    /// The target asks for more than a proof: TLS.
    Unsupported,
    /// The target has not let this host in.
    Refused(Reason),
    /// The target let this host in without proving that it has the key.
    Impostor,
    /// The target's messages make no sense.
    Nonsense,
}

/// A failure to connect or to discover.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    address: SocketAddr,
    subnqn: String,
    context: &'static str,
    source: Option<std::io::Error>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, address: SocketAddr, subnqn: &str, context: &'static str) -> Self {
        Self { kind, address, subnqn: subnqn.to_owned(), context, source: None }
    }

    pub(crate) fn with_source(mut self, source: std::io::Error) -> Self {
        self.source = Some(source);
        self
    }

    /// What went wrong, for control flow.
    pub const fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl ErrorKind {
    pub(crate) const fn of_broken(broken: Broken) -> Self {
        match broken {
            Broken::Lost(_) | Broken::Closed => Self::Gone,
            Broken::Violation(_) | Broken::Terminated(_) => Self::Protocol,
            Broken::TimedOut => Self::TimedOut,
        }
    }

    pub(crate) const fn of_status(status: Status) -> Self {
        match status {
            Status::TimedOut => Self::TimedOut,
            Status::Gone => Self::Gone,
            _ => Self::Protocol,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, subnqn, context, .. } = self;
        write!(f, "{subnqn} at {address}: {context}: ")?;
        match self.kind {
            ErrorKind::Unreachable => {
                f.write_str("cannot connect; is the target running and the address right?")
            }
            ErrorKind::Protocol => {
                f.write_str("the other end does not speak NVMe/TCP as the specification says")
            }
            ErrorKind::Refused(code) => write!(f, "refused by the target: {code}"),
            ErrorKind::TimedOut => f.write_str("no answer in time; is the network up and the target alive?"),
            ErrorKind::Invalid => f.write_str("this cannot be asked for; check the name and the settings"),
            ErrorKind::Gone => f.write_str("the connection was lost; try again"),
            ErrorKind::Unauthenticated(why) => why.fmt(f),
        }
    }
}

impl fmt::Display for Unauthenticated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoKey => f.write_str(
                "the target asks for a key, and this host has none; give it the secret of the cluster, or for a volume the key that was made for this host's name",
            ),
            Self::NotAsked => f.write_str(
                "this host has a key, but the target asks for none and is not trusted; start the target with the same secret",
            ),
            Self::Unsupported => f.write_str("the target asks for TLS, which is not spoken here; switch it off there"),
            Self::Refused(reason) => write!(
                f,
                "the target does not accept this host's key ({reason}); it has to be the secret of that cluster, or for a volume the key that was made for this host's name",
            ),
            Self::Impostor => f.write_str(
                "the target did not prove that it has the key, and is not trusted; check the address, and the secret on both ends",
            ),
            Self::Nonsense => f.write_str("the target does not speak DH-HMAC-CHAP as the specification says"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| source as _)
    }
}
