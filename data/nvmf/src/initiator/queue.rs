//! One queue of the initiator: command slots, the data that moves for them, and the life that they share.
//!
//! # Invariants
//! 1. A slot belongs to its command until the answer has arrived or the association is dead, also when nobody waits any
//!    more: its buffer may still be received into.
//! 2. Data arrives in order within the command's buffer; data is sent once, in order, as R2Ts ask for it.
//! 3. An answer wakes exactly the command that it names; one that names none ends the connection.

use crate::link::{Broken, Reader};
use crate::outbox::Outbox;
use crate::wire::command::{Cqe, Sgl, Sqe};
use crate::wire::frame::{Data, Frame, Pdu, Violation};
use crate::wire::pdu::{Sealer, flag};
use crate::wire::status::StatusCode;
use device::Status;
use rt::sync::{Event, Permit, Semaphore};
use rt::{DmaBuf, DmaBytes};
use slab::Slab;
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// The one life of an association.
#[derive(Default)]
pub(super) struct Life {
    dead: Cell<bool>,
    died: Event,
    /// Ticks of the watchdog; a command remembers the one it began in.
    tick: Cell<u32>,
    /// Whether the watchdog ticks.
    awake: Cell<bool>,
    woken: Event,
}

impl Life {
    pub(super) fn is_dead(&self) -> bool {
        self.dead.get()
    }

    pub(super) async fn dead(&self) {
        while !self.dead.get() {
            self.died.wait().await;
        }
    }

    /// Ends the association; the queues fail what is in flight.
    pub(super) fn end(&self) {
        if !self.dead.replace(true) {
            self.died.notify();
        }
    }

    /// Counts a tick for the watchdog.
    pub(super) fn tick(&self) -> u32 {
        let tick = self.tick.get().wrapping_add(1);
        self.tick.set(tick);
        tick
    }

    /// Sleeps until a command begins, so that an idle association costs nothing.
    pub(super) async fn until_woken(&self) {
        self.awake.set(false);
        while !self.awake.get() && !self.dead.get() {
            rt::race(self.woken.wait(), self.died.wait()).await;
        }
    }

    fn command_begins(&self) -> u32 {
        if !self.awake.replace(true) {
            self.woken.notify();
        }
        self.tick.get()
    }
}

/// What the target allows on a queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct QueueLimits {
    pub(super) depth: usize,
    pub(super) in_capsule_max: u32,
    pub(super) h2c_data_max: u32,
}

/// A connected queue.
pub(super) struct Queue {
    pub(super) life: Rc<Life>,
    outbox: Rc<Outbox>,
    sealer: Sealer,
    limits: Cell<QueueLimits>,
    slots: RefCell<Slab<Slot>>,
    free: Semaphore,
}

struct Slot {
    began: u32,
    /// Event requests wait as long as it takes.
    patient: bool,
    send: Option<DmaBytes>,
    granted: u32,
    receive: Option<Receive>,
    state: State,
    _permit: Option<Permit>,
}

enum State {
    Waiting(Option<Waker>),
    /// Nobody waits for the answer any more.
    Abandoned,
    Answered(Result<Answer, Status>),
}

struct Receive {
    front: Option<DmaBuf>,
    rest: DmaBuf,
    received: u32,
    intact: bool,
}

/// What a target answered.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) outcome: Result<u64, StatusCode>,
    /// What was received of the command's data.
    pub(super) data: Option<DmaBuf>,
}

/// A command with its data.
pub(super) struct Submission {
    pub(super) sqe: Sqe,
    pub(super) send: Option<DmaBytes>,
    pub(super) receive: Option<DmaBuf>,
    /// Never times out.
    pub(super) patient: bool,
}

impl Submission {
    pub(super) const fn new(sqe: Sqe) -> Self {
        Self { sqe, send: None, receive: None, patient: false }
    }
}

impl Queue {
    pub(super) fn new(life: Rc<Life>, outbox: Rc<Outbox>, sealer: Sealer, limits: QueueLimits) -> Rc<Self> {
        let free = Semaphore::new(limits.depth);
        Rc::new(Self { life, outbox, sealer, limits: Cell::new(limits), slots: RefCell::default(), free })
    }

    /// What the target allows from now on, after Connect.
    pub(super) fn set_in_capsule_max(&self, in_capsule_max: u32) {
        self.limits.set(QueueLimits { in_capsule_max, ..self.limits.get() });
    }

    /// Whether a command that can be late is in flight.
    pub(super) fn is_busy(&self) -> bool {
        self.slots.borrow().iter().any(|(_, slot)| !slot.patient)
    }

    /// Sends a command as soon as a slot is free and waits for its answer.
    ///
    /// # Errors
    /// `Gone` or `TimedOut` when the association dies first.
    pub(super) async fn submit(self: &Rc<Self>, submission: Submission) -> Result<Answer, Status> {
        let permit = if submission.patient { None } else { Some(self.free.acquire(1).await) };
        if self.life.is_dead() {
            return Err(Status::Gone);
        }
        let key = self.begin(submission, permit);
        Completion { queue: Rc::clone(self), key: Some(key) }.await
    }

    fn begin(&self, submission: Submission, permit: Option<Permit>) -> usize {
        let Submission { mut sqe, send, receive, patient } = submission;
        let limits = self.limits.get();
        let len = |bytes: usize| u32::try_from(bytes).expect("commands are split at the greatest transfer");
        let mut in_capsule = None;
        let mut by_r2t = None;
        if let Some(data) = send {
            if data.len() <= limits.in_capsule_max as usize {
                sqe.sgl = Sgl::in_capsule(len(data.len()));
                in_capsule = Some(data);
            } else {
                sqe.sgl = Sgl::transport(len(data.len()));
                by_r2t = Some(data);
            }
        } else if let Some(buf) = &receive {
            sqe.sgl = Sgl::transport(len(buf.len()));
        }
        let key = self.slots.borrow_mut().insert(Slot {
            began: self.life.command_begins(),
            patient,
            send: by_r2t,
            granted: 0,
            receive: receive.map(|rest| Receive { front: None, rest, received: 0, intact: true }),
            state: State::Waiting(None),
            _permit: permit,
        });
        sqe.cid = u16::try_from(key).expect("fewer slots than identifiers").into();
        match in_capsule {
            Some(data) if !data.is_empty() => {
                let head = self.sealer.command(&sqe, data.len());
                self.outbox.push_data(&head, data, self.sealer.digests.data, None);
            }
            _ => self.outbox.push(&self.sealer.command(&sqe, 0)),
        }
        key
    }

    /// Receives answers and data until the connection breaks.
    pub(super) async fn pump(&self, reader: &mut Reader) -> Broken {
        loop {
            let step = async {
                let frame = reader.next().await?;
                match frame.pdu {
                    Pdu::Response(cqe) => Ok(self.answer(cqe)?),
                    Pdu::C2hData(data) => self.receive(reader, &frame, data).await,
                    Pdu::R2t { cid, ttag, offset, len } => Ok(self.grant(cid, ttag, offset, len)?),
                    Pdu::TermReq(term) => Err(Broken::Terminated(term.fes.get())),
                    _ => Err(Violation::SEQUENCE.into()),
                }
            };
            if let Err(broken) = step.await {
                return broken;
            }
        }
    }

    fn answer(&self, cqe: Cqe) -> Result<(), Violation> {
        self.finish(usize::from(cqe.cid.get()), cqe.outcome())
    }

    /// The answer to the command in slot `key` is here.
    fn finish(&self, key: usize, outcome: Result<u64, StatusCode>) -> Result<(), Violation> {
        let mut slots = self.slots.borrow_mut();
        let slot = slots.get_mut(key).filter(|slot| !matches!(slot.state, State::Answered(_)));
        let slot = slot.ok_or(Violation::field(20))?; // 3; the identifier is at byte 12 of the entry, 20 of the PDU.
        let mut outcome = outcome;
        let data = slot.receive.take().and_then(|receive| {
            if !receive.intact {
                outcome = Err(StatusCode::TRANSIENT_TRANSPORT_ERROR);
            }
            receive.front
        });
        slot.send = None;
        let answered = State::Answered(Ok(Answer { outcome, data }));
        match std::mem::replace(&mut slot.state, answered) {
            State::Waiting(waker) => {
                drop(slots);
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
            State::Abandoned => {
                let slot = slots.remove(key);
                drop(slots);
                drop(slot);
            }
            State::Answered(_) => unreachable!("filtered above"),
        }
        Ok(())
    }

    /// Data for a command arrives (invariant 2).
    async fn receive(&self, reader: &mut Reader, frame: &Frame, data: Data) -> Result<(), Broken> {
        let key = usize::from(data.cid);
        let window = {
            let mut slots = self.slots.borrow_mut();
            let slot = slots.get_mut(key).ok_or(Violation::field(8))?;
            let receive = slot.receive.as_mut().ok_or(Violation::OUT_OF_RANGE)?;
            if data.offset != receive.received || data.len as usize > receive.rest.len() {
                return Err(Violation::OUT_OF_RANGE.into());
            }
            if data.success && !data.last {
                return Err(Violation::field(1).into());
            }
            receive.rest.split_to(data.len as usize)
        };
        let (window, intact) = reader.data(frame, window).await?;
        {
            let mut slots = self.slots.borrow_mut();
            // Only a dead association takes slots away meanwhile; then this task is about to end too.
            let receive = slots.get_mut(key).and_then(|slot| slot.receive.as_mut()).ok_or(Broken::Closed)?;
            receive.intact &= intact;
            receive.received += data.len;
            match &mut receive.front {
                Some(front) => front.unsplit(window),
                None => receive.front = Some(window),
            }
        }
        if data.success {
            self.finish(key, Ok(0))?;
        }
        Ok(())
    }

    /// The target asks for data of a command.
    fn grant(&self, cid: u16, ttag: u16, offset: u32, len: u32) -> Result<(), Violation> {
        let data = {
            let mut slots = self.slots.borrow_mut();
            let slot = slots.get_mut(usize::from(cid)).ok_or(Violation::field(8))?;
            let data = slot.send.as_ref().ok_or(Violation::OUT_OF_RANGE)?;
            let end = offset.checked_add(len).filter(|&end| end as usize <= data.len());
            let end = end.ok_or(Violation::OUT_OF_RANGE)?;
            if offset != slot.granted {
                return Err(Violation::OUT_OF_RANGE); // 2
            }
            let asked = data.slice(offset as usize..end as usize);
            slot.granted = end;
            asked
        };
        let mut sent = 0;
        while sent < len {
            let piece = (len - sent).min(self.limits.get().h2c_data_max);
            let last = if sent + piece == len { flag::LAST } else { 0 };
            let head = self.sealer.h2c_data(cid, ttag, offset + sent, piece, last);
            let bytes = data.slice(sent as usize..(sent + piece) as usize);
            self.outbox.push_data(&head, bytes, self.sealer.digests.data, None);
            sent += piece;
        }
        Ok(())
    }

    /// Whether a command that began before the tick `began_before` is still in flight.
    pub(super) fn fail_late(&self, began_before: u32) -> bool {
        let mut late = false;
        self.fail(|slot| {
            let is_late = !slot.patient && slot.began.wrapping_sub(began_before) > u32::MAX / 2;
            late |= is_late;
            is_late.then_some(Status::TimedOut)
        });
        late
    }

    /// The association is dead: everything in flight has failed (invariant 1).
    pub(super) fn fail_all(&self) {
        assert!(self.life.is_dead(), "commands fail together with their association");
        self.outbox.close();
        self.fail(|_| Some(Status::Gone));
    }

    fn fail(&self, mut why: impl FnMut(&Slot) -> Option<Status>) {
        let mut wakers = Vec::new();
        let mut forgotten = Vec::new();
        {
            let mut slots = self.slots.borrow_mut();
            for (key, slot) in &mut *slots {
                if matches!(slot.state, State::Answered(_)) {
                    continue;
                }
                let Some(status) = why(slot) else { continue };
                slot.receive = None;
                slot.send = None;
                match std::mem::replace(&mut slot.state, State::Answered(Err(status))) {
                    State::Waiting(waker) => wakers.extend(waker),
                    _ => forgotten.push(key),
                }
            }
        }
        for key in forgotten {
            let slot = self.slots.borrow_mut().remove(key);
            drop(slot);
        }
        for waker in wakers {
            waker.wake();
        }
    }
}

/// Waits for the answer in a slot.
struct Completion {
    queue: Rc<Queue>,
    key: Option<usize>,
}

impl Future for Completion {
    type Output = Result<Answer, Status>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let key = self.key.expect("polled until ready");
        let mut slots = self.queue.slots.borrow_mut();
        let slot = &mut slots[key];
        if let State::Waiting(waker) = &mut slot.state {
            match waker {
                Some(waker) if waker.will_wake(cx.waker()) => {}
                _ => *waker = Some(cx.waker().clone()),
            }
            return Poll::Pending;
        }
        let slot = slots.remove(key);
        drop(slots);
        self.key = None;
        match slot.state {
            State::Answered(answer) => Poll::Ready(answer),
            _ => unreachable!("only this future abandons the slot"),
        }
    }
}

impl Drop for Completion {
    fn drop(&mut self) {
        let Some(key) = self.key else { return };
        let mut slots = self.queue.slots.borrow_mut();
        let abandoned = if let State::Answered(_) = slots[key].state {
            Some(slots.remove(key))
        } else {
            slots[key].state = State::Abandoned; // 1
            None
        };
        drop(slots);
        drop(abandoned);
    }
}
