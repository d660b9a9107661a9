//! Deliberate bugs, so that the crash tests can show that they would notice a real one.
//!
//! Present only in tests and under the feature `planted`.

use std::cell::Cell;

thread_local! {
    static NO_BARRIER: Cell<bool> = const { Cell::new(false) };
}

/// Makes pools of this thread skip the flushes that order journal and checkpoints, as a journal without its barrier.
pub fn set_no_barrier(planted: bool) {
    NO_BARRIER.set(planted);
}

/// Whether the barrier is to be skipped.
pub(crate) fn no_barrier() -> bool {
    NO_BARRIER.get()
}
