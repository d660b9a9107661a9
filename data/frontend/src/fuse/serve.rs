//! Serves one device as one file to the kernel's FUSE client, on the reactor.
//!
//! On the path of a byte: the kernel's loop driver asks for blocks of a file; here these become operations of a
//! [`Device`]. One task reads requests from `/dev/fuse`, each request is then a task of its own.
//!
//! # Invariants
//! 1. Requests are read one at a time and take their place in [`Overlaps`] in that order; they leave it when the kernel
//!    has the answer. So at the death of a server nothing that overlaps an unanswered change was executed after it.
//! 2. After a takeover the kernel is told to send everything unanswered again before anything new is read.
//! 3. A flush reaches the device before it is answered; so does a write with `O_DSYNC`.
//! 4. The page cache never holds the file's data (`FOPEN_DIRECT_IO`, no write-back): an answered write is in the device.

use super::abi::{self, Attr, InHeader, Malformed, Request, Session, init_flags, open_flags};
use super::overlap::{Overlaps, Turn};
use device::{BlockCount, Device, Lba, Status};
use rt::fd::Fd;
use rt::sync::{Permit, Semaphore};
use rt::{DmaBuf, Durability, Errno, Part};
use std::cell::Cell;
use std::os::fd::OwnedFd;
use std::rc::Rc;

/// Name of the only file.
pub(crate) const FILE_NAME: &str = "volume";
/// Largest payload of a write: what 256 pages hold, the kernel's limit without a changed sysctl.
const WRITE_BYTES_MAX: u32 = 1 << 20;
/// Asynchronous requests that the kernel may have under way.
const BACKGROUND_MAX: u16 = 256;
/// Requests being executed; above the kernel's own bound, so that it never holds back a flush behind writes.
const REQUESTS_MAX: usize = 512;
/// After so many requests read without a pause those that were read get their turn.
const READS_IN_A_ROW: u32 = 8;
/// Payloads up to this length are copied out of the large read buffer, which then serves the next request.
const COPY_BYTES_MAX: usize = 128 << 10;
const PAGE_BYTES: usize = 4096;
/// Names and attributes never change behind the kernel's back: growth invalidates them.
const VALID_SECS: u64 = 1 << 30;

/// What an open asks for and `fallocate` modes, from `fcntl.h` and `falloc.h`.
const O_ACCMODE: u32 = 3;
const O_DSYNC: u32 = 0o10_000;
const KEEP_SIZE: u32 = 0x01;
const PUNCH_HOLE: u32 = 0x02;
const ZERO_RANGE: u32 = 0x10;

/// Counts of what was served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Completed reads.
    pub reads: u64,
    /// Completed writes.
    pub writes: u64,
    /// Completed flushes.
    pub flushes: u64,
    /// Completed unmaps and write-zeroes.
    pub unmaps: u64,
    /// Requests answered with an error of the device.
    pub errors: u64,
    /// Requests that the kernel sent again after a takeover.
    pub resent: u64,
}

/// How the service ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The file system was unmounted, or its connection aborted.
    Unmounted,
    /// The descriptor failed.
    Failed(Errno),
}

/// The kernel's end of a served file, whatever the device is.
#[derive(Debug)]
pub(crate) struct Connection {
    fd: Fd,
    session: Cell<Option<u64>>,
    counters: Cell<Counters>,
}

impl Connection {
    /// Over `fd`, an open `/dev/fuse`.
    pub(crate) fn new(fd: OwnedFd) -> Rc<Self> {
        Rc::new(Self { fd: Fd::new(fd), session: Cell::new(None), counters: Cell::default() })
    }

    /// What has been served so far.
    pub(crate) fn counters(&self) -> Counters {
        self.counters.get()
    }

    /// Whether the kernel can send unanswered requests again; false before it has introduced itself.
    pub(crate) fn can_resend(&self) -> bool {
        self.session.get().is_some_and(|flags| flags & init_flags::HAS_RESEND != 0)
    }

    /// Asks the kernel to send every request again that an earlier server read and did not answer.
    pub(crate) async fn resend(&self) -> Result<(), Errno> {
        self.session.set(Some(init_flags::HAS_RESEND));
        self.fd.write_parts(&[Part::Bytes(abi::notify_resend())]).await.map(drop)
    }

    /// Tells the kernel that the device has grown, so that it asks for the size again.
    pub(crate) async fn size_changed(&self) -> Result<(), Errno> {
        match self.fd.write_parts(&[Part::Bytes(abi::notify_attributes_changed(abi::FILE))]).await {
            // The kernel does not hold the inode: then it holds no old size either.
            Ok(_) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn count(&self, change: impl FnOnce(&mut Counters)) {
        let mut counters = self.counters.get();
        change(&mut counters);
        self.counters.set(counters);
    }

    async fn send(&self, parts: &[Part]) {
        match self.fd.write_parts(parts).await {
            // Nobody waits any more: the request was interrupted, or the file system is gone.
            Ok(_) | Err(Errno::NOENT | Errno::NODEV | Errno::CONNABORTED) => {}
            Err(error) => tracing::warn!(%error, "the kernel did not take an answer"),
        }
    }
}

/// One device served over one connection.
struct Server<D> {
    connection: Rc<Connection>,
    device: Rc<D>,
    block_size: u32,
    read_only: bool,
    overlaps: Overlaps,
    slots: Semaphore,
}

/// Serves `device` until the file system is unmounted; returns when everything that was read has been answered.
///
/// # Shape
/// The device's block size divides `block_size`, which the kernel is told.
pub(crate) async fn serve<D: Device + 'static>(
    connection: Rc<Connection>,
    device: Rc<D>,
    block_size: u32,
    read_only: bool,
) -> Ended {
    assert!(
        block_size.is_multiple_of(device.geometry().block_size),
        "blocks of the file are whole blocks of the device"
    );
    let server = Server {
        connection,
        device,
        block_size,
        read_only,
        overlaps: Overlaps::default(),
        slots: Semaphore::new(REQUESTS_MAX),
    };
    Rc::new(server).run().await
}

impl<D: Device + 'static> Server<D> {
    async fn run(self: Rc<Self>) -> Ended {
        let mut spare = Buffers::new();
        let mut read = 0;
        let ended = loop {
            read += 1;
            if read % READS_IN_A_ROW == 0 {
                rt::yield_now().await;
            }
            let slot = self.slots.acquire(1).await;
            let (head, data) = spare.take();
            let (result, head, data) = self.connection.fd.read_parts(head, data).await;
            match result {
                // Nothing is read at the end of a socket, which tests use.
                Ok(0) | Err(Errno::NODEV | Errno::CONNABORTED) => break Ended::Unmounted,
                Ok(len) => self.receive(&mut spare, Received { head, data, len }, slot).await,
                // The request was withdrawn before it was read.
                Err(Errno::NOENT | Errno::INTR | Errno::AGAIN) => spare.give_back(head, data),
                Err(error) => break Ended::Failed(error),
            }
        };
        // Every task holds a slot until its answer is written.
        drop(self.slots.acquire(REQUESTS_MAX).await);
        ended
    }

    async fn receive(self: &Rc<Self>, spare: &mut Buffers, received: Received, slot: Permit) {
        let Received { head, data, len } = received;
        let head_len = len.min(abi::WRITE_HEAD_LEN);
        let (header, request) = match abi::decode(&head[..head_len], &data[..len - head_len]) {
            Ok(decoded) => decoded,
            Err(malformed) => {
                spare.give_back(head, data);
                if let Malformed::Body(header) = malformed {
                    self.answer(abi::reply_error(header.unique, Errno::INVAL)).await;
                }
                return;
            }
        };
        if header.unique & abi::UNIQUE_RESEND != 0 {
            self.count(|counters| counters.resent += 1);
        }
        match request {
            Request::Read { offset, size } => {
                spare.give_back(head, data);
                self.start_read(header.unique, offset, size, slot);
            }
            Request::Write { offset, size, flags } => {
                let payload = spare.payload(head, data, size as usize);
                self.start_write(header.unique, offset, payload, flags, slot);
            }
            Request::Fallocate { offset, length, mode } => {
                spare.give_back(head, data);
                self.start_fallocate(header.unique, offset, length, mode, slot);
            }
            Request::Fsync => {
                spare.give_back(head, data);
                let server = Rc::clone(self);
                rt::spawn(async move {
                    server.flush(header.unique).await;
                    drop(slot);
                })
                .detach();
            }
            request => {
                spare.give_back(head, data);
                if let Some(reply) = self.describe(&header, &request) {
                    self.answer(reply).await;
                }
            }
        }
    }

    /// Answers everything that needs no I/O on the device; `None` where no answer is wanted.
    fn describe(&self, header: &InHeader, request: &Request) -> Option<Vec<u8>> {
        let unique = header.unique;
        Some(match request {
            Request::Init { major, minor, flags } => self.introduce(unique, *major, *minor, *flags),
            Request::Lookup { name } if header.node == abi::ROOT && name == FILE_NAME.as_bytes() => {
                abi::reply_entry(unique, self.attributes(abi::FILE), VALID_SECS)
            }
            Request::Lookup { .. } => abi::reply_error(unique, Errno::NOENT),
            Request::GetAttr | Request::SetAttr { resizes: false } => match header.node {
                node @ (abi::ROOT | abi::FILE) => abi::reply_attr(unique, self.attributes(node), VALID_SECS),
                _ => abi::reply_error(unique, Errno::NOENT),
            },
            Request::SetAttr { resizes: true } => abi::reply_error(unique, Errno::PERM),
            Request::Open { flags } if self.read_only && flags & O_ACCMODE != 0 => {
                abi::reply_error(unique, Errno::ROFS)
            }
            Request::Open { .. } => {
                let flags = open_flags::DIRECT_IO | open_flags::NOFLUSH | open_flags::PARALLEL_DIRECT_WRITES;
                abi::reply_open(unique, flags)
            }
            Request::OpenDir => abi::reply_open(unique, 0),
            Request::ReadDir { offset, size } => {
                let entries: [(u64, u32, &[u8]); 3] =
                    [(abi::ROOT, 4, b"."), (abi::ROOT, 4, b".."), (abi::FILE, 8, FILE_NAME.as_bytes())];
                abi::reply_directory(unique, &entries, *offset, *size)
            }
            Request::Statfs => {
                let blocks = self.size_bytes() / u64::from(self.block_size);
                abi::reply_statfs(unique, blocks, self.block_size)
            }
            Request::Release | Request::Destroy => abi::reply_empty(unique),
            Request::Forget => return None,
            // The kernel remembers most of these and does not ask again.
            Request::Unsupported { .. } => abi::reply_error(unique, Errno::NOSYS),
            Request::Read { .. } | Request::Write { .. } | Request::Fallocate { .. } | Request::Fsync => {
                unreachable!("handled by the caller")
            }
        })
    }

    fn introduce(&self, unique: u64, major: u32, minor: u32, offered: u64) -> Vec<u8> {
        if major > abi::MAJOR {
            return abi::reply_init_version(unique);
        }
        if major < abi::MAJOR || minor < abi::MINOR_MIN {
            return abi::reply_error(unique, Errno::PROTO);
        }
        let wanted = init_flags::ASYNC_READ
            | init_flags::BIG_WRITES
            | init_flags::ASYNC_DIO
            | init_flags::PARALLEL_DIROPS
            | init_flags::MAX_PAGES
            | init_flags::INIT_EXT
            | init_flags::HAS_RESEND;
        let flags = offered & wanted;
        self.connection.session.set(Some(flags));
        abi::reply_init(
            unique,
            Session { flags, write_bytes_max: WRITE_BYTES_MAX, background_max: BACKGROUND_MAX },
        )
    }

    fn size_bytes(&self) -> u64 {
        self.device.geometry().size().0
    }

    fn attributes(&self, node: u64) -> Attr {
        let is_file = node == abi::FILE;
        let size = if is_file { self.size_bytes() } else { 0 };
        Attr {
            ino: node,
            size,
            blocks: size / 512,
            times: [0; 3],
            nanos: [0; 3],
            mode: if is_file { 0o100_600 } else { 0o040_700 },
            nlink: if is_file { 1 } else { 2 },
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            rdev: 0,
            block_size: self.block_size,
            flags: 0,
        }
    }

    fn start_read(self: &Rc<Self>, unique: u64, offset: u64, size: u32, slot: Permit) {
        let server = Rc::clone(self);
        // A file that ends within the range is read up to its end.
        let size = u64::from(size).min(self.size_bytes().saturating_sub(offset));
        let turn = self.overlaps.enter(offset..offset.saturating_add(size), false);
        rt::spawn(async move {
            let reply = match server.read(offset, size, &turn).await {
                Ok(data) => {
                    server.count(|counters| counters.reads += 1);
                    let data = data.freeze();
                    vec![Part::Bytes(abi::reply_data_head(unique, data.len())), Part::Data(data)]
                }
                Err(errno) => vec![Part::Bytes(server.refusal(unique, errno))],
            };
            server.send(&reply).await;
            drop((turn, slot));
        })
        .detach();
    }

    async fn read(&self, offset: u64, size: u64, turn: &Turn) -> Result<DmaBuf, Errno> {
        if size == 0 {
            return Ok(DmaBuf::new(0));
        }
        let (lba, _) = self.blocks(offset, size)?;
        turn.comes().await;
        let len = usize::try_from(size).map_err(|_| Errno::INVAL)?;
        self.device.read(lba, DmaBuf::new(len)).await.map_err(errno_of)
    }

    fn start_write(self: &Rc<Self>, unique: u64, offset: u64, payload: DmaBuf, flags: u32, slot: Permit) {
        let server = Rc::clone(self);
        let size = payload.len() as u64;
        let turn = self.overlaps.enter(offset..offset.saturating_add(size), true);
        rt::spawn(async move {
            let reply = match server.write(offset, payload, flags, &turn).await {
                Ok(()) => {
                    server.count(|counters| counters.writes += 1);
                    abi::reply_written(unique, u32::try_from(size).expect("it came as 32 bits"))
                }
                Err(errno) => server.refusal(unique, errno),
            };
            server.answer(reply).await;
            drop((turn, slot));
        })
        .detach();
    }

    async fn write(&self, offset: u64, payload: DmaBuf, flags: u32, turn: &Turn) -> Result<(), Errno> {
        self.check_writable()?;
        let (lba, _) = self.blocks(offset, payload.len() as u64)?;
        let durability = if flags & O_DSYNC == 0 { Durability::Cached } else { Durability::Durable };
        turn.comes().await;
        self.device.write(lba, payload.freeze(), durability).await.map_err(errno_of)
    }

    fn start_fallocate(self: &Rc<Self>, unique: u64, offset: u64, length: u64, mode: u32, slot: Permit) {
        let server = Rc::clone(self);
        let turn = self.overlaps.enter(offset..offset.saturating_add(length), true);
        rt::spawn(async move {
            let reply = match server.fallocate(offset, length, mode, &turn).await {
                Ok(()) => {
                    server.count(|counters| counters.unmaps += 1);
                    abi::reply_empty(unique)
                }
                Err(errno) => server.refusal(unique, errno),
            };
            server.answer(reply).await;
            drop((turn, slot));
        })
        .detach();
    }

    async fn fallocate(&self, offset: u64, length: u64, mode: u32, turn: &Turn) -> Result<(), Errno> {
        if !matches!(mode & !KEEP_SIZE, PUNCH_HOLE | ZERO_RANGE) {
            return Err(Errno::OPNOTSUPP);
        }
        self.check_writable()?;
        let (lba, count) = self.blocks(offset, length)?;
        turn.comes().await;
        let done = if mode & PUNCH_HOLE == 0 {
            self.device.write_zeroes(lba, count, Durability::Cached).await
        } else {
            self.device.unmap(lba, count).await
        };
        done.map_err(errno_of)
    }

    async fn flush(&self, unique: u64) {
        let reply = match self.device.flush().await {
            Ok(()) => {
                self.count(|counters| counters.flushes += 1);
                abi::reply_empty(unique)
            }
            Err(status) => self.refusal(unique, errno_of(status)),
        };
        self.answer(reply).await;
    }

    fn check_writable(&self) -> Result<(), Errno> {
        if self.read_only { Err(Errno::ROFS) } else { Ok(()) }
    }

    /// The blocks of the device that `len` bytes at `offset` are.
    fn blocks(&self, offset: u64, len: u64) -> Result<(Lba, BlockCount), Errno> {
        let geometry = self.device.geometry();
        let block_size = u64::from(geometry.block_size);
        if !offset.is_multiple_of(block_size) || !len.is_multiple_of(block_size) {
            return Err(Errno::INVAL);
        }
        let lba = Lba(offset / block_size);
        let count = geometry.check_blocks(lba, BlockCount(len / block_size)).map_err(errno_of)?;
        Ok((lba, count))
    }

    fn refusal(&self, unique: u64, errno: Errno) -> Vec<u8> {
        self.count(|counters| counters.errors += 1);
        abi::reply_error(unique, errno)
    }

    fn count(&self, change: impl FnOnce(&mut Counters)) {
        self.connection.count(change);
    }

    async fn answer(&self, reply: Vec<u8>) {
        self.send(&[Part::Bytes(reply)]).await;
    }

    async fn send(&self, parts: &[Part]) {
        self.connection.send(parts).await;
    }
}

/// What the kernel is told about a failure of the device.
pub(crate) const fn errno_of(status: Status) -> Errno {
    match status {
        Status::OutOfRange | Status::Invalid => Errno::INVAL,
        Status::NoSpace => Errno::NOSPC,
        Status::TimedOut => Errno::TIMEDOUT,
        Status::Corrupt => Errno::ILSEQ,
        Status::MediaRead
        | Status::MediaWrite
        | Status::Fenced
        | Status::Gone
        | Status::Aborted
        | Status::Gap
        | Status::Internal => Errno::IO,
    }
}

/// One request as it was read.
struct Received {
    head: Vec<u8>,
    data: DmaBuf,
    len: usize,
}

/// The buffers for the next read: a head for header and write arguments, and an aligned one for the payload.
struct Buffers(Option<(Vec<u8>, DmaBuf)>);

impl Buffers {
    const fn new() -> Self {
        Self(None)
    }

    fn take(&mut self) -> (Vec<u8>, DmaBuf) {
        self.0.take().unwrap_or_else(|| {
            let mut data = DmaBuf::new(WRITE_BYTES_MAX as usize);
            // Every page is there before the kernel copies into it: a page fault in a process that is being killed
            // would end the request with an error, where an unanswered one is sent again.
            data.iter_mut().step_by(PAGE_BYTES).for_each(|byte| *byte = 0);
            (vec![0; abi::WRITE_HEAD_LEN], data)
        })
    }

    fn give_back(&mut self, head: Vec<u8>, data: DmaBuf) {
        self.0 = Some((head, data));
    }

    /// The payload of a write: a copy if it is short, else the buffer itself.
    fn payload(&mut self, head: Vec<u8>, mut data: DmaBuf, len: usize) -> DmaBuf {
        if len <= COPY_BYTES_MAX {
            let copy = DmaBuf::copy_of(&data[..len]);
            self.give_back(head, data);
            return copy;
        }
        data.truncate(len);
        data
    }
}

#[cfg(test)]
#[path = "serve_tests.rs"]
mod tests;
