//! Whether polling for a moment before sleeping pays: decided by how long the last waits took.
//!
//! # Invariants
//! 1. Long waits switch polling off: an idle reactor sleeps at once (invariant 4 of the crate).
//! 2. Polls that find nothing switch it off for tens of waits, so that they cost a few percent at most.

use std::time::Duration;

/// How long to poll: about what a round trip takes between two ends that poll.
pub(super) const POLL: Duration = Duration::from_micros(12);
/// Polling is tried once waits are shorter than this on average. Falling asleep and waking up, which polling saves, is
/// two thirds of it.
const SHORT_NANOS: u64 = 30_000;
/// One long wait, or a poll in vain, counts for no more than this.
const LONG_NANOS: u64 = 16 * SHORT_NANOS;
const VAIN_NANOS: u64 = 4 * SHORT_NANOS;

/// The recent waits of one reactor.
#[derive(Debug)]
pub(super) struct Spin {
    on: bool,
    /// Moving average over about eight waits.
    average_nanos: u64,
}

impl Spin {
    pub(super) fn new() -> Self {
        Self { on: false, average_nanos: LONG_NANOS }
    }

    /// Whether to poll before the next sleep.
    pub(super) fn pays(&self) -> bool {
        self.on
    }

    /// Notes how long a wait took, from running out of work to the completion.
    pub(super) fn note(&mut self, wait: Duration) {
        let mut nanos = u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX).min(LONG_NANOS);
        if self.on && wait > POLL {
            nanos = nanos.max(VAIN_NANOS);
        }
        self.average_nanos = (self.average_nanos * 7 + nanos) / 8;
        let short = self.average_nanos < SHORT_NANOS;
        if self.on && !short {
            self.average_nanos = LONG_NANOS;
        }
        self.on = short;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of `count` waits of `micros` are polled for.
    fn polls(spin: &mut Spin, micros: u64, count: u32) -> u32 {
        (0..count)
            .map(|_| {
                let polled = u32::from(spin.pays());
                spin.note(Duration::from_micros(micros));
                polled
            })
            .sum()
    }

    #[test]
    fn short_waits_switch_polling_on_and_a_long_one_off() {
        let mut spin = Spin::new();
        assert!(polls(&mut spin, 5, 1000) > 900);
        spin.note(Duration::from_secs(1));
        assert!(!spin.pays());
    }

    #[test]
    fn polls_in_vain_are_rare() {
        let mut spin = Spin::new();
        polls(&mut spin, 5, 1000);
        assert!(polls(&mut spin, 20, 10_000) < 600);
        assert_eq!(polls(&mut spin, 100, 10_000), 0);
    }
}
