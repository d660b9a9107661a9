//! One queue of an association: its slots, the data it waits for, its answers.
//!
//! # Invariants
//! 1. A command identifier is in use from the command's arrival until its answer is queued.
//! 2. A transfer tag names one R2T; its data arrives in order, within the range that was asked for.

use super::association::Association;
use super::{Shared, admin, io};
use crate::limits::{self, PAGE_BYTES};
use crate::link::{Broken, Reader};
use crate::outbox::Outbox;
use crate::subsystem::Subsystems;
use crate::wire::command::{Cqe, Sgl, Sqe};
use crate::wire::frame::{Data, Frame, Violation};
use crate::wire::pdu::{Sealer, flag};
use crate::wire::status::StatusCode;
use rt::sync::{OnceSender, Permit, Semaphore, oneshot};
use rt::{DmaBuf, DmaBytes};
use slab::Slab;
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// A connected queue.
pub(super) struct Queue<S: Subsystems> {
    pub(super) shared: Rc<Shared<S>>,
    pub(super) association: Rc<Association<S>>,
    pub(super) qid: u16,
    outbox: Rc<Outbox>,
    sealer: Sealer,
    entries: u32,
    flow_control: bool,
    sqhd: Cell<u16>,
    /// The command identifiers in use: few enough to be searched.
    in_use: RefCell<Vec<u16>>,
    transfers: RefCell<Slab<Transfer>>,
    /// Memory for the data of running commands, in pages.
    budget: Semaphore,
}

/// Data that an R2T has asked for.
struct Transfer {
    cid: u16,
    /// What is still to come.
    rest: DmaBuf,
    received: u32,
    /// What has come.
    front: Option<DmaBuf>,
    intact: bool,
    done: OnceSender<Result<DmaBuf, StatusCode>>,
}

/// The answer to a command that succeeded.
#[derive(Default)]
pub(super) struct Reply {
    pub(super) result: u64,
    pub(super) data: Option<DmaBytes>,
    /// The share of the budget that the data takes until it has left.
    pub(super) permit: Option<Permit>,
}

impl Reply {
    pub(super) fn result(result: u64) -> Self {
        Self { result, ..Self::default() }
    }
}

/// What a Connect command settles for its queue.
#[derive(Clone, Copy)]
pub(super) struct QueueShape {
    pub(super) qid: u16,
    pub(super) entries: u32,
    pub(super) flow_control: bool,
}

impl<S: Subsystems> Queue<S> {
    pub(super) fn new(
        shared: &Rc<Shared<S>>,
        association: Rc<Association<S>>,
        shape: QueueShape,
        outbox: &Rc<Outbox>,
        sealer: Sealer,
    ) -> Rc<Self> {
        Rc::new(Self {
            shared: Rc::clone(shared),
            association,
            qid: shape.qid,
            outbox: Rc::clone(outbox),
            sealer,
            entries: shape.entries,
            flow_control: shape.flow_control,
            sqhd: Cell::new(0),
            in_use: RefCell::default(),
            transfers: RefCell::default(),
            budget: Semaphore::new(limits::CONNECTION_DATA_BYTES / PAGE_BYTES),
        })
    }

    /// The commands of the handshake have been answered; `sqhd` is how far they have come.
    pub(super) fn connected(&self, sqhd: u16) {
        self.sqhd.set(sqhd);
    }

    /// A command has arrived, with its in-capsule data and whether that is intact.
    pub(super) fn arrive(self: &Rc<Self>, sqe: Sqe, data: Option<(DmaBuf, bool)>) -> Result<(), Violation> {
        let cid = sqe.cid.get();
        {
            let mut in_use = self.in_use.borrow_mut();
            if in_use.len() >= self.entries as usize {
                return Err(Violation::SEQUENCE); // More commands than the queue has entries.
            }
            if in_use.contains(&cid) {
                drop(in_use);
                self.push_response(cid, StatusCode::COMMAND_ID_CONFLICT, 0);
                return Ok(());
            }
            in_use.push(cid);
        }
        self.association.saw_traffic();
        let data = match data {
            Some((_, false)) => {
                self.complete(cid, Err(StatusCode::TRANSIENT_TRANSPORT_ERROR));
                return Ok(());
            }
            Some((data, true)) => Some(data),
            None => None,
        };
        if self.qid == 0 {
            match admin::run(self, &sqe) {
                Ok(Some(reply)) => self.complete(cid, Ok(reply)),
                Ok(None) => {} // An event request: it waits.
                Err(code) => self.complete(cid, Err(code)),
            }
        } else {
            let queue = Rc::clone(self);
            rt::spawn(async move {
                let outcome = io::run(&queue, &sqe, data).await;
                queue.complete(cid, outcome);
            })
            .detach();
        }
        Ok(())
    }

    /// Queues the answer to command `cid` and frees its slot.
    pub(super) fn complete(&self, cid: u16, outcome: Result<Reply, StatusCode>) {
        {
            let mut in_use = self.in_use.borrow_mut();
            let at = in_use.iter().position(|&other| other == cid).expect("a command is answered once"); // 1
            in_use.swap_remove(at);
        }
        match outcome {
            Ok(Reply { result, data: Some(data), permit }) if !data.is_empty() => {
                let success = result == 0 && !self.flow_control;
                let len = u32::try_from(data.len()).expect("at most the greatest transfer");
                let flags = flag::LAST | if success { flag::SUCCESS } else { 0 };
                let head = self.sealer.c2h_data(cid, 0, len, flags);
                self.outbox.push_data(&head, data, self.sealer.digests.data, permit);
                if success {
                    self.advance();
                } else {
                    self.push_response(cid, StatusCode::SUCCESS, result);
                }
            }
            Ok(reply) => self.push_response(cid, StatusCode::SUCCESS, reply.result),
            Err(code) => self.push_response(cid, code, 0),
        }
    }

    fn push_response(&self, cid: u16, code: StatusCode, result: u64) {
        let sqhd = self.advance();
        self.outbox.push(&self.sealer.response(&Cqe::new(cid, sqhd, code, result)));
    }

    fn advance(&self) -> u16 {
        let next = (u32::from(self.sqhd.get()) + 1) % self.entries;
        let next = u16::try_from(next).expect("queues have at most 65536 entries");
        self.sqhd.set(next);
        next
    }

    /// Memory for `len` bytes of a command's data, once the connection's budget allows it.
    pub(super) async fn reserve(&self, len: usize) -> (DmaBuf, Permit) {
        let permit = self.budget_for(len).await;
        (DmaBuf::new(len), permit)
    }

    /// The right to hold `len` bytes of data.
    pub(super) async fn budget_for(&self, len: usize) -> Permit {
        self.budget.acquire(len.div_ceil(PAGE_BYTES)).await
    }

    /// The data of a command from the host: what came in the capsule, or what an R2T brings.
    pub(super) async fn host_data(
        &self,
        sqe: &Sqe,
        in_capsule: Option<DmaBuf>,
    ) -> Result<HostData, StatusCode> {
        let len = sqe.sgl.len.get();
        let nothing = || HostData { bytes: DmaBuf::new(0).freeze(), _permit: None };
        match (sqe.sgl.kind, in_capsule) {
            (Sgl::IN_CAPSULE, _) if sqe.sgl.address.get() != 0 => Err(StatusCode::SGL_OFFSET_INVALID),
            (Sgl::IN_CAPSULE, Some(data)) if data.len() == len as usize => {
                Ok(HostData { bytes: data.freeze(), _permit: None })
            }
            (Sgl::IN_CAPSULE | Sgl::TRANSPORT, None) if len == 0 => Ok(nothing()),
            (Sgl::IN_CAPSULE, _) | (Sgl::TRANSPORT, Some(_)) => Err(StatusCode::SGL_LENGTH_INVALID),
            (Sgl::TRANSPORT, None) if len > self.shared.config.data_bytes_max => {
                Err(StatusCode::INVALID_FIELD)
            }
            (Sgl::TRANSPORT, None) => {
                let (buf, permit) = self.reserve(len as usize).await;
                let bytes = self.transfer(sqe.cid.get(), buf).await?;
                Ok(HostData { bytes: bytes.freeze(), _permit: Some(permit) })
            }
            _ => Err(StatusCode::SGL_TYPE_INVALID),
        }
    }

    /// Asks for the data of command `cid` with one R2T and waits for all of it.
    async fn transfer(&self, cid: u16, buf: DmaBuf) -> Result<DmaBuf, StatusCode> {
        if self.association.handle.is_over() {
            return Err(StatusCode::SQ_DELETED);
        }
        let len = u32::try_from(buf.len()).expect("at most the greatest transfer");
        let (done, data) = oneshot();
        let transfer = Transfer { cid, rest: buf, received: 0, front: None, intact: true, done };
        let ttag = self.transfers.borrow_mut().insert(transfer);
        let ttag = u16::try_from(ttag).expect("no more transfers than queue entries");
        self.outbox.push(&self.sealer.r2t(cid, ttag, 0, len));
        data.recv().await.unwrap_or(Err(StatusCode::SQ_DELETED))
    }

    /// Data that an R2T asked for arrives (invariant 2).
    pub(super) async fn receive(&self, reader: &mut Reader, frame: &Frame, data: Data) -> Result<(), Broken> {
        self.association.saw_traffic();
        let key = usize::from(data.ttag);
        let window = {
            let mut transfers = self.transfers.borrow_mut();
            // TTAG is at byte 10 of the header, CCCID at byte 8.
            let transfer = transfers.get_mut(key).ok_or(Violation::field(10))?;
            if transfer.cid != data.cid {
                return Err(Violation::field(8).into());
            }
            let fits = data.offset == transfer.received && data.len as usize <= transfer.rest.len();
            if !fits {
                return Err(Violation::OUT_OF_RANGE.into());
            }
            transfer.rest.split_to(data.len as usize)
        };
        let (window, intact) = reader.data(frame, window).await?;
        let mut transfers = self.transfers.borrow_mut();
        let transfer =
            transfers.get_mut(key).expect("only this task removes transfers while the queue lives");
        transfer.intact &= intact;
        transfer.received += data.len;
        match &mut transfer.front {
            Some(front) => front.unsplit(window),
            None => transfer.front = Some(window),
        }
        if data.last != transfer.rest.is_empty() {
            return Err(Violation::field(1).into()); // The flags say "last" exactly when it is.
        }
        if data.last {
            let transfer = transfers.remove(key);
            drop(transfers);
            let front = transfer.front.expect("at least this PDU's data");
            transfer.done.send(if transfer.intact {
                Ok(front)
            } else {
                Err(StatusCode::TRANSIENT_TRANSPORT_ERROR)
            });
        }
        Ok(())
    }

    /// The connection is gone: commands that wait for data end.
    pub(super) fn disconnected(&self) {
        let transfers = std::mem::take(&mut *self.transfers.borrow_mut());
        drop(transfers);
        self.association.leave(self.qid);
    }
}

/// Data from the host, with its share of the connection's budget.
pub(super) struct HostData {
    pub(super) bytes: DmaBytes,
    _permit: Option<Permit>,
}
