//! Order between requests that touch the same blocks, held until the kernel has the answer.
//!
//! A request enters in the order in which it was read from the kernel and leaves when its answer has been written.
//! It may start when no earlier request that overlaps it, and of which one is a change, is still inside. Why that makes
//! a resend after the death of a server safe is argued in `docs/protocols/fuse.md`.
//!
//! # Invariants
//! 1. Of two overlapping requests of which one is a change, the later one starts only after the earlier one left.
//! 2. Entering never waits, so the order is that of reading.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::ops::Range;
use std::rc::Rc;
use std::task::{Poll, Waker};

struct Entry {
    id: u64,
    bytes: Range<u64>,
    change: bool,
    waker: Option<Waker>,
}

impl Entry {
    fn conflicts(&self, other: &Self) -> bool {
        (self.change || other.change)
            && self.bytes.start < other.bytes.end
            && other.bytes.start < self.bytes.end
    }
}

#[derive(Default)]
struct Inside {
    // In order of arrival; ids rise.
    entries: VecDeque<Entry>,
    entered: u64,
}

impl Inside {
    fn position(&self, id: u64) -> usize {
        self.entries
            .binary_search_by_key(&id, |entry| entry.id)
            .expect("a turn is inside until it is dropped")
    }

    fn is_first(&self, position: usize) -> bool {
        let own = &self.entries[position];
        !self.entries.iter().take(position).any(|earlier| earlier.conflicts(own))
    }
}

/// The requests of one volume that have been read and not answered.
#[derive(Clone, Default)]
pub(crate) struct Overlaps(Rc<RefCell<Inside>>);

impl Overlaps {
    /// Takes a place in the order for a request that reads, or changes, `bytes`.
    pub(crate) fn enter(&self, bytes: Range<u64>, change: bool) -> Turn {
        let mut inside = self.0.borrow_mut();
        let id = inside.entered;
        inside.entered += 1;
        inside.entries.push_back(Entry { id, bytes, change, waker: None });
        Turn { overlaps: self.clone(), id }
    }
}

/// A place in the order; dropped when the answer has been written.
pub(crate) struct Turn {
    overlaps: Overlaps,
    id: u64,
}

impl Turn {
    /// Waits until everything earlier that overlaps has left.
    pub(crate) async fn comes(&self) {
        poll_fn(|cx| {
            let mut inside = self.overlaps.0.borrow_mut();
            let position = inside.position(self.id);
            if inside.is_first(position) {
                return Poll::Ready(());
            }
            inside.entries[position].waker = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut inside = self.overlaps.0.borrow_mut();
        let position = inside.position(self.id);
        let gone = inside.entries.remove(position).expect("its position was just found");
        let woken: Vec<Waker> = inside
            .entries
            .range_mut(position..)
            .filter(|later| later.conflicts(&gone))
            .filter_map(|later| later.waker.take())
            .collect();
        drop(inside);
        woken.into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::task::Context;

    fn may_start(turn: &Turn) -> bool {
        pin!(turn.comes()).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn changes_wait_for_everything_earlier_that_overlaps() {
        let overlaps = Overlaps::default();
        let first = overlaps.enter(0..10, true);
        let beside = overlaps.enter(10..20, true);
        let across = overlaps.enter(5..15, true);
        assert!(may_start(&first));
        assert!(may_start(&beside));
        assert!(!may_start(&across));
        drop(first);
        assert!(!may_start(&across));
        drop(beside);
        assert!(may_start(&across));
    }

    #[test]
    fn reads_wait_for_changes_only() {
        let overlaps = Overlaps::default();
        let one = overlaps.enter(0..10, false);
        let two = overlaps.enter(0..10, false);
        let change = overlaps.enter(9..10, true);
        let after = overlaps.enter(9..10, false);
        assert!(may_start(&one) && may_start(&two));
        assert!(!may_start(&change) && !may_start(&after));
        drop(one);
        assert!(!may_start(&change));
        drop(two);
        assert!(may_start(&change) && !may_start(&after));
        drop(change);
        assert!(may_start(&after));
    }

    #[test]
    fn a_turn_that_is_given_up_lets_others_pass() {
        let overlaps = Overlaps::default();
        let first = overlaps.enter(0..10, true);
        let second = overlaps.enter(0..10, true);
        let third = overlaps.enter(0..10, true);
        drop(second);
        assert!(!may_start(&third));
        drop(first);
        assert!(may_start(&third));
        assert!(overlaps.0.borrow().entries.len() == 1);
    }

    proptest::proptest! {
        /// Whatever leaves in whatever order: nobody runs beside a conflicting earlier one, and nobody waits for ever.
        #[test]
        fn conflicting_requests_never_run_together(
            asks in proptest::collection::vec((0..20_u64, 1..6_u64, proptest::bool::ANY), 1..30),
            picks in proptest::collection::vec(proptest::prelude::any::<usize>(), 30),
        ) {
            let overlaps = Overlaps::default();
            let mut turns: Vec<_> =
                asks.into_iter().map(|(at, len, change)| (at..at + len, change, overlaps.enter(at..at + len, change))).collect();
            for pick in picks {
                let running: Vec<usize> =
                    (0..turns.len()).filter(|&i| may_start(&turns[i].2)).collect();
                for &a in &running {
                    for &b in &running {
                        let ((x, cx, _), (y, cy, _)) = (&turns[a], &turns[b]);
                        let overlap = x.start < y.end && y.start < x.end;
                        proptest::prop_assert!(a == b || !overlap || !(*cx || *cy));
                    }
                }
                if turns.is_empty() {
                    break;
                }
                proptest::prop_assert!(!running.is_empty(), "everybody waits");
                turns.remove(running[pick % running.len()]);
            }
        }
    }
}
