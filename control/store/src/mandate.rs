//! Whether this process may still write, where several could: asked of its own clock, beside the compare-and-swap.
//!
//! 1. A mandate ends by this process's monotonic clock, at the time that was told last: who was stopped finds it over
//!    when it wakes, without asking anybody.
//! 2. It is asked before every write, after whatever takes time. What is between the question and the socket is covered
//!    by the compare-and-swap (docs/decisions/0013).

use crate::{Error, ErrorKind, Result};
use tokio::{sync::watch, time::Instant};

/// The right to decide and to write, where several processes could: it ends at a time that is moved on while it lasts,
/// and begins again when that time is in the future again. The default lasts for ever: nobody else can lead.
#[derive(Clone, Debug, Default)]
pub struct Mandate(Option<watch::Receiver<Instant>>);

impl Mandate {
    /// A mandate until the time that is told last.
    pub const fn until(until: watch::Receiver<Instant>) -> Self {
        Self(Some(until))
    }

    /// Whether this process may write now.
    pub fn holds(&self) -> bool {
        self.0.as_ref().is_none_or(|until| Instant::now() < *until.borrow())
    }

    /// Asked before every write, after whatever takes time: a process that was stopped meanwhile must not go on with
    /// what it had decided.
    ///
    /// # Errors
    /// `Unavailable` if this process leads no more.
    pub fn ensure(&self) -> Result<()> {
        if self.holds() {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Unavailable, "this process does not lead any more"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_mandate_lasts_as_long_as_it_is_told() {
        Mandate::default().ensure().expect("nobody else can lead");
        let hour = Duration::from_secs(3600);
        let (until, told) = watch::channel(Instant::now());
        let mandate = Mandate::until(told);
        let refused = mandate.ensure().expect_err("it is over at this moment");
        assert_eq!(refused.kind(), ErrorKind::Unavailable);
        until.send_replace(Instant::now() + hour);
        assert!(mandate.clone().holds() && mandate.ensure().is_ok());
        // The renewal has ended: what it told last counts.
        drop(until);
        assert!(mandate.holds());
        let (_, told) = watch::channel(Instant::now());
        assert!(!Mandate::until(told).holds());
    }
}
