//! The two ways to the kernel, behind one set of calls.

use super::call::Raw;
use super::executor::Shared;
use super::ops::{Completion, Key};
use super::provided::Provided;
use super::ring::Ring;
use super::threads::Threads;
use super::{Config, Wait};
use std::io;
use std::rc::Rc;
use std::sync::Arc;

/// How a reactor reaches the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DriverChoice {
    /// `io_uring`; threads, with a warning, where it is forbidden or too old.
    #[default]
    Auto,
    /// `io_uring` or an error.
    Uring,
    /// `poll(2)` for sockets and a pool of threads for disks: slow, works everywhere.
    Threads,
}

pub(super) enum Driver {
    Ring(Box<Ring>),
    Threads(Threads),
}

impl Driver {
    pub(super) fn new(config: &Config, shared: &Arc<Shared>) -> io::Result<Self> {
        let choice = config.driver;
        let ring = match choice {
            DriverChoice::Threads => return Ok(Self::threads(shared)),
            DriverChoice::Auto | DriverChoice::Uring => Ring::new(config, Arc::clone(shared)),
        };
        match ring {
            Ok(ring) => Ok(Self::Ring(Box::new(ring))),
            Err(error) if choice == DriverChoice::Auto && is_forbidden(&error) => {
                tracing::warn!(
                    %error,
                    "io_uring cannot be used here: disks and sockets go through slow threads instead; `orlop preflight` \
                     says what to do"
                );
                Ok(Self::threads(shared))
            }
            Err(error) => Err(error),
        }
    }

    fn threads(shared: &Arc<Shared>) -> Self {
        Self::Threads(Threads::new(Arc::clone(shared)))
    }

    /// Whether sockets must be made non-blocking: the ring waits by itself, and only for sockets that may block.
    pub(super) fn wants_nonblocking(&self) -> bool {
        matches!(self, Self::Threads(_))
    }

    /// The buffers that multishot operations receive into; none where the driver or the kernel lacks those.
    pub(super) fn provided(&self) -> Option<&Rc<Provided>> {
        match self {
            Self::Ring(ring) => ring.provided(),
            Self::Threads(_) => None,
        }
    }

    /// Starts an operation; what `raw` points at stays until its completion.
    pub(super) fn start(&mut self, key: Key, raw: Raw) {
        match self {
            Self::Ring(ring) => ring.start(key, raw),
            Self::Threads(threads) => threads.start(key, raw),
        }
    }

    /// Asks for an early end of an operation; it completes all the same.
    pub(super) fn cancel(&mut self, key: Key) {
        match self {
            Self::Ring(ring) => ring.cancel(key),
            Self::Threads(threads) => threads.cancel(key),
        }
    }

    /// Waits as told, and appends what completed to `done`.
    pub(super) fn turn(&mut self, wait: Wait, done: &mut Vec<Completion>) {
        match self {
            Self::Ring(ring) => ring.turn(wait, done),
            Self::Threads(threads) => threads.turn(wait, done),
        }
    }
}

/// Forbidden (a sysctl, a seccomp filter, a limit on locked memory that the user's rings have reached), not there, or
/// without the set-up that we need (kernels before 6.1).
pub(crate) fn is_forbidden(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EPERM | libc::EACCES | libc::ENOSYS | libc::EINVAL | libc::ENOMEM)
    )
}
