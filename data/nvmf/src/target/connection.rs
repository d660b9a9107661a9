//! A connection from accept to close: ICReq, Connect, then commands and data until either end leaves.

use super::association::{Association, Export};
use super::queue::{Queue, QueueShape};
use super::{Counted, Shared};
use crate::limits;
use crate::link::{Broken, Reader};
use crate::outbox::Outbox;
use crate::subsystem::{AssociationHandle, ConnectError, ConnectRequest, Session, Subsystems};
use crate::wire::command::{Cqe, FABRICS_OPCODE, Sgl, Sqe};
use crate::wire::fabrics::{self, CATTR_NO_SQ_FLOW_CONTROL, CNTLID_DYNAMIC, Connect, ConnectData};
use crate::wire::frame::{Frame, Framing, Pdu, Phase, Role, Violation};
use crate::wire::pdu::{Digests, IcResp, Sealer, fes, kind};
use crate::wire::status::StatusCode;
use rt::DmaBuf;
use rt::net::TcpStream;
use std::net::IpAddr;
use std::rc::Rc;
use uuid::Uuid;
use zerocopy::{FromBytes, IntoBytes};

/// Commands that may fail before a Connect succeeds.
const FAILED_CONNECTS_MAX: usize = 8;

/// Serves one connection until it ends.
pub(super) async fn run<S: Subsystems>(counted: Counted<S>, stream: TcpStream) {
    let shared = &counted.0;
    let TcpStream { receive, send, peer } = stream;
    let outbox = Rc::new(Outbox::new());
    let sender = rt::spawn({
        let outbox = Rc::clone(&outbox);
        async move { outbox.send_all(send).await }
    });
    let framing = Framing {
        role: Role::Controller,
        phase: Phase::Initializing,
        digests: Digests::default(),
        in_capsule_max: limits::ADMIN_IN_CAPSULE_BYTES,
        data_max: shared.config.data_bytes_max,
    };
    let mut reader = Reader::new(receive, framing);
    let stopping = async {
        shared.stopping().await;
        Broken::Closed
    };
    let broken = rt::race(stopping, serve(shared, &mut reader, &outbox, peer.ip())).await;
    if let Broken::Violation(violation) = broken {
        tracing::warn!(%peer, fes = violation.fes, fei = violation.fei, "host broke the protocol");
        outbox.push(&reader.last_words(kind::C2H_TERM_REQ, violation));
    }
    outbox.close();
    // The bytes that it still sends are taken, else its end would be reset before it has read the last words.
    let last_words = async {
        let _sent = sender.await;
        if let Broken::Violation(_) = broken {
            reader.drain().await;
        }
    };
    let _in_time = rt::timeout(limits::LAST_WORDS_LIMIT, last_words).await;
}

async fn serve<S: Subsystems>(
    shared: &Rc<Shared<S>>,
    reader: &mut Reader,
    outbox: &Rc<Outbox>,
    peer: IpAddr,
) -> Broken {
    let limit = shared.config.handshake_limit;
    let queue = match rt::timeout(limit, establish(shared, reader, outbox, peer)).await {
        Ok(Ok(queue)) => queue,
        Ok(Err(broken)) => return broken,
        Err(rt::Elapsed) => return Broken::TimedOut,
    };
    let farewell = async {
        queue.association.farewell(queue.qid).await;
        Broken::Closed
    };
    let broken = rt::race(farewell, pump(&queue, reader, outbox)).await;
    queue.disconnected();
    broken
}

/// Receives commands and data until the connection breaks.
async fn pump<S: Subsystems>(queue: &Rc<Queue<S>>, reader: &mut Reader, outbox: &Outbox) -> Broken {
    loop {
        let step = async {
            outbox.room().await;
            let frame = reader.next().await?;
            match frame.pdu {
                Pdu::Command(sqe) => {
                    let data = in_capsule_data(reader, &frame).await?;
                    Ok(queue.arrive(sqe, data)?)
                }
                Pdu::H2cData(data) => queue.receive(reader, &frame, data).await,
                other => Err(unexpected(&other)),
            }
        };
        if let Err(broken) = step.await {
            return broken;
        }
    }
}

async fn in_capsule_data(reader: &mut Reader, frame: &Frame) -> Result<Option<(DmaBuf, bool)>, Broken> {
    if frame.data_len == 0 {
        return Ok(None);
    }
    Ok(Some(reader.data(frame, DmaBuf::new(frame.data_len as usize)).await?))
}

fn unexpected(pdu: &Pdu) -> Broken {
    match pdu {
        Pdu::TermReq(term) => Broken::Terminated(term.fes.get()),
        _ => Violation::SEQUENCE.into(),
    }
}

/// Agrees on the connection's parameters, then waits for a Connect command that succeeds.
async fn establish<S: Subsystems>(
    shared: &Rc<Shared<S>>,
    reader: &mut Reader,
    outbox: &Rc<Outbox>,
    peer: IpAddr,
) -> Result<Rc<Queue<S>>, Broken> {
    let sealer = initialize(shared, reader, outbox).await?;
    for _ in 0..FAILED_CONNECTS_MAX {
        let frame = reader.next().await?;
        let Pdu::Command(sqe) = frame.pdu else { return Err(unexpected(&frame.pdu)) };
        let data = in_capsule_data(reader, &frame).await?;
        let refused = match connect_data(&sqe, data) {
            Ok(data) => match connect(shared, &sqe, &data, outbox, sealer, peer).await {
                Ok(queue) => {
                    if queue.qid != 0 {
                        reader.framing.in_capsule_max = shared.config.in_capsule_bytes;
                    }
                    return Ok(queue);
                }
                Err(refused) => refused,
            },
            Err(code) => (code, 0),
        };
        let (code, result) = refused;
        outbox.push(&sealer.response(&Cqe::new(sqe.cid.get(), 0, code, u64::from(result))));
    }
    Err(Broken::TimedOut)
}

/// ICReq and ICResp.
///
/// # Spec
/// NVMe/TCP Transport 1.0, section 3.4.
async fn initialize<S: Subsystems>(
    shared: &Shared<S>,
    reader: &mut Reader,
    outbox: &Outbox,
) -> Result<Sealer, Broken> {
    let frame = reader.next().await?;
    let Pdu::IcReq(request) = frame.pdu else { return Err(unexpected(&frame.pdu)) };
    let unsupported = |offset| Violation { fes: fes::UNSUPPORTED_PARAMETER, fei: offset };
    if request.pfv.get() != 0 {
        return Err(unsupported(8).into());
    }
    if request.hpda > 31 {
        return Err(Violation::field(10).into());
    }
    let digests = Digests::from_dgst(request.dgst).ok_or(Violation::field(11))?;
    outbox.push(IcResp::new(digests, shared.config.data_bytes_max).as_bytes());
    reader.framing.phase = Phase::Running;
    reader.framing.digests = digests;
    Ok(Sealer { digests, data_align: (request.hpda + 1) * 4 })
}

/// The data of a Connect command, if it is one.
fn connect_data(sqe: &Sqe, data: Option<(DmaBuf, bool)>) -> Result<ConnectData, StatusCode> {
    if sqe.opcode != FABRICS_OPCODE || sqe.fabrics_type() != fabrics::kind::CONNECT {
        return Err(StatusCode::SEQUENCE_ERROR);
    }
    let Some((data, intact)) = data else { return Err(StatusCode::SGL_LENGTH_INVALID) };
    if !intact {
        return Err(StatusCode::TRANSIENT_TRANSPORT_ERROR);
    }
    if sqe.sgl.kind != Sgl::IN_CAPSULE || sqe.sgl.address.get() != 0 {
        return Err(StatusCode::SGL_OFFSET_INVALID);
    }
    let whole = data.len() == sqe.sgl.len.get() as usize;
    ConnectData::read_from_bytes(&data).ok().filter(|_| whole).ok_or(StatusCode::SGL_LENGTH_INVALID)
}

/// Why a Connect is refused: the status, and where the wrong parameter is (bit 16: in the data).
type Refused = (StatusCode, u32);

const fn wrong_field(offset: u32) -> Refused {
    (StatusCode::CONNECT_INVALID_PARAMETERS, offset)
}

const fn wrong_data(offset: u32) -> Refused {
    (StatusCode::CONNECT_INVALID_PARAMETERS, (1 << 16) | offset)
}

/// Connects an admin queue to a new association, or an I/O queue to an existing one.
///
/// # Spec
/// NVMe over Fabrics 1.1, section 3.3.
async fn connect<S: Subsystems>(
    shared: &Rc<Shared<S>>,
    sqe: &Sqe,
    data: &ConnectData,
    outbox: &Rc<Outbox>,
    sealer: Sealer,
    peer: IpAddr,
) -> Result<Rc<Queue<S>>, Refused> {
    let fields = Connect::parse(sqe);
    if fields.recfmt != 0 {
        return Err((StatusCode::CONNECT_INCOMPATIBLE_FORMAT, 0));
    }
    let entries_max = if fields.qid == 0 { 4096 } else { shared.config.queue_entries };
    if fields.sqsize == 0 || fields.sqsize >= entries_max {
        return Err(wrong_field(44));
    }
    let subnqn = data.subnqn().ok_or(wrong_data(256))?;
    let hostnqn = data.hostnqn().ok_or(wrong_data(512))?;
    let names = (subnqn.to_owned(), hostnqn.to_owned(), Uuid::from_bytes(data.hostid));
    let association = if fields.qid == 0 {
        open(shared, names, data.cntlid.get(), fields.kato_ms, peer).await?
    } else {
        existing(shared, &names, data.cntlid.get(), fields.qid)?
    };
    let shape = QueueShape {
        qid: fields.qid,
        entries: u32::from(fields.sqsize) + 1,
        flow_control: fields.cattr & CATTR_NO_SQ_FLOW_CONTROL == 0,
    };
    let queue = Queue::new(shared, Rc::clone(&association), &shape, outbox, sealer);
    if !association.join(&queue) {
        return Err(wrong_field(42));
    }
    // The slot of the Connect command itself is answered here, not through the queue's accounts.
    let result = fabrics::connect_result(association.cntlid);
    let sqhd = u16::from(shape.flow_control);
    outbox.push(&sealer.response(&Cqe::new(sqe.cid.get(), sqhd, StatusCode::SUCCESS, result)));
    queue.connected();
    Ok(queue)
}

/// Makes an association.
async fn open<S: Subsystems>(
    shared: &Rc<Shared<S>>,
    names: (String, String, Uuid),
    cntlid: u16,
    kato_ms: u32,
    peer: IpAddr,
) -> Result<Rc<Association<S>>, Refused> {
    let busy = ConnectError::Busy.status();
    if cntlid != CNTLID_DYNAMIC {
        return Err(wrong_data(16)); // Controllers are made on demand; none can be asked for.
    }
    if shared.associations.borrow().len() >= shared.config.connections_max {
        return Err(busy);
    }
    let handle = AssociationHandle::new();
    let export: Export<S> = if names.0 == fabrics::DISCOVERY_NQN {
        Export::Discovery
    } else {
        let request = ConnectRequest {
            subnqn: names.0.clone(),
            hostnqn: names.1.clone(),
            hostid: names.2,
            kato_ms,
            cntlid,
            peer,
            association: handle.clone(),
        };
        let session = shared.subsystems.open(&request).await.map_err(ConnectError::status)?;
        Export::Volumes(session)
    };
    let Some(cntlid) = shared.free_cntlid() else {
        if let Export::Volumes(session) = export {
            session.closed().await;
        }
        return Err(busy);
    };
    Ok(Association::start(shared, handle, cntlid, names, export, kato_ms))
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
