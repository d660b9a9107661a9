//! The order of operations on the blocks of one volume (I11).
//!
//! Every operation takes its [`Turn`] the moment it arrives, before it waits for anything else. Turns that overlap and
//! are not both shared are granted one after the other, in order of arrival; all others at once. A turn ends only when
//! its holder drops it, which the nexus does after completions, never because a host dropped a future.
//!
//! An exclusive turn on the whole volume is a *drained point*: every earlier operation has ended, no later one has begun.
//!
//! # Invariants
//! 1. A granted exclusive turn overlaps no other granted turn.
//! 2. Overlapping turns are granted in order of arrival: nothing starves.

use rt::sync::Event;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

/// Whether a turn may be held together with overlapping ones of its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Reads.
    Shared,
    /// Everything that changes or compares blocks.
    Exclusive,
}

/// The order of one volume. The unit of ranges is the caller's; the nexus uses 4 KiB blocks.
#[derive(Clone, Default)]
pub(crate) struct Order(Rc<RefCell<Turns>>);

#[derive(Default)]
struct Turns {
    next: u64,
    /// In order of arrival.
    turns: BTreeMap<u64, Rc<Entry>>,
}

struct Entry {
    range: Range<u64>,
    kind: Kind,
    /// Earlier conflicting turns that have not ended.
    before: Cell<usize>,
    granted: Event,
}

impl Entry {
    fn conflicts(&self, other: &Self) -> bool {
        let both_shared = self.kind == Kind::Shared && other.kind == Kind::Shared;
        !both_shared && self.range.start < other.range.end && other.range.start < self.range.end
    }
}

/// A place in the order; ends when dropped.
pub(crate) struct Turn {
    order: Order,
    number: u64,
    entry: Rc<Entry>,
}

impl Order {
    /// Takes the next place for `range`; never waits.
    pub(crate) fn arrive(&self, range: Range<u64>, kind: Kind) -> Turn {
        let mut turns = self.0.borrow_mut();
        let entry = Entry { range, kind, before: Cell::new(0), granted: Event::new() };
        entry.before.set(turns.turns.values().filter(|earlier| earlier.conflicts(&entry)).count());
        let (number, entry) = (turns.next, Rc::new(entry));
        turns.next += 1;
        turns.turns.insert(number, Rc::clone(&entry));
        Turn { order: self.clone(), number, entry }
    }
}

impl Turn {
    /// Whether it has to wait for an earlier one.
    pub(crate) fn waits(&self) -> bool {
        self.entry.before.get() > 0
    }

    /// Waits until every earlier conflicting turn has ended.
    pub(crate) async fn granted(&self) {
        while self.entry.before.get() > 0 {
            self.entry.granted.wait().await;
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut turns = self.order.0.borrow_mut();
        turns.turns.remove(&self.number);
        for (_, later) in turns.turns.range(self.number..) {
            if later.conflicts(&self.entry) {
                later.before.set(later.before.get() - 1);
                if later.before.get() == 0 {
                    later.granted.notify();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Kind::{Exclusive, Shared};

    fn open(turn: &Turn) -> bool {
        turn.entry.before.get() == 0
    }

    #[test]
    fn overlapping_turns_are_granted_in_order_of_arrival() {
        let order = Order::default();
        let first = order.arrive(0..4, Exclusive);
        let reader = order.arrive(2..3, Shared);
        let second_reader = order.arrive(2..6, Shared);
        let writer = order.arrive(3..5, Exclusive);
        let apart = order.arrive(8..9, Exclusive);
        assert!(open(&first) && open(&apart));
        assert!(!open(&reader) && !open(&second_reader) && !open(&writer));
        drop(first);
        assert!(open(&reader) && open(&second_reader) && !open(&writer));
        drop(reader);
        assert!(!open(&writer), "the other reader still overlaps");
        drop(second_reader);
        assert!(open(&writer));
    }

    #[test]
    fn a_turn_on_everything_is_a_drained_point() {
        let order = Order::default();
        let early = order.arrive(5..6, Shared);
        let drained = order.arrive(0..u64::MAX, Exclusive);
        let late = order.arrive(7..8, Shared);
        assert!(!open(&drained) && !open(&late));
        drop(early);
        assert!(open(&drained) && !open(&late));
        drop(drained);
        assert!(open(&late));
    }

    #[test]
    fn a_waiting_turn_that_gives_up_lets_the_next_pass() {
        let order = Order::default();
        let first = order.arrive(0..1, Exclusive);
        let quitter = order.arrive(0..1, Exclusive);
        let last = order.arrive(0..1, Exclusive);
        drop(quitter);
        assert!(!open(&last));
        drop(first);
        assert!(open(&last));
    }
}
