//! What a connection mostly receives, which decides how: small messages through a multishot operation and the shared
//! buffers, large payloads one by one, straight into their own memory.
//!
//! # Invariants
//! 1. Changing over costs a cancellation; it is paid once per run of traffic of one kind, not once per message.

/// A large payload saves as much by its own path as so many small messages by theirs: a copy of tens of KiB against a
/// submission each.
const LARGE: u8 = 8;
/// Two large payloads close to each other are a run.
const BULK: u8 = 2 * LARGE - 2;
/// Runs that lasted long are remembered for no more than so many small messages.
const MAX: u8 = 4 * LARGE;

/// The recent messages of one connection.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    score: u8,
    bulk: bool,
}

impl Traffic {
    /// Notes a payload that is worth a path of its own.
    pub(super) fn large(&mut self) {
        self.score = (self.score + LARGE).min(MAX);
        self.bulk |= self.score >= BULK;
    }

    /// Notes an arrival of anything else.
    pub(super) fn small(&mut self) {
        self.score = self.score.saturating_sub(1);
        self.bulk &= self.score > 0;
    }

    /// Whether large payloads dominate.
    pub(super) fn is_bulk(&self) -> bool {
        self.bulk
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_of_large_payloads_changes_over_once_and_back_once() {
        let mut traffic = Traffic::default();
        let mut changes = 0;
        let mut note = |small: bool| {
            let before = traffic.is_bulk();
            if small {
                traffic.small();
            } else {
                traffic.large();
            }
            changes += u32::from(before != traffic.is_bulk());
        };
        // Each payload has a header of its own.
        for _ in 0..1000 {
            note(true);
            note(false);
        }
        for _ in 0..1000 {
            note(true);
        }
        assert_eq!(changes, 2);
    }

    #[test]
    fn a_rare_large_payload_changes_nothing() {
        let mut traffic = Traffic::default();
        for round in 0..1000 {
            if round % 16 == 0 {
                traffic.large();
            } else {
                traffic.small();
            }
            assert!(!traffic.is_bulk());
        }
    }
}
