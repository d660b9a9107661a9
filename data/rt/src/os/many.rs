//! Multishot operations: started once, completed many times, until the kernel or their owner ends them.
//!
//! # Invariants
//! 1. What a completion brought, a filled buffer or a descriptor, is owned from the moment it is reaped, by the queue and
//!    then by whoever takes it: dropped, it goes back to where it came from.
//! 2. An owner that does not take what arrives holds a bounded amount of it: at `QUEUE_MAX` the operation is cancelled,
//!    and what the kernel had completed before it knew is copied, so that other connections find buffers.
//! 3. The slot stays until the last completion, as that of any operation.

use super::Core;
use super::call::{Call, Kind, count_of, take_descriptor};
use super::ops::{Completion, Key};
use super::provided::{Piece, Provided};
use crate::Errno;
use std::collections::VecDeque;
use std::mem;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// Arrivals that wait for their owner before the kernel is told to stop.
pub(super) const QUEUE_MAX: usize = 8;

/// What one completion brought.
#[derive(Debug)]
pub(super) enum Arrival {
    Bytes(Piece),
    /// The other end has closed its stream.
    End,
    Connection(OwnedFd),
}

/// The state of one multishot operation.
#[derive(Default)]
pub(super) struct Many {
    queue: VecDeque<Result<Arrival, Errno>>,
    waker: Option<Waker>,
    /// The kernel was told to stop.
    cancelled: bool,
    /// The last completion was reaped.
    pub(super) ended: bool,
    /// Nobody waits any more.
    pub(super) dropped: bool,
}

/// What is to be done after a completion.
#[derive(Default)]
pub(super) struct After {
    pub(super) waker: Option<Waker>,
    pub(super) cancel: bool,
    /// Nobody wants it: dropped once nothing is borrowed.
    pub(super) unwanted: Option<Result<Arrival, Errno>>,
}

impl Many {
    pub(super) fn note(
        &mut self,
        kind: &Kind,
        completion: Completion,
        provided: Option<&Rc<Provided>>,
    ) -> After {
        self.ended = !completion.more;
        let arrival = arrival(kind, completion, provided);
        if self.dropped {
            return After { unwanted: arrival, ..After::default() };
        }
        let full = self.queue.len() >= QUEUE_MAX;
        self.queue.extend(arrival.map(|arrival| match arrival {
            Ok(Arrival::Bytes(piece)) if full => Ok(Arrival::Bytes(piece.copied())),
            other => other,
        }));
        let cancel = completion.more && !self.cancelled && self.queue.len() >= QUEUE_MAX;
        self.cancelled |= cancel;
        After { waker: self.waker.take(), cancel, unwanted: None }
    }

    /// What is next, and a waker to drop once nothing is borrowed.
    pub(super) fn poll(&mut self, waker: &Waker) -> (Poll<Option<Result<Arrival, Errno>>>, Option<Waker>) {
        if let Some(arrival) = self.queue.pop_front() {
            return (Poll::Ready(Some(arrival)), None);
        }
        if self.ended {
            return (Poll::Ready(None), None);
        }
        let same = self.waker.as_ref().is_some_and(|old| old.will_wake(waker));
        let old = if same { None } else { self.waker.replace(waker.clone()) };
        (Poll::Pending, old)
    }

    /// Whether the kernel must be told to stop.
    pub(super) fn cancel(&mut self) -> bool {
        let needed = !self.ended && !self.cancelled;
        self.cancelled = true;
        needed
    }

    /// Nobody waits any more; what had arrived, to drop once nothing is borrowed.
    pub(super) fn abandon(&mut self) -> Self {
        mem::replace(self, Self { ended: self.ended, cancelled: true, dropped: true, ..Self::default() })
    }
}

fn arrival(
    kind: &Kind,
    completion: Completion,
    provided: Option<&Rc<Provided>>,
) -> Option<Result<Arrival, Errno>> {
    let result = completion.result;
    let piece = completion.buffer.map(|id| {
        let provided = provided.expect("the kernel was given buffers");
        provided.take(id, result)
    });
    match count_of(result) {
        // Its owner asked for that, or will start it anew.
        Err(Errno::CANCELED) => None,
        Err(error) => Some(Err(error)),
        Ok(_) if matches!(kind, Kind::AcceptMany) => Some(Ok(Arrival::Connection(take_descriptor(result)))),
        Ok(0) => Some(Ok(Arrival::End)),
        Ok(_) => Some(Ok(Arrival::Bytes(piece.expect("bytes come in a buffer")))),
    }
}

/// The owner's end of a multishot operation. Dropped, it ends the operation and gives back what nobody took.
pub(super) struct Multishot {
    core: Rc<Core>,
    key: Key,
}

impl Multishot {
    /// # Panics
    /// When the reactor is gone or its driver has no multishot operations.
    pub(super) fn start(core: Rc<Core>, mut call: Call) -> Self {
        assert!(!core.closed.get(), "the reactor is gone");
        let raw = call.raw();
        let key = core.ops.insert_many(call);
        core.driver.borrow_mut().start(key, raw);
        Self { core, key }
    }

    /// Waits for what arrives next; `None` once the operation has ended and all was taken. An error is followed by that.
    /// A dropped future loses nothing.
    pub(super) async fn next(&mut self) -> Option<Result<Arrival, Errno>> {
        std::future::poll_fn(|cx| self.core.ops.poll_many(self.key, cx.waker())).await
    }

    /// Tells the kernel to stop; what has arrived by then is still to be taken.
    pub(super) fn cancel(&self) {
        if self.core.ops.cancel_many(self.key) {
            self.core.driver.borrow_mut().cancel(self.key);
        }
    }
}

impl Drop for Multishot {
    fn drop(&mut self) {
        if self.core.ops.abandon_many(self.key) {
            self.core.driver.borrow_mut().cancel(self.key);
        }
    }
}
