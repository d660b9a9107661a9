//! What the demo has been promised: every piece of data that was acknowledged as safe, by its SHA-256.
//!
//! It lives in this process, outside the volume, so that nothing the volume loses can also lose the record of it.

use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// The SHA-256 of some bytes.
pub(super) type Sum = [u8; 32];

/// The sum of `bytes`.
pub(super) fn sum(bytes: &[u8]) -> Sum {
    Sha256::digest(bytes).into()
}

/// One promise.
#[derive(Clone, Copy, Debug)]
pub(super) struct Promise {
    pub(super) sum: Sum,
    pub(super) len: u64,
    /// When it was acknowledged.
    pub(super) at: Instant,
}

/// All promises, by the name of the piece: a path below the mount, or the place of a block.
#[derive(Debug, Default)]
pub(super) struct Ledger(Mutex<BTreeMap<String, Promise>>);

impl Ledger {
    /// Notes that the piece `name` with these contents has just been acknowledged.
    pub(super) fn acknowledge(&self, name: String, sum: Sum, len: u64) {
        self.lock().insert(name, Promise { sum, len, at: Instant::now() });
    }

    /// Everything promised so far.
    pub(super) fn promises(&self) -> BTreeMap<String, Promise> {
        self.lock().clone()
    }

    /// How many pieces were acknowledged since `since`.
    pub(super) fn count_since(&self, since: Instant) -> usize {
        self.lock().values().filter(|promise| promise.at >= since).count()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Promise>> {
        // A writer that panicked left complete entries only.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_promise_of_a_piece_counts() {
        let ledger = Ledger::default();
        ledger.acknowledge("a".into(), sum(b"1"), 1);
        let later = Instant::now();
        ledger.acknowledge("a".into(), sum(b"22"), 2);
        assert_eq!(ledger.promises()["a"].sum, sum(b"22"));
        assert_eq!((ledger.promises().len(), ledger.count_since(later)), (1, 1));
    }
}
