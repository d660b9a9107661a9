//! Timers of one reactor: ordered by deadline, first come first served among equals.

use super::Core;
use crate::Instant;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// Deadline and a number that makes it unique.
type Key = (Instant, u64);

#[derive(Default)]
pub(super) struct Timers {
    waiting: RefCell<BTreeMap<Key, Waker>>,
    next: Cell<u64>,
}

impl Timers {
    /// The earliest deadline.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.waiting.borrow().first_key_value().map(|((deadline, _), _)| *deadline)
    }

    /// Wakes every timer whose deadline is not after `now`.
    pub(super) fn fire(&self, now: Instant) {
        loop {
            let due = {
                let mut waiting = self.waiting.borrow_mut();
                match waiting.first_entry() {
                    Some(first) if first.key().0 <= now => first.remove(),
                    _ => return,
                }
            };
            due.wake();
        }
    }

    fn insert(&self, deadline: Instant, waker: Waker) -> Key {
        let key = (deadline, self.next.get());
        self.next.set(key.1 + 1);
        self.waiting.borrow_mut().insert(key, waker);
        key
    }
}

/// Waits until a deadline.
pub(super) struct Sleep {
    core: Rc<Core>,
    deadline: Instant,
    key: Option<Key>,
}

impl Sleep {
    pub(super) fn new(core: Rc<Core>, deadline: Instant) -> Self {
        Self { core, deadline, key: None }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(key) = self.key {
            let mut waiting = self.core.timers.waiting.borrow_mut();
            let Some(waker) = waiting.get_mut(&key) else { return Poll::Ready(()) };
            if !waker.will_wake(cx.waker()) {
                let old = std::mem::replace(waker, cx.waker().clone());
                drop(waiting);
                drop(old);
            }
            return Poll::Pending;
        }
        if super::boot_time() >= self.deadline {
            return Poll::Ready(());
        }
        self.key = Some(self.core.timers.insert(self.deadline, cx.waker().clone()));
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            let waker = self.core.timers.waiting.borrow_mut().remove(&key);
            drop(waker);
        }
    }
}
