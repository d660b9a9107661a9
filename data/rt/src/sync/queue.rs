//! Items from any tasks to any tasks, in order.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

/// An unbounded queue; whoever fills it bounds it (with a [`super::Semaphore`], or by construction).
///
/// Items come out in the order in which they went in, and waiting tasks are served in the order in which they came.
#[derive(Debug)]
pub struct Queue<T> {
    state: RefCell<State<T>>,
}

#[derive(Debug)]
struct State<T> {
    closed: bool,
    next_ticket: u64,
    pushed: u64,
    /// Items nobody waits for, each with its place in the order of pushes; empty while somebody waits.
    items: VecDeque<(u64, T)>,
    /// Waiters, in order of arrival.
    waiting: BTreeMap<u64, Waker>,
    /// Items set aside for waiters that have been woken and not polled yet.
    handed: BTreeMap<u64, (u64, T)>,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Queue<T> {
    /// An empty queue.
    pub const fn new() -> Self {
        Self {
            state: RefCell::new(State {
                closed: false,
                next_ticket: 0,
                pushed: 0,
                items: VecDeque::new(),
                waiting: BTreeMap::new(),
                handed: BTreeMap::new(),
            }),
        }
    }

    /// Appends `item`; once the queue is closed it is dropped instead.
    pub fn push(&self, item: T) {
        if self.state.borrow().closed {
            return;
        }
        let place = {
            let mut state = self.state.borrow_mut();
            state.pushed += 1;
            state.pushed
        };
        self.deliver(place, item);
    }

    /// Waits for the next item; `None` once the queue is closed and empty.
    pub async fn pop(&self) -> Option<T> {
        Pop { queue: self, ticket: None }.await
    }

    /// Takes the next item if there is one that nobody waits for.
    pub fn try_pop(&self) -> Option<T> {
        self.state.borrow_mut().items.pop_front().map(|(_, item)| item)
    }

    /// Refuses further items; what is in the queue can still be taken.
    pub fn close(&self) {
        let waiting = {
            let mut state = self.state.borrow_mut();
            state.closed = true;
            std::mem::take(&mut state.waiting)
        };
        for waker in waiting.into_values() {
            waker.wake();
        }
    }

    /// Whether [`Self::close`] was called.
    pub fn is_closed(&self) -> bool {
        self.state.borrow().closed
    }

    /// Items that no task has taken yet.
    pub fn len(&self) -> usize {
        let state = self.state.borrow();
        state.items.len() + state.handed.len()
    }

    /// Whether there is no item.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Hands `item` to the first in line, or puts it at its place in the queue.
    ///
    /// An item that comes back from a waiter that no longer wants it is older than what others may have taken already.
    fn deliver(&self, place: u64, item: T) {
        let mut state = self.state.borrow_mut();
        let first_in_line = state.waiting.pop_first();
        let Some((ticket, waker)) = first_in_line else {
            let index = state.items.partition_point(|(other, _)| *other < place);
            state.items.insert(index, (place, item));
            return;
        };
        state.handed.insert(ticket, (place, item));
        drop(state);
        waker.wake();
    }
}

struct Pop<'a, T> {
    queue: &'a Queue<T>,
    ticket: Option<u64>,
}

impl<T> Future for Pop<'_, T> {
    type Output = Option<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        let queue = self.queue;
        let mut state = queue.state.borrow_mut();
        if let Some((_, item)) = self.ticket.and_then(|ticket| state.handed.remove(&ticket)) {
            self.ticket = None;
            return Poll::Ready(Some(item));
        }
        // A waiter does not look into `items`: what it gets is handed to it.
        if self.ticket.is_none_or(|_| state.closed)
            && let Some((_, item)) = state.items.pop_front()
        {
            return Poll::Ready(Some(item));
        }
        if state.closed {
            return Poll::Ready(None);
        }
        let ticket = self.ticket.unwrap_or_else(|| {
            state.next_ticket += 1;
            state.next_ticket
        });
        let old = state.waiting.insert(ticket, cx.waker().clone());
        drop(state);
        drop(old);
        self.ticket = Some(ticket);
        Poll::Pending
    }
}

impl<T> Drop for Pop<'_, T> {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket else { return };
        let (handed, waiting) = {
            let mut state = self.queue.state.borrow_mut();
            (state.handed.remove(&ticket), state.waiting.remove(&ticket))
        };
        drop(waiting);
        if let Some((place, item)) = handed {
            self.queue.deliver(place, item);
        }
    }
}
