//! A counted resource: so many operations at a time, so many bytes at a time.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// A number of permits, handed out first come first served; clones share them.
///
/// A large request at the head of the line holds back small ones behind it, so that it is not starved.
#[derive(Clone, Debug)]
pub struct Semaphore {
    shared: Rc<Shared>,
}

#[derive(Debug)]
struct Shared {
    total: usize,
    line: RefCell<Line>,
}

#[derive(Debug)]
struct Line {
    available: usize,
    next_ticket: u64,
    /// In order of arrival.
    waiting: BTreeMap<u64, (usize, Waker)>,
    /// Permits set aside for waiters that have been woken and not polled yet.
    granted: BTreeMap<u64, usize>,
}

impl Semaphore {
    /// A semaphore with `total` permits.
    pub fn new(total: usize) -> Self {
        let line =
            Line { available: total, next_ticket: 0, waiting: BTreeMap::new(), granted: BTreeMap::new() };
        Self { shared: Rc::new(Shared { total, line: RefCell::new(line) }) }
    }

    /// Waits until `count` permits are free and everybody who came earlier was served, and takes them.
    ///
    /// # Panics
    /// When `count` is more than there will ever be.
    pub async fn acquire(&self, count: usize) -> Permit {
        assert!(count <= self.shared.total, "{count} permits of a semaphore of {}", self.shared.total);
        if let Some(permit) = self.try_acquire(count) {
            return permit;
        }
        Acquire { shared: &self.shared, count, ticket: None }.await;
        Permit { shared: Rc::clone(&self.shared), count }
    }

    /// Takes `count` permits if they are free and nobody waits.
    pub fn try_acquire(&self, count: usize) -> Option<Permit> {
        let mut line = self.shared.line.borrow_mut();
        if !line.waiting.is_empty() || line.available < count {
            return None;
        }
        line.available -= count;
        Some(Permit { shared: Rc::clone(&self.shared), count })
    }

    /// Permits that are free now.
    pub fn available(&self) -> usize {
        self.shared.line.borrow().available
    }
}

impl Shared {
    /// Gives `count` permits back and serves the line as far as they go.
    fn release(&self, count: usize) {
        self.line.borrow_mut().available += count;
        while let Some(waker) = self.line.borrow_mut().grant() {
            waker.wake();
        }
    }
}

impl Line {
    /// Sets the permits of the first in line aside, if there are enough.
    fn grant(&mut self) -> Option<Waker> {
        let head = self.waiting.first_entry()?;
        let need = head.get().0;
        if need > self.available {
            return None;
        }
        self.available -= need;
        let (ticket, (_, waker)) = head.remove_entry();
        self.granted.insert(ticket, need);
        Some(waker)
    }
}

struct Acquire<'a> {
    shared: &'a Shared,
    count: usize,
    ticket: Option<u64>,
}

impl Future for Acquire<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut line = self.shared.line.borrow_mut();
        let ticket = self.ticket.unwrap_or_else(|| {
            line.next_ticket += 1;
            line.next_ticket
        });
        if line.granted.remove(&ticket).is_some() {
            drop(line);
            self.ticket = None;
            return Poll::Ready(());
        }
        let old = line.waiting.insert(ticket, (self.count, cx.waker().clone()));
        drop(line);
        drop(old);
        self.ticket = Some(ticket);
        Poll::Pending
    }
}

impl Drop for Acquire<'_> {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket else { return };
        let (granted, waiting) = {
            let mut line = self.shared.line.borrow_mut();
            (line.granted.remove(&ticket), line.waiting.remove(&ticket))
        };
        drop(waiting);
        // Also without permits of its own: it may have been the large request that held the others back.
        self.shared.release(granted.unwrap_or(0));
    }
}

/// Permits in use; given back when dropped.
#[derive(Debug)]
pub struct Permit {
    shared: Rc<Shared>,
    count: usize,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.shared.release(self.count);
    }
}
