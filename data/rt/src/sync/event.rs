//! Something happened: wakes everybody who was waiting for it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

/// Wakes all tasks that wait at the moment of [`Self::notify`]; remembers nothing for those that come later.
#[derive(Debug, Default)]
pub struct Event {
    notified: Cell<u64>,
    next_ticket: Cell<u64>,
    waiting: RefCell<BTreeMap<u64, Waker>>,
}

impl Event {
    /// An event for which nobody waits yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Wakes everybody who waits now.
    pub fn notify(&self) {
        self.notified.set(self.notified.get() + 1);
        for waker in self.waiting.take().into_values() {
            waker.wake();
        }
    }

    /// Waits for the first [`Self::notify`] after this *call* (not after the first poll): take the future, check the
    /// condition, then await the future, and no change is missed.
    pub fn wait(&self) -> impl Future<Output = ()> {
        Wait { event: self, seen: self.notified.get(), ticket: None }
    }
}

struct Wait<'a> {
    event: &'a Event,
    seen: u64,
    ticket: Option<u64>,
}

impl Future for Wait<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.event.notified.get() != self.seen {
            return Poll::Ready(());
        }
        let ticket = self.ticket.unwrap_or_else(|| {
            let ticket = self.event.next_ticket.get();
            self.event.next_ticket.set(ticket + 1);
            ticket
        });
        self.ticket = Some(ticket);
        let old = self.event.waiting.borrow_mut().insert(ticket, cx.waker().clone());
        drop(old);
        Poll::Pending
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            let waker = self.event.waiting.borrow_mut().remove(&ticket);
            drop(waker);
        }
    }
}
