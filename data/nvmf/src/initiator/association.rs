//! An association: one admin queue, its I/O queues, and the tasks that keep it alive.
//!
//! # Invariants
//! 1. It has one life: every reason to end it ends all of it, and every command in flight fails then.
//! 2. Its tasks do not own it: when the last handle is dropped, its connections close.

use super::namespace::{Namespace, NamespaceState};
use super::queue::{Answer, Life, Queue, QueueLimits, Submission};
use super::{ConnectOptions, authenticate};
use crate::auth::Parties;
use crate::error::{Error, ErrorKind, Unauthenticated};
use crate::limits;
use crate::link::{Broken, Reader};
use crate::outbox::Outbox;
use crate::subsystem::{Direction, VendorCommand, VendorReply};
use crate::wire::command::{NSID_ALL, Sqe, admin};
use crate::wire::fabrics::{
    self, CATTR_NO_SQ_FLOW_CONTROL, CNTLID_DYNAMIC, Capabilities, Connect, ConnectData, DISCOVERY_NQN, cc,
    csts, property,
};
use crate::wire::feature::{self, event, notice};
use crate::wire::frame::{Framing, Pdu, Phase, Role};
use crate::wire::identify::{self, IDENTIFY_LEN, IdentifyController, IdentifyNamespace, cns};
use crate::wire::log::{self, LogRequest};
use crate::wire::pdu::{Digests, IcReq, Sealer, kind};
use device::{BlockCount, Geometry, Status};
use rt::net::TcpStream;
use rt::{DmaBuf, DmaBytes, Task};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;
use zerocopy::{FromBytes, IntoBytes};

/// Entries of the admin queue.
const ADMIN_ENTRIES: u16 = 32;
/// The watchdog looks this often within the limit of a command.
const TICKS_PER_LIMIT: u32 = 4;

/// An association with a subsystem; clones are handles to the same one.
#[derive(Clone)]
pub struct Association(Rc<Inner>);

struct Inner {
    life: Rc<Life>,
    admin: Rc<Queue>,
    io: Vec<Rc<Queue>>,
    next_queue: Cell<usize>,
    data_bytes_max: usize,
    namespaces: Rc<Namespaces>,
    /// Cancelled with the last handle (invariant 2).
    _tasks: Vec<Task<()>>,
}

/// The namespaces that have been seen.
type Namespaces = RefCell<BTreeMap<u32, Rc<NamespaceState>>>;

impl Association {
    /// Connects to a subsystem: all queues, controller enabled, namespaces identified.
    pub async fn connect(options: ConnectOptions) -> Result<Self, Error> {
        let limit = options.connect_limit;
        match rt::timeout(limit, Box::pin(Connecting::new(&options).run())).await {
            Ok(result) => result,
            Err(rt::Elapsed) => {
                Err(Error::new(ErrorKind::TimedOut, options.address, &options.subnqn, "connecting"))
            }
        }
    }

    /// Waits until the association is dead.
    pub async fn dead(&self) {
        self.0.life.dead().await;
    }

    /// Whether the association is dead.
    pub fn is_dead(&self) -> bool {
        self.0.life.is_dead()
    }

    /// The namespaces of the subsystem, ascending.
    pub fn namespace_ids(&self) -> Vec<u32> {
        self.0.namespaces.borrow().keys().copied().collect()
    }

    /// The device of namespace `nsid`. One that does not exist has no blocks.
    pub fn namespace(&self, nsid: u32) -> Namespace {
        let mut namespaces = self.0.namespaces.borrow_mut();
        let state = namespaces.entry(nsid).or_insert_with(|| Rc::new(NamespaceState::absent(nsid)));
        Namespace::new(self.clone(), Rc::clone(state))
    }

    /// Sends a vendor-specific I/O command.
    ///
    /// # Errors
    /// The target's refusal; `Gone` or `TimedOut` when the association is or becomes dead; `Invalid` for an opcode below
    /// 80h, one whose direction does not fit its data, or more data than one command may carry.
    pub async fn vendor(&self, nsid: u32, command: VendorCommand) -> Result<VendorReply, Status> {
        let VendorCommand { opcode, cdw10_15, data, data_len } = command;
        let len = data.as_ref().map_or(data_len, |data| data.len());
        let fits = match Direction::of(opcode) {
            Some(Direction::None) => len == 0,
            Some(Direction::HostToController) => data_len == 0,
            Some(Direction::ControllerToHost) => data.is_none(),
            None => false,
        };
        if opcode < crate::wire::command::io::VENDOR_FIRST || !fits || len > self.data_bytes_max() {
            return Err(Status::Invalid);
        }
        let receive = (data_len > 0).then(|| DmaBuf::new(data_len));
        let sqe = Sqe::new(opcode, nsid, cdw10_15);
        let answer = self.submit(Submission { sqe, send: data, receive, patient: false }).await?;
        let result = answer.outcome?;
        Ok(VendorReply { result, data: answer.data.map(DmaBuf::freeze) })
    }

    /// Shuts the controller down in order and ends the association.
    pub async fn close(&self) {
        if !self.is_dead() {
            let shutdown = fabrics::property_set(property::CC, cc::EN | cc::SHN_NORMAL | cc::ENTRY_SIZES);
            // The answer does not matter: the connections close next, which ends the association all the same.
            let _answer =
                rt::timeout(limits::LAST_WORDS_LIMIT, self.0.admin.submit(Submission::new(shutdown))).await;
        }
        self.0.end();
    }

    /// The most data of one command, in bytes.
    pub(super) fn data_bytes_max(&self) -> usize {
        self.0.data_bytes_max
    }

    /// Sends an I/O command on the queue whose turn it is.
    pub(super) async fn submit(&self, submission: Submission) -> Result<Answer, Status> {
        let turn = self.0.next_queue.get();
        let Some(queue) = self.0.io.get(turn) else { return Err(Status::Invalid) };
        self.0.next_queue.set(if turn + 1 < self.0.io.len() { turn + 1 } else { 0 });
        queue.submit(submission).await
    }

    /// Reads part of a log page from the admin queue.
    pub(super) async fn log_page(&self, request: LogRequest) -> Result<DmaBuf, Status> {
        let len = usize::try_from(request.len_bytes).map_err(|_| Status::Invalid)?;
        data(&self.0.admin, request.sqe(), len).await
    }
}

impl Inner {
    fn end(&self) {
        self.life.end();
        self.admin.fail_all();
        for queue in &self.io {
            queue.fail_all();
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.end();
    }
}

/// Sends an admin command and waits for its result.
async fn result(admin: &Rc<Queue>, sqe: Sqe) -> Result<u64, Status> {
    Ok(admin.submit(Submission::new(sqe)).await?.outcome?)
}

/// Sends an admin command that answers with exactly `len` bytes.
async fn data(admin: &Rc<Queue>, sqe: Sqe, len: usize) -> Result<DmaBuf, Status> {
    let submission = Submission { receive: Some(DmaBuf::new(len)), ..Submission::new(sqe) };
    let answer = admin.submit(submission).await?;
    answer.outcome?;
    answer.data.filter(|data| data.len() == len).ok_or(Status::Internal)
}

/// The making of an association.
struct Connecting<'a> {
    options: &'a ConnectOptions,
    life: Rc<Life>,
    tasks: Vec<Task<()>>,
}

impl<'a> Connecting<'a> {
    fn new(options: &'a ConnectOptions) -> Self {
        Self { options, life: Rc::default(), tasks: Vec::new() }
    }

    fn error(&self, kind: ErrorKind, context: &'static str) -> Error {
        Error::new(kind, self.options.address, &self.options.subnqn, context)
    }

    fn failed(&self, context: &'static str) -> impl Fn(Status) -> Error {
        move |status| self.error(ErrorKind::of_status(status), context)
    }

    async fn run(mut self) -> Result<Association, Error> {
        let options = self.options;
        let names = [&options.subnqn, &options.hostnqn];
        let sane = names.into_iter().all(|name| fabrics::is_nqn(name))
            && options.queue_depth > 0
            && !options.command_limit.is_zero();
        if !sane {
            return Err(self.error(ErrorKind::Invalid, "options"));
        }
        let (admin, cntlid) =
            self.queue(0, CNTLID_DYNAMIC, ADMIN_ENTRIES, limits::ADMIN_IN_CAPSULE_BYTES).await?;
        let capabilities = self.enable(&admin).await?;
        let controller = self.identify(&admin).await?;
        let mut io = Vec::new();
        if options.subnqn != DISCOVERY_NQN {
            let in_capsule = (controller.ioccsz.get().saturating_mul(16)).saturating_sub(64);
            let in_capsule = if controller.icdoff.get() == 0 { in_capsule } else { 0 };
            let in_capsule = in_capsule.min(options.in_capsule_bytes_max);
            let entries_max = capabilities.queue_entries_max().min(u32::from(u16::MAX));
            let entries = (u32::from(options.queue_depth) + 1).min(entries_max).max(2);
            let entries = u16::try_from(entries).expect("limited above");
            for qid in 1..=self.queues_granted(&admin).await? {
                io.push(self.queue(qid, cntlid, entries, in_capsule).await?.0);
            }
        }
        let namespaces = Rc::new(RefCell::default());
        if options.subnqn != DISCOVERY_NQN {
            identify_namespaces(&admin, &namespaces).await.map_err(self.failed("identifying namespaces"))?;
        }
        let data_bytes_max = match controller.mdts {
            0 => u64::from(limits::DATA_BYTES_LIMIT),
            mdts => capabilities.page_bytes().saturating_mul(1 << u32::from(mdts).min(32)),
        };
        let data_bytes_max = data_bytes_max.min(u64::from(limits::DATA_BYTES_LIMIT));
        self.watch(&admin, &io, &namespaces, controller.oaes.get());
        Ok(Association(Rc::new(Inner {
            life: self.life,
            admin,
            io,
            next_queue: Cell::new(0),
            data_bytes_max: usize::try_from(data_bytes_max).expect("at most 4 MiB"),
            namespaces,
            _tasks: self.tasks,
        })))
    }

    /// Connects one queue: TCP, ICReq, Connect.
    async fn queue(
        &mut self,
        qid: u16,
        cntlid: u16,
        entries: u16,
        in_capsule_max: u32,
    ) -> Result<(Rc<Queue>, u16), Error> {
        let options = self.options;
        let stream = TcpStream::connect(options.address).await.map_err(|source| {
            self.error(ErrorKind::Unreachable, "opening a connection").with_source(source)
        })?;
        let outbox = Rc::new(Outbox::new());
        let TcpStream { receive, send, .. } = stream;
        let sending = {
            let (outbox, life) = (Rc::clone(&outbox), Rc::clone(&self.life));
            rt::spawn(async move {
                if outbox.send_all(send).await.is_err() {
                    life.end();
                }
            })
        };
        self.tasks.push(sending);
        let framing = Framing {
            role: Role::Host,
            phase: Phase::Initializing,
            digests: Digests::default(),
            in_capsule_max: 0,
            data_max: limits::DATA_BYTES_LIMIT,
        };
        let mut reader = Reader::new(receive, framing);
        let (sealer, h2c_data_max) = self.initialize(&mut reader, &outbox).await?;
        let depth = usize::from(entries) - 1;
        // Connect always carries its data in the capsule, whatever the queue allows afterwards.
        let queue_limits =
            QueueLimits { depth, in_capsule_max: limits::ADMIN_IN_CAPSULE_BYTES, h2c_data_max };
        let queue = Queue::new(Rc::clone(&self.life), Rc::clone(&outbox), sealer, queue_limits);
        self.tasks.push(rt::spawn(receive_all(Rc::clone(&queue), reader, outbox)));
        let connect = Connect {
            recfmt: 0,
            qid,
            sqsize: entries - 1,
            cattr: CATTR_NO_SQ_FLOW_CONTROL,
            kato_ms: if qid == 0 { options.keep_alive_ms } else { 0 },
        };
        let connect_data = ConnectData::new(options.hostid, cntlid, &options.subnqn, &options.hostnqn);
        let send = Some(DmaBytes::copy_of(connect_data.as_bytes()));
        let submission = Submission { send, ..Submission::new(connect.sqe()) };
        let answer = queue.submit(submission).await.map_err(self.failed("Connect"))?;
        let result = answer.outcome.map_err(|code| self.error(ErrorKind::Refused(code), "Connect"))?;
        let asked = u16::try_from(result >> 16 & 0xFFFF).expect("masked");
        self.authenticate(&queue, asked).await?;
        queue.set_in_capsule_max(in_capsule_max);
        Ok((queue, u16::try_from(result & 0xFFFF).expect("masked")))
    }

    /// Proves who this host is and lets the target do so, if there is a key. A target that does not ask is then no friend.
    async fn authenticate(&self, queue: &Rc<Queue>, asked: u16) -> Result<(), Error> {
        let failed = |why| self.error(ErrorKind::Unauthenticated(why), "authenticating");
        let key = match (&self.options.key, asked) {
            (None, 0) => return Ok(()),
            (None, _) => return Err(failed(Unauthenticated::NoKey)),
            (Some(_), 0) => return Err(failed(Unauthenticated::NotAsked)),
            (Some(key), fabrics::AUTHREQ_ATR) => key.clone(),
            _ => return Err(failed(Unauthenticated::Unsupported)),
        };
        let ConnectOptions { hostnqn, subnqn, .. } = self.options;
        let parties = Parties { key, hostnqn: hostnqn.clone(), subnqn: subnqn.clone() };
        authenticate::run(queue, parties).await.map_err(|kind| self.error(kind, "authenticating"))
    }

    /// ICReq and ICResp; returns the most data of one H2CData PDU too.
    async fn initialize(&self, reader: &mut Reader, outbox: &Outbox) -> Result<(Sealer, u32), Error> {
        let context = "agreeing on the connection";
        let digests = Digests { header: self.options.header_digest, data: self.options.data_digest };
        outbox.push(IcReq::new(digests).as_bytes());
        let frame =
            reader.next().await.map_err(|broken| self.error(ErrorKind::of_broken(broken), context))?;
        let Pdu::IcResp(response) = frame.pdu else { return Err(self.error(ErrorKind::Protocol, context)) };
        let answered = Digests::from_dgst(response.dgst);
        let sane = response.pfv.get() == 0 && response.cpda <= 31 && response.maxh2cdata.get() >= 4096;
        if !sane || answered != Some(digests) {
            return Err(self.error(ErrorKind::Protocol, context));
        }
        reader.framing.phase = Phase::Running;
        reader.framing.digests = digests;
        Ok((Sealer { digests, data_align: (response.cpda + 1) * 4 }, response.maxh2cdata.get()))
    }

    /// Enables the controller and waits until it is ready.
    async fn enable(&self, admin: &Rc<Queue>) -> Result<Capabilities, Error> {
        let failed = self.failed("enabling the controller");
        let get = |offset, wide| result(admin, fabrics::property_get(offset, wide));
        let capabilities = Capabilities(get(property::CAP, true).await.map_err(&failed)?);
        let enable = fabrics::property_set(property::CC, cc::EN | cc::ENTRY_SIZES);
        result(admin, enable).await.map_err(&failed)?;
        // The limit on connecting as a whole ends this loop.
        loop {
            let status = get(property::CSTS, false).await.map_err(&failed)?;
            if status & u64::from(csts::CFS) != 0 {
                return Err(self.error(ErrorKind::Protocol, "the controller reports a fatal status"));
            }
            if status & u64::from(csts::RDY) != 0 {
                return Ok(capabilities);
            }
            rt::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn identify(&self, admin: &Rc<Queue>) -> Result<IdentifyController, Error> {
        let failed = self.failed("identifying the controller");
        let sqe = Sqe::new(admin::IDENTIFY, 0, [u32::from(cns::CONTROLLER), 0, 0, 0, 0, 0]);
        let page = data(admin, sqe, IDENTIFY_LEN).await.map_err(failed)?;
        Ok(IdentifyController::read_from_bytes(&page).expect("exactly 4096 bytes"))
    }

    async fn queues_granted(&self, admin: &Rc<Queue>) -> Result<u16, Error> {
        let wanted = self.options.queues.max(1);
        let value = feature::number_of_queues(wanted);
        let sqe =
            Sqe::new(admin::SET_FEATURES, 0, [u32::from(feature::id::NUMBER_OF_QUEUES), value, 0, 0, 0, 0]);
        let granted = result(admin, sqe).await.map_err(self.failed("asking for I/O queues"))?;
        let granted = feature::queue_count(u32::try_from(granted & 0xFFFF_FFFF).expect("masked"));
        Ok(wanted.min(u16::try_from(granted).unwrap_or(u16::MAX)))
    }

    /// Starts what watches over the association.
    fn watch(&mut self, admin: &Rc<Queue>, io: &[Rc<Queue>], namespaces: &Rc<Namespaces>, oaes: u32) {
        let queues: Vec<_> = io.iter().chain([admin]).cloned().collect();
        self.tasks.push(rt::spawn(watchdog(queues, self.options.command_limit)));
        if self.options.keep_alive_ms > 0 {
            let kato = Duration::from_millis(u64::from(self.options.keep_alive_ms));
            self.tasks.push(rt::spawn(keep_alive(Rc::clone(admin), kato)));
        }
        if oaes & event::NAMESPACE != 0 && !io.is_empty() {
            self.tasks.push(rt::spawn(follow_events(Rc::clone(admin), Rc::clone(namespaces))));
        }
    }
}

/// Receives for one queue; a connection that breaks ends the association.
async fn receive_all(queue: Rc<Queue>, mut reader: Reader, outbox: Rc<Outbox>) {
    let life = Rc::clone(&queue.life);
    let dead = async {
        life.dead().await;
        Broken::Closed
    };
    let broken = rt::race(dead, queue.pump(&mut reader)).await;
    if let Broken::Violation(violation) = broken {
        tracing::warn!(fes = violation.fes, fei = violation.fei, "target broke the protocol");
        outbox.push(&reader.last_words(kind::H2C_TERM_REQ, violation));
    }
    life.end();
    queue.fail_all();
    if let Broken::Violation(_) = broken {
        // The connection closes with the reader; until then the target reads why.
        let _in_time = rt::timeout(limits::LAST_WORDS_LIMIT, reader.drain()).await;
    }
}

/// Ends the association when a command takes too long: it fails with `TimedOut`, the others with `Gone`.
async fn watchdog(queues: Vec<Rc<Queue>>, limit: Duration) {
    let Some(life) = queues.first().map(|queue| Rc::clone(&queue.life)) else { return };
    while !life.is_dead() {
        rt::race(rt::sleep(limit / TICKS_PER_LIMIT), life.dead()).await;
        let oldest = life.tick().wrapping_sub(TICKS_PER_LIMIT);
        let late = queues.iter().filter(|queue| queue.fail_late(oldest)).count();
        if late > 0 {
            tracing::warn!(?limit, "command took too long; the association ends");
            life.end();
        } else if !queues.iter().any(|queue| queue.is_busy()) {
            life.until_woken().await;
        }
    }
}

/// Tells the target that this host lives, and learns that the target does.
async fn keep_alive(admin: Rc<Queue>, kato: Duration) {
    let life = Rc::clone(&admin.life);
    loop {
        rt::sleep(kato / 2).await;
        let keep_alive = Submission::new(Sqe::new(admin::KEEP_ALIVE, 0, [0; 6]));
        match rt::timeout(kato, admin.submit(keep_alive)).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) => return,
            Err(rt::Elapsed) => {
                tracing::warn!(?kato, "keep-alive was not answered; the association ends");
                life.end();
                return;
            }
        }
    }
}

/// Waits for notices that a namespace has changed, and looks again.
async fn follow_events(admin: Rc<Queue>, namespaces: Rc<Namespaces>) {
    let config = Sqe::new(
        admin::SET_FEATURES,
        0,
        [u32::from(feature::id::ASYNC_EVENT_CONFIG), event::NAMESPACE, 0, 0, 0, 0],
    );
    let followed = async {
        result(&admin, config).await?;
        loop {
            let request = Sqe::new(admin::ASYNC_EVENT_REQUEST, 0, [0; 6]);
            let submission = Submission { patient: true, ..Submission::new(request) };
            let event = admin.submit(submission).await?.outcome?;
            if event & 0xFFFF_FFFF == u64::from(notice::NAMESPACE) {
                let changed = LogRequest {
                    id: log::id::CHANGED_NAMESPACES,
                    retain_event: false,
                    len_bytes: 4096,
                    offset_bytes: 0,
                };
                data(&admin, changed.sqe(), 4096).await?;
                identify_namespaces(&admin, &namespaces).await?;
            }
        }
    };
    let ended: Result<(), Status> = followed.await;
    if let Err(status) = ended
        && !admin.life.is_dead()
    {
        tracing::warn!(%status, "changes of namespaces are not followed any more");
    }
}

/// Reads the sizes of all namespaces.
async fn identify_namespaces(admin: &Rc<Queue>, namespaces: &Namespaces) -> Result<(), Status> {
    let list = Sqe::new(admin::IDENTIFY, 0, [u32::from(cns::NAMESPACE_LIST), 0, 0, 0, 0, 0]);
    let list = identify::parse_namespace_list(&data(admin, list, IDENTIFY_LEN).await?);
    for nsid in list.into_iter().filter(|&nsid| nsid != NSID_ALL).take(limits::NAMESPACES_MAX) {
        let identify = Sqe::new(admin::IDENTIFY, nsid, [u32::from(cns::NAMESPACE), 0, 0, 0, 0, 0]);
        let page = data(admin, identify, IDENTIFY_LEN).await?;
        let page = IdentifyNamespace::read_from_bytes(&page).expect("exactly 4096 bytes");
        let format = page.lbaf[usize::from(page.flbas & 0x0F)];
        // Metadata and other block sizes are not supported: such a namespace has no blocks for us.
        let geometry = match (format.lbads, format.ms.get()) {
            (lbads @ (9 | 12), 0) => Geometry { block_size: 1 << lbads, blocks: BlockCount(page.nsze.get()) },
            _ => continue,
        };
        // The size in bytes must not overflow, whatever the target says.
        if geometry.blocks.0 > u64::MAX / u64::from(geometry.block_size) {
            continue;
        }
        let state = {
            let mut namespaces = namespaces.borrow_mut();
            Rc::clone(namespaces.entry(nsid).or_insert_with(|| Rc::new(NamespaceState::absent(nsid))))
        };
        state.set_geometry(geometry);
    }
    Ok(())
}
