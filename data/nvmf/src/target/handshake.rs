//! The start of a connection: ICReq, Connect, and where the subsystem has a key the host's proof that it has it, too.
//!
//! ```text
//! ICReq -> Connect -> [ AUTH_SEND and AUTH_RECEIVE, until the host is who it says ] -> queue
//! ```
//!
//! # Invariants
//! 1. Nothing is opened, found out or changed behind the target before the host has proved its key: a connection without
//!    proof has a reserved controller id at most, and no [`Queue`] that could run a command.
//! 2. Every queue is proved, I/O queues as well as admin queues.
//! 3. It ends: a few failed Connects, a few commands of a proof, and the configured time for all of it.

use super::Shared;
use super::association::{Association, Export};
use super::connection::{in_capsule_data, unexpected};
use super::queue::{Queue, QueueShape};
use crate::auth::{self, Controller, Parties, Step};
use crate::key::Key;
use crate::link::{Broken, Reader};
use crate::outbox::Outbox;
use crate::subsystem::{AssociationHandle, ConnectError, ConnectRequest, Subsystems};
use crate::wire::command::{Cqe, FABRICS_OPCODE, Sgl, Sqe};
use crate::wire::fabrics::{
    self, AUTH_LEN_MAX, AUTHREQ_ATR, CATTR_NO_SQ_FLOW_CONTROL, CNTLID_DYNAMIC, Connect, ConnectData,
};
use crate::wire::frame::{Pdu, Phase, Violation};
use crate::wire::pdu::{Digests, IcResp, Sealer, fes, flag};
use crate::wire::status::StatusCode;
use rt::{DmaBuf, DmaBytes};
use std::net::IpAddr;
use std::rc::Rc;
use uuid::Uuid;
use zerocopy::{FromBytes, IntoBytes};

/// Commands that may fail before a Connect succeeds.
const FAILED_CONNECTS_MAX: usize = 8;
/// Commands between a Connect and the end of its proof; a good host needs five.
const PROOF_COMMANDS_MAX: usize = 16;

/// Why a Connect is refused: the status, and where the wrong parameter is (bit 16: in the data).
type Refused = (StatusCode, u32);

const fn wrong_field(offset: u32) -> Refused {
    (StatusCode::CONNECT_INVALID_PARAMETERS, offset)
}

const fn wrong_data(offset: u32) -> Refused {
    (StatusCode::CONNECT_INVALID_PARAMETERS, (1 << 16) | offset)
}

/// What a host asks for by a Connect that makes sense.
struct Wanted<S: Subsystems> {
    names: (String, String, Uuid),
    kato_ms: u32,
    shape: QueueShape,
    place: Place<S>,
}

/// Where the queue belongs.
enum Place<S: Subsystems> {
    /// To an association that is made for it.
    New(ControllerId<S>),
    /// To this one.
    Existing(Rc<Association<S>>),
}

/// A controller id that nobody else gets meanwhile.
struct ControllerId<S: Subsystems> {
    shared: Rc<Shared<S>>,
    id: u16,
}

impl<S: Subsystems> Drop for ControllerId<S> {
    fn drop(&mut self) {
        self.shared.reserved.borrow_mut().remove(&self.id);
    }
}

impl<S: Subsystems> Place<S> {
    fn cntlid(&self) -> u16 {
        match self {
            Self::New(reserved) => reserved.id,
            Self::Existing(association) => association.cntlid,
        }
    }
}

/// The command that ends a proof, which is answered when the queue is there.
struct Proved {
    cid: u16,
    data: Option<DmaBytes>,
}

/// A connection that has no queue yet.
pub(super) struct Handshake<'a, S: Subsystems> {
    shared: &'a Rc<Shared<S>>,
    reader: &'a mut Reader,
    outbox: &'a Rc<Outbox>,
    peer: IpAddr,
    sealer: Sealer,
    /// Of the queue to come: how far its commands are consumed. Without flow control nobody looks at it.
    sqhd: u16,
    /// What `sqhd` counts up to: its queue's entries, or 0 without flow control.
    wrap: u32,
}

impl<'a, S: Subsystems> Handshake<'a, S> {
    pub(super) fn new(
        shared: &'a Rc<Shared<S>>,
        reader: &'a mut Reader,
        outbox: &'a Rc<Outbox>,
        peer: IpAddr,
    ) -> Self {
        Self { shared, reader, outbox, peer, sealer: Sealer::default(), sqhd: 0, wrap: 0 }
    }

    /// Agrees on the connection's parameters, then waits for a Connect command that succeeds, and its proof.
    pub(super) async fn run(mut self) -> Result<Rc<Queue<S>>, Broken> {
        self.initialize().await?;
        for _ in 0..FAILED_CONNECTS_MAX {
            let (sqe, data) = self.command().await?;
            let cid = sqe.cid.get();
            match connect_data(&sqe, data).and_then(|data| self.wanted(&sqe, &data)) {
                Ok((wanted, Some(key))) => return self.prove_and_enter(cid, wanted, key).await,
                Ok((wanted, None)) => {
                    let shape = wanted.shape;
                    let result = fabrics::connect_result(wanted.place.cntlid(), 0);
                    match self.enter(wanted).await {
                        Ok(queue) => {
                            self.connected(shape);
                            self.answer(cid, StatusCode::SUCCESS, result);
                            return Ok(self.finish(queue));
                        }
                        Err((code, result)) => self.answer(cid, code, result.into()),
                    }
                }
                Err((code, result)) => self.answer(cid, code, result.into()),
            }
        }
        Err(Broken::TimedOut)
    }

    /// ICReq and ICResp.
    ///
    /// # Spec
    /// NVMe/TCP Transport 1.0, section 3.4.
    async fn initialize(&mut self) -> Result<(), Broken> {
        let frame = self.reader.next().await?;
        let Pdu::IcReq(request) = frame.pdu else { return Err(unexpected(&frame.pdu)) };
        let unsupported = |offset| Violation { fes: fes::UNSUPPORTED_PARAMETER, fei: offset };
        if request.pfv.get() != 0 {
            return Err(unsupported(8).into());
        }
        if request.hpda > 31 {
            return Err(Violation::field(10).into());
        }
        let digests = Digests::from_dgst(request.dgst).ok_or(Violation::field(11))?;
        self.outbox.push(IcResp::new(digests, self.shared.config.data_bytes_max).as_bytes());
        self.reader.framing.phase = Phase::Running;
        self.reader.framing.digests = digests;
        self.sealer = Sealer { digests, data_align: (request.hpda + 1) * 4 };
        Ok(())
    }

    /// The next command, with its data and whether that is intact.
    async fn command(&mut self) -> Result<(Sqe, Option<(DmaBuf, bool)>), Broken> {
        let frame = self.reader.next().await?;
        let Pdu::Command(sqe) = frame.pdu else { return Err(unexpected(&frame.pdu)) };
        let data = in_capsule_data(self.reader, &frame).await?;
        Ok((sqe, data))
    }

    /// The host's queue exists for it; its Connect is the first command that it has consumed.
    fn connected(&mut self, shape: QueueShape) {
        self.wrap = if shape.flow_control { shape.entries } else { 0 };
        self.consumed();
    }

    fn consumed(&mut self) {
        let next = (u32::from(self.sqhd) + 1).checked_rem(self.wrap).unwrap_or(0);
        self.sqhd = u16::try_from(next).expect("queues have at most 65536 entries");
    }

    fn answer(&self, cid: u16, code: StatusCode, result: u64) {
        self.outbox.push(&self.sealer.response(&Cqe::new(cid, self.sqhd, code, result)));
    }

    /// What a Connect asks for, and the key that its host has to prove.
    ///
    /// # Spec
    /// NVMe over Fabrics 1.1, section 3.3.
    fn wanted(&self, sqe: &Sqe, data: &ConnectData) -> Result<(Wanted<S>, Option<Key>), Refused> {
        let fields = Connect::parse(sqe);
        if fields.recfmt != 0 {
            return Err((StatusCode::CONNECT_INCOMPATIBLE_FORMAT, 0));
        }
        let entries_max = if fields.qid == 0 { 4096 } else { self.shared.config.queue_entries };
        if fields.sqsize == 0 || fields.sqsize >= entries_max {
            return Err(wrong_field(44));
        }
        let subnqn = data.subnqn().ok_or(wrong_data(256))?;
        let hostnqn = data.hostnqn().ok_or(wrong_data(512))?;
        let key = self.shared.subsystems.key(subnqn, hostnqn).map_err(ConnectError::status)?;
        let names = (subnqn.to_owned(), hostnqn.to_owned(), Uuid::from_bytes(data.hostid));
        let place = match fields.qid {
            0 if data.cntlid.get() != CNTLID_DYNAMIC => {
                return Err(wrong_data(16)); // Controllers are made on demand; none can be asked for.
            }
            0 => Place::New(reserve(self.shared).ok_or(ConnectError::Busy.status())?),
            qid => Place::Existing(existing(self.shared, &names, data.cntlid.get(), qid)?),
        };
        let shape = QueueShape {
            qid: fields.qid,
            entries: u32::from(fields.sqsize) + 1,
            flow_control: fields.cattr & CATTR_NO_SQ_FLOW_CONTROL == 0,
        };
        Ok((Wanted { names, kato_ms: fields.kato_ms, shape, place }, key))
    }

    /// Opens the session of an admin queue, and makes the queue.
    async fn enter(&self, wanted: Wanted<S>) -> Result<Rc<Queue<S>>, Refused> {
        let Wanted { names, kato_ms, shape, place } = wanted;
        let association = match place {
            Place::New(reserved) => open(self.shared, names, &reserved, kato_ms, self.peer).await?,
            Place::Existing(association) => association,
        };
        let queue = Queue::new(self.shared, Rc::clone(&association), shape, self.outbox, self.sealer);
        if !association.join(&queue) {
            return Err(wrong_field(42));
        }
        Ok(queue)
    }

    /// The queue serves from now on.
    fn finish(self, queue: Rc<Queue<S>>) -> Rc<Queue<S>> {
        queue.connected(self.sqhd);
        if queue.qid != 0 {
            self.reader.framing.in_capsule_max = self.shared.config.in_capsule_bytes;
        }
        queue
    }

    /// Lets the host prove its key, then enters. A host that does not is cut off (invariant 1).
    async fn prove_and_enter(
        mut self,
        cid: u16,
        wanted: Wanted<S>,
        key: Key,
    ) -> Result<Rc<Queue<S>>, Broken> {
        let (subnqn, hostnqn, _) = wanted.names.clone();
        self.connected(wanted.shape);
        let result = fabrics::connect_result(wanted.place.cntlid(), AUTHREQ_ATR);
        self.answer(cid, StatusCode::SUCCESS, result);
        let proved = self.prove(Parties { key, hostnqn, subnqn }).await?;
        let entered = self.enter(wanted).await;
        self.consumed();
        match entered {
            Ok(queue) => {
                match proved.data {
                    Some(data) => self.answer_data(proved.cid, data),
                    None => self.answer(proved.cid, StatusCode::SUCCESS, 0),
                }
                Ok(self.finish(queue))
            }
            Err((code, _)) => {
                self.answer(proved.cid, code, 0);
                Err(Broken::Closed)
            }
        }
    }

    /// Runs the exchange; ends with the command that ends it well.
    ///
    /// # Spec
    /// NVMe Base 2.0, sections 6.1 and 6.2 (Authentication Receive and Send) and 8.13.5.
    async fn prove(&mut self, parties: Parties) -> Result<Proved, Broken> {
        let (host, nqn) = (parties.hostnqn.clone(), parties.subnqn.clone());
        let mut exchange = Controller::new(parties, auth::challenge());
        for _ in 0..PROOF_COMMANDS_MAX {
            let (sqe, data) = self.command().await?;
            let cid = sqe.cid.get();
            let said = match auth_command(&sqe, data) {
                Ok(said) => said,
                Err(code) => {
                    self.consumed();
                    self.answer(cid, code, 0);
                    continue;
                }
            };
            let (data, step) = match said {
                Said::Message(bytes) => (None, exchange.send(&bytes)),
                Said::Receive(room) => {
                    let (message, step) = exchange.receive();
                    (Some(padded(&message, room)), step)
                }
            };
            if step == Step::Admitted {
                return Ok(Proved { cid, data });
            }
            self.consumed();
            match data {
                Some(data) => self.answer_data(cid, data),
                None => self.answer(cid, StatusCode::SUCCESS, 0),
            }
            if let Step::Refused(reason) = step {
                tracing::warn!(peer = %self.peer, host, nqn, %reason, "a host that does not prove its key is not let in");
                return Err(Broken::Closed);
            }
        }
        Err(Broken::TimedOut)
    }

    fn answer_data(&self, cid: u16, data: DmaBytes) {
        let len = u32::try_from(data.len()).expect("at most 4096 bytes");
        let head = self.sealer.c2h_data(cid, 0, len, flag::LAST);
        self.outbox.push_data(&head, data, self.sealer.digests.data, None);
        self.answer(cid, StatusCode::SUCCESS, 0);
    }
}

/// What a host that still has to prove its key may ask.
enum Said {
    Message(Vec<u8>),
    /// The next message, into room for so many bytes.
    Receive(usize),
}

/// The one gate: all but the two commands of the proof is refused here.
fn auth_command(sqe: &Sqe, data: Option<(DmaBuf, bool)>) -> Result<Said, StatusCode> {
    let kind = sqe.fabrics_type();
    let known = [fabrics::kind::AUTH_SEND, fabrics::kind::AUTH_RECEIVE].contains(&kind);
    if sqe.opcode != FABRICS_OPCODE || !known {
        return Err(StatusCode::AUTHENTICATION_REQUIRED);
    }
    let len = fabrics::auth_len(sqe).ok_or(StatusCode::INVALID_FIELD)?;
    if len == 0 || len > AUTH_LEN_MAX || len != sqe.sgl.len.get() {
        return Err(StatusCode::INVALID_FIELD);
    }
    match (kind, sqe.sgl.kind, data) {
        (_, _, Some((_, false))) => Err(StatusCode::TRANSIENT_TRANSPORT_ERROR),
        (fabrics::kind::AUTH_SEND, Sgl::IN_CAPSULE, Some((data, true)))
            if data.len() == len as usize && sqe.sgl.address.get() == 0 =>
        {
            Ok(Said::Message(data.to_vec()))
        }
        (fabrics::kind::AUTH_RECEIVE, Sgl::TRANSPORT, None) => Ok(Said::Receive(len as usize)),
        _ => Err(StatusCode::SGL_TYPE_INVALID),
    }
}

/// A message in the whole room that a host has for it.
fn padded(message: &[u8], room: usize) -> DmaBytes {
    let mut bytes = message.to_vec();
    bytes.resize(room, 0);
    DmaBytes::copy_of(&bytes)
}

/// The data of a Connect command, if it is one.
fn connect_data(sqe: &Sqe, data: Option<(DmaBuf, bool)>) -> Result<ConnectData, Refused> {
    let refused = |code| Err((code, 0));
    if sqe.opcode != FABRICS_OPCODE || sqe.fabrics_type() != fabrics::kind::CONNECT {
        return refused(StatusCode::SEQUENCE_ERROR);
    }
    let Some((data, intact)) = data else { return refused(StatusCode::SGL_LENGTH_INVALID) };
    if !intact {
        return refused(StatusCode::TRANSIENT_TRANSPORT_ERROR);
    }
    if sqe.sgl.kind != Sgl::IN_CAPSULE || sqe.sgl.address.get() != 0 {
        return refused(StatusCode::SGL_OFFSET_INVALID);
    }
    let whole = data.len() == sqe.sgl.len.get() as usize;
    ConnectData::read_from_bytes(&data).ok().filter(|_| whole).ok_or((StatusCode::SGL_LENGTH_INVALID, 0))
}

/// A controller id for a new association, unless there are too many.
fn reserve<S: Subsystems>(shared: &Rc<Shared<S>>) -> Option<ControllerId<S>> {
    let taken = shared.associations.borrow().len() + shared.reserved.borrow().len();
    if taken >= shared.config.connections_max {
        return None;
    }
    let id = shared.free_cntlid()?;
    shared.reserved.borrow_mut().insert(id);
    Some(ControllerId { shared: Rc::clone(shared), id })
}

/// Makes an association.
async fn open<S: Subsystems>(
    shared: &Rc<Shared<S>>,
    names: (String, String, Uuid),
    reserved: &ControllerId<S>,
    kato_ms: u32,
    peer: IpAddr,
) -> Result<Rc<Association<S>>, Refused> {
    let handle = AssociationHandle::new();
    let export: Export<S> = if names.0 == fabrics::DISCOVERY_NQN {
        Export::Discovery
    } else {
        let request = ConnectRequest {
            subnqn: names.0.clone(),
            hostnqn: names.1.clone(),
            hostid: names.2,
            kato_ms,
            cntlid: CNTLID_DYNAMIC,
            peer,
            association: handle.clone(),
        };
        Export::Volumes(shared.subsystems.open(&request).await.map_err(ConnectError::status)?)
    };
    Ok(Association::start(shared, handle, reserved.id, names, export, kato_ms))
}

/// Finds the association that an I/O queue belongs to.
fn existing<S: Subsystems>(
    shared: &Shared<S>,
    names: &(String, String, Uuid),
    cntlid: u16,
    qid: u16,
) -> Result<Rc<Association<S>>, Refused> {
    let association = shared.associations.borrow().get(&cntlid).cloned().ok_or(wrong_data(16))?;
    let (subnqn, hostnqn, hostid) = names;
    if association.subnqn != *subnqn {
        return Err(wrong_data(256));
    }
    if association.hostnqn != *hostnqn || association.hostid != *hostid {
        return Err((StatusCode::CONNECT_INVALID_HOST, 0));
    }
    if !association.is_enabled() {
        return Err((StatusCode::SEQUENCE_ERROR, 0));
    }
    if matches!(association.export, Export::Discovery) || qid > association.io_queues.get() {
        return Err(wrong_field(42));
    }
    Ok(association)
}
