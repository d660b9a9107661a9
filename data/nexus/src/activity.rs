//! Whether anybody uses the volume: beside the path of a byte, for those who work only while somebody does.
//!
//! # Invariants
//! 1. From the arrival of an operation to its end the volume is in use, whether or not its host still waits.

use rt::Instant;
use rt::sync::Event;
use std::cell::Cell;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

/// What is under way, and since when nothing is.
pub(crate) struct Activity {
    under_way: Cell<u32>,
    ended: Cell<Instant>,
    begins: Event,
}

/// One operation; it ends when this is dropped.
pub(crate) struct InUse(Rc<Activity>);

impl Activity {
    /// In use until now.
    pub(crate) fn new() -> Rc<Self> {
        Rc::new(Self { under_way: Cell::new(0), ended: Cell::new(rt::now()), begins: Event::new() })
    }

    /// An operation arrives.
    pub(crate) fn begin(self: &Rc<Self>) -> InUse {
        if self.under_way.replace(self.under_way.get() + 1) == 0 {
            self.begins.notify();
        }
        InUse(Rc::clone(self))
    }

    /// Whether nothing was under way for longer than `quiet`.
    pub(crate) fn is_calm(&self, quiet: Duration) -> bool {
        self.under_way.get() == 0 && rt::now() - self.ended.get() > quiet
    }

    /// Waits until the volume is used again.
    pub(crate) fn begins(&self) -> impl Future<Output = ()> {
        self.begins.wait()
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        let rest = self.0.under_way.get() - 1;
        self.0.under_way.set(rest);
        if rest == 0 {
            self.0.ended.set(rt::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_calm_only_a_while_after_its_last_operation_has_ended() {
        rt::sim::World::new(1).run(async {
            let (activity, quiet) = (Activity::new(), Duration::from_secs(3));
            rt::sleep(Duration::from_secs(2)).await;
            assert!(!activity.is_calm(quiet));
            let (first, second) = (activity.begin(), activity.begin());
            rt::sleep(Duration::from_secs(10)).await;
            drop(first);
            rt::sleep(Duration::from_secs(10)).await;
            assert!(!activity.is_calm(quiet), "one is still under way (invariant 1)");
            drop(second);
            assert!(!activity.is_calm(quiet));
            rt::sleep(Duration::from_secs(4)).await;
            assert!(activity.is_calm(quiet));
            let begins = activity.begins();
            let operation = activity.begin();
            begins.await;
            assert!(!activity.is_calm(quiet));
            drop(operation);
        });
    }
}
