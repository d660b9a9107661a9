//! What a connection has to send: filled by many tasks, emptied by one, everything that is queued in one call.
//!
//! A send costs several microseconds however little it carries, so answers are gathered: small headers are laid next to
//! each other in one buffer, data is sent from where it lies.
//!
//! # Invariants
//! 1. What is pushed leaves in the order of the pushes, and nothing is pushed between a header and its data.
//! 2. A budget's permit is given back only after the data that it stands for has left.
//! 3. A receiver that waits for [`Outbox::room`] stops when the other end does not read its answers.

use crate::wire::digest::crc32c;
use rt::net::SendHalf;
use rt::sync::{Event, Permit};
use rt::{DmaBuf, DmaBytes, Errno, Part};
use std::cell::RefCell;
use std::future::poll_fn;
use std::task::{Poll, Waker};

const ARENA_BYTES: usize = 4096;
/// Headers that may wait to be sent before no further commands are taken, in bytes.
const HEADS_BYTES_MAX: usize = 256 << 10;

/// The queue of one connection's outgoing bytes.
pub(crate) struct Outbox {
    state: RefCell<State>,
    left: Event,
}

struct State {
    parts: Vec<Part>,
    permits: Vec<Permit>,
    /// Headers written one after the other that are not a part yet.
    heads: Option<DmaBuf>,
    /// Room for further headers, directly behind `heads`.
    room: DmaBuf,
    /// Bytes of headers that have not left yet.
    heads_bytes: usize,
    closed: bool,
    waker: Option<Waker>,
}

impl State {
    fn head(&mut self, bytes: &[u8]) {
        self.heads_bytes += bytes.len();
        if self.room.len() < bytes.len() {
            self.finish_heads();
            self.room = DmaBuf::new(ARENA_BYTES.max(bytes.len()));
        }
        let mut piece = self.room.split_to(bytes.len());
        piece.copy_from_slice(bytes);
        match &mut self.heads {
            Some(heads) => heads.unsplit(piece),
            None => self.heads = Some(piece),
        }
    }

    fn finish_heads(&mut self) {
        if let Some(heads) = self.heads.take() {
            self.parts.push(Part::Data(heads.freeze()));
        }
    }
}

impl Outbox {
    pub(crate) fn new() -> Self {
        Self {
            state: RefCell::new(State {
                parts: Vec::new(),
                permits: Vec::new(),
                heads: None,
                room: DmaBuf::new(ARENA_BYTES),
                heads_bytes: 0,
                closed: false,
                waker: None,
            }),
            left: Event::new(),
        }
    }

    /// Queues a PDU without data.
    pub(crate) fn push(&self, head: &[u8]) {
        self.push_with(|state| state.head(head));
    }

    /// Queues a PDU with data, and the digest of the data where one is agreed; `permit` is kept until it has left.
    pub(crate) fn push_data(&self, head: &[u8], data: DmaBytes, digest: bool, permit: Option<Permit>) {
        self.push_with(|state| {
            state.head(head);
            state.finish_heads();
            let digest = digest.then(|| crc32c(&data).to_le_bytes());
            state.parts.push(Part::Data(data));
            if let Some(digest) = digest {
                state.head(&digest);
            }
            state.permits.extend(permit);
        });
    }

    fn push_with(&self, fill: impl FnOnce(&mut State)) {
        let waker = {
            let mut state = self.state.borrow_mut();
            if state.closed {
                return;
            }
            fill(&mut state);
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Accepts nothing more; what is queued still leaves.
    pub(crate) fn close(&self) {
        let waker = {
            let mut state = self.state.borrow_mut();
            state.closed = true;
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Waits while too many answers have not left yet (invariant 3).
    pub(crate) async fn room(&self) {
        while {
            let state = self.state.borrow();
            state.heads_bytes > HEADS_BYTES_MAX && !state.closed
        } {
            self.left.wait().await;
        }
    }

    /// Waits for something to send and takes all of it; `None` once closed and empty.
    async fn take(&self) -> Option<(Vec<Part>, Vec<Permit>)> {
        poll_fn(|cx| {
            let mut state = self.state.borrow_mut();
            state.finish_heads();
            if !state.parts.is_empty() {
                let parts = std::mem::take(&mut state.parts);
                return Poll::Ready(Some((parts, std::mem::take(&mut state.permits))));
            }
            if state.closed {
                return Poll::Ready(None);
            }
            state.waker = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Sends what is queued until the outbox is closed or the connection breaks; from then on nothing is accepted.
    pub(crate) async fn send_all(&self, mut half: SendHalf) -> Result<(), Errno> {
        while let Some((parts, permits)) = self.take().await {
            let heads_bytes = self.state.borrow().heads_bytes;
            let sent = half.send(parts).await;
            drop(permits); // 2
            self.state.borrow_mut().heads_bytes -= heads_bytes;
            if sent.is_err() {
                self.close();
            }
            self.left.notify();
            sent?;
        }
        Ok(())
    }
}
