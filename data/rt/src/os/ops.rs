//! Operations in flight: a table whose slots own what the kernel may touch until the completion was reaped.
//!
//! # Invariants
//! 1. A slot is freed only after its (last) completion; a future that is dropped before leaves an orphan and a cancellation.
//! 2. A key is never reused: the slot's index and a generation.

use super::Core;
use super::call::{Call, count_of};
use super::many::{After, Arrival, Many};
use super::provided::Provided;
use crate::Errno;
use slab::Slab;
use std::cell::RefCell;
use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// Names an operation towards the kernel: index below, generation above.
pub(super) type Key = u64;

/// What the kernel says about an operation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Completion {
    pub(super) key: Key,
    pub(super) result: i32,
    /// Further ones follow: the operation is multishot and goes on.
    pub(super) more: bool,
    /// The shared buffer that it filled.
    pub(super) buffer: Option<u16>,
}

impl Completion {
    /// The only one of its operation.
    pub(super) fn single(key: Key, result: i32) -> Self {
        Self { key, result, more: false, buffer: None }
    }
}

enum State {
    InFlight(Waker),
    Done(i32),
    /// Its future was dropped.
    Orphan,
    /// A multishot operation, in flight or ended.
    Many(Box<Many>),
}

impl State {
    /// Whether the kernel has the operation.
    fn is_in_flight(&self) -> bool {
        match self {
            Self::InFlight(_) | Self::Orphan => true,
            Self::Done(_) => false,
            Self::Many(many) => !many.ended,
        }
    }
}

struct Slot {
    generation: u32,
    call: Call,
    state: State,
}

#[derive(Default)]
pub(super) struct Ops {
    table: RefCell<Table>,
}

#[derive(Default)]
struct Table {
    slots: Slab<Slot>,
    generation: u32,
}

impl Table {
    fn index(&self, key: Key) -> usize {
        let index = usize::try_from(key & u64::from(u32::MAX)).expect("an index fits");
        let slot = self.slots.get(index);
        assert!(
            slot.is_some_and(|slot| u64::from(slot.generation) == key >> 32),
            "operation {key:#x} unknown"
        );
        index
    }

    fn many(&mut self, index: usize) -> &mut Many {
        match &mut self.slots[index].state {
            State::Many(many) => many,
            _ => panic!("the operation is not multishot"),
        }
    }
}

impl Ops {
    /// Stores a call whose pointers are then handed to the driver.
    fn insert(&self, call: Call, state: State) -> Key {
        let mut table = self.table.borrow_mut();
        table.generation = table.generation.wrapping_add(1) & (u32::MAX >> 1);
        let generation = table.generation;
        let index = table.slots.insert(Slot { generation, call, state });
        u64::from(generation) << 32 | u64::try_from(index).expect("an index fits")
    }

    /// Notes a completion and wakes who waits for it. True if the operation must be cancelled, because its owner does
    /// not take what arrives.
    pub(super) fn complete(&self, completion: Completion, provided: Option<&Rc<Provided>>) -> bool {
        let Completion { key, result, .. } = completion;
        let mut table = self.table.borrow_mut();
        let index = table.index(key);
        let Slot { call, state, .. } = &mut table.slots[index];
        if let State::Many(many) = state {
            let After { waker, cancel, unwanted } = many.note(&call.kind, completion, provided);
            let gone = (many.dropped && many.ended).then(|| table.slots.remove(index));
            drop(table);
            drop((unwanted, gone));
            if let Some(waker) = waker {
                waker.wake();
            }
            return cancel;
        }
        match mem::replace(state, State::Done(result)) {
            State::InFlight(waker) => {
                drop(table);
                waker.wake();
            }
            State::Orphan => {
                let slot = table.slots.remove(index);
                drop(table);
                slot.call.dispose(result);
            }
            State::Done(_) | State::Many(_) => panic!("operation {key:#x} completed twice"),
        }
        false
    }

    /// The keys of all operations that the kernel still has.
    pub(super) fn in_flight(&self) -> Vec<Key> {
        let table = self.table.borrow();
        let live = table.slots.iter().filter(|(_, slot)| slot.state.is_in_flight());
        live.map(|(index, slot)| u64::from(slot.generation) << 32 | index as u64).collect()
    }

    /// Stores a multishot call, as `insert` does others.
    pub(super) fn insert_many(&self, call: Call) -> Key {
        self.insert(call, State::Many(Box::default()))
    }

    pub(super) fn poll_many(&self, key: Key, waker: &Waker) -> Poll<Option<Result<Arrival, Errno>>> {
        let mut table = self.table.borrow_mut();
        let index = table.index(key);
        let (poll, old) = table.many(index).poll(waker);
        drop(table);
        drop(old);
        poll
    }

    /// Notes that a multishot operation is to end; true if the kernel must be told.
    pub(super) fn cancel_many(&self, key: Key) -> bool {
        let mut table = self.table.borrow_mut();
        let index = table.index(key);
        table.many(index).cancel()
    }

    /// Lets go of a multishot operation and of what arrived; true if it is in flight and must be cancelled.
    pub(super) fn abandon_many(&self, key: Key) -> bool {
        let mut table = self.table.borrow_mut();
        let index = table.index(key);
        let many = table.many(index);
        let (needed, ended) = (many.cancel(), many.ended);
        let arrived = many.abandon();
        let gone = ended.then(|| table.slots.remove(index));
        drop(table);
        drop((arrived, gone));
        needed
    }

    fn poll(&self, key: Key, cx: &mut Context<'_>) -> Poll<(i32, Call)> {
        let mut table = self.table.borrow_mut();
        let index = table.index(key);
        let old = match &mut table.slots[index].state {
            State::Done(result) => {
                let result = *result;
                return Poll::Ready((result, table.slots.remove(index).call));
            }
            State::InFlight(waker) if waker.will_wake(cx.waker()) => return Poll::Pending,
            State::InFlight(waker) => mem::replace(waker, cx.waker().clone()),
            State::Orphan | State::Many(_) => panic!("operation {key:#x} is not a future's any more"),
        };
        drop(table);
        drop(old);
        Poll::Pending
    }

    /// Lets go of an operation; true if it is in flight and must be cancelled.
    fn abandon(&self, key: Key) -> bool {
        let mut table = self.table.borrow_mut();
        let index = table.index(key);
        let slot = &mut table.slots[index];
        if let State::Done(result) = slot.state {
            let slot = table.slots.remove(index);
            drop(table);
            slot.call.dispose(result);
            return false;
        }
        let old = mem::replace(&mut slot.state, State::Orphan);
        drop(table);
        drop(old);
        true
    }
}

/// The future of one operation; gives back the call with all that it owned.
pub(super) struct Operation {
    core: Rc<Core>,
    stage: Stage,
}

enum Stage {
    New(Call),
    InFlight(Key),
    Finished,
}

impl Operation {
    pub(super) fn new(core: Rc<Core>, call: Call) -> Self {
        Self { core, stage: Stage::New(call) }
    }

    /// Asks for an early end; the future still tells how it ended.
    pub(super) fn cancel(&self) {
        if let Stage::InFlight(key) = self.stage {
            self.core.driver.borrow_mut().cancel(key);
        }
    }
}

impl Future for Operation {
    type Output = (Result<usize, Errno>, Call);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match mem::replace(&mut self.stage, Stage::Finished) {
            Stage::New(mut call) => {
                if self.core.closed.get() {
                    return Poll::Ready((Err(Errno::CANCELED), call));
                }
                let raw = call.raw();
                let key = self.core.ops.insert(call, State::InFlight(cx.waker().clone()));
                self.core.driver.borrow_mut().start(key, raw);
                self.stage = Stage::InFlight(key);
                Poll::Pending
            }
            Stage::InFlight(key) => match self.core.ops.poll(key, cx) {
                Poll::Ready((result, call)) => Poll::Ready((count_of(result), call)),
                Poll::Pending => {
                    self.stage = Stage::InFlight(key);
                    Poll::Pending
                }
            },
            Stage::Finished => panic!("an operation was polled after it ended"),
        }
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        if let Stage::InFlight(key) = self.stage
            && self.core.ops.abandon(key)
        {
            self.core.driver.borrow_mut().cancel(key);
        }
    }
}
