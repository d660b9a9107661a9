//! The simulated disks: operations in flight, latency, and faults by rule. Below them lies the [`Medium`].
//!
//! # Fault model
//! - An operation takes a random time, now and then a long one; operations overtake each other. Its blocks are read or
//!   applied in one or two bursts somewhere between submission and completion, so that concurrent operations on the
//!   same blocks resolve in any order and a read may see half of a concurrent write.
//! - When a process dies, each of its writes in flight is applied wholly, partly or not at all, at that moment.
//! - A dropped future cancels its operation only if nothing was applied yet, and even then only perhaps.
//! - By rule, for a range of bytes and with a probability: reads, writes and flushes fail (`EIO`); flushes and FUA lie;
//!   writes vanish or hit other blocks. A failed write is applied wholly, partly or not at all; a failed flush may have lost what it should have flushed.
//! - A block may rot (one flipped bit) or become unreadable until it is written again; a disk may stop answering.

mod faults;
mod file;
mod medium;

pub use faults::{DiskFault, SimDisk};
pub(crate) use file::SimFile;

use super::executor::Event;
use super::node::ProcessId;
use super::trace::{Fate, Kind};
use super::world::State;
use crate::file::Durability;
use crate::{DmaBuf, DmaBytes, Errno};
use faults::Rule;
use medium::{Medium, some_of};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::task::{Poll, Waker};
use std::time::Duration;

/// How long something takes.
#[derive(Clone, Copy, Debug)]
pub struct Latency {
    /// At least this.
    pub low: Duration,
    /// Usually at most this.
    pub high: Duration,
    /// How many times in a thousand it takes longer.
    pub slow_permille: u16,
    /// At most this then.
    pub slow: Duration,
}

impl Latency {
    pub(super) fn draw(&self, fate: &mut Fate) -> u64 {
        let nanos =
            |duration: Duration| u64::try_from(duration.as_nanos()).expect("a latency below centuries");
        let (low, high, slow) = (nanos(self.low), nanos(self.high), nanos(self.slow));
        if fate.rng.permille(u64::from(self.slow_permille)) {
            fate.rng.between(high.min(slow), high.max(slow))
        } else {
            fate.rng.between(low, high.max(low))
        }
    }
}

const DISK_LATENCY: Latency = Latency {
    low: Duration::from_micros(8),
    high: Duration::from_micros(120),
    slow_permille: 3,
    slow: Duration::from_millis(20),
};

/// What a program asked of a disk.
#[derive(Debug)]
pub(super) enum Request {
    Read { offset: u64, buf: DmaBuf },
    Write { offset: u64, data: DmaBytes, durability: Durability },
    Zero { blocks: Range<u64> },
    Sync,
}

#[derive(Debug)]
enum Work {
    Read {
        buf: DmaBuf,
    },
    Write {
        data: DmaBytes,
        write: u64,
        durability: Durability,
    },
    Zero {
        write: u64,
        blocks: Range<u64>,
    },
    Sync {
        barrier: u64,
    },
    /// Nothing, or nothing any more.
    Nothing,
}

/// The part of a request that lies in one block.
struct Span {
    block: u64,
    start: usize,
    bytes: Range<usize>,
}

#[derive(Debug)]
struct Op {
    process: ProcessId,
    open: u64,
    offset: u64,
    len: u64,
    work: Work,
    /// Blocks transferred so far, from the front or from the back.
    moved: usize,
    backwards: bool,
    /// The time from the first burst to completion, while the first is still to come.
    second_leg: Option<u64>,
    abandoned: bool,
    waker: Option<Waker>,
    result: Option<Result<Option<DmaBuf>, Errno>>,
}

/// A file of a process.
#[derive(Debug)]
struct Open {
    process: ProcessId,
    writes: bool,
    closed: bool,
}

/// One disk of one node.
#[derive(Debug)]
pub(super) struct Disk {
    node: usize,
    path: PathBuf,
    pub(super) len_bytes: u64,
    pub(super) block_size: u32,
    medium: Medium,
    unreadable: BTreeSet<u64>,
    opens: BTreeMap<u64, Open>,
    next_open: u64,
    ops: BTreeMap<u64, Op>,
    next_op: u64,
    latency: Latency,
    rules: Vec<Rule>,
    hangs: bool,
    unplugged: bool,
    /// Operations whose next step came while the disk did not answer.
    held: Vec<u64>,
}

impl Disk {
    fn new(node: usize, path: &Path, len_bytes: u64, block_size: u32) -> Self {
        Self {
            node,
            path: path.into(),
            len_bytes,
            block_size,
            medium: Medium::new(block_size as usize),
            unreadable: BTreeSet::new(),
            opens: BTreeMap::new(),
            next_open: 0,
            ops: BTreeMap::new(),
            next_op: 0,
            latency: DISK_LATENCY,
            rules: Vec::new(),
            hangs: false,
            unplugged: false,
            held: Vec::new(),
        }
    }

    /// Opens the disk, for writing under its exclusive lock.
    fn open(&mut self, process: ProcessId, writes: bool) -> Result<u64, Errno> {
        if self.unplugged {
            return Err(Errno::NXIO);
        }
        if writes && self.opens.values().any(|open| open.writes) {
            return Err(Errno::WOULDBLOCK);
        }
        self.next_open += 1;
        self.opens.insert(self.next_open, Open { process, writes, closed: false });
        Ok(self.next_open)
    }

    /// Closes a file; its lock goes with its last operation.
    fn close(&mut self, open: u64) {
        if let Some(state) = self.opens.get_mut(&open) {
            state.closed = true;
        }
        self.finish_close(open);
    }

    fn finish_close(&mut self, open: u64) {
        let busy = self.ops.values().any(|op| op.open == open);
        if !busy && self.opens.get(&open).is_some_and(|open| open.closed) {
            self.opens.remove(&open);
        }
    }

    fn span_count(&self, offset: u64, len: u64) -> usize {
        let block = u64::from(self.block_size);
        usize::try_from((offset + len).div_ceil(block) - offset / block).expect("a buffer fits into memory")
    }

    /// The `index`th block of a transfer.
    fn span(&self, offset: u64, len: u64, index: usize) -> Span {
        let block_size = u64::from(self.block_size);
        let block = offset / block_size + index as u64;
        let from = (block * block_size).max(offset);
        let to = ((block + 1) * block_size).min(offset + len);
        let within = |bytes: u64| usize::try_from(bytes).expect("a buffer fits into memory");
        Span { block, start: within(from % block_size), bytes: within(from - offset)..within(to - offset) }
    }

    fn submit(&mut self, process: ProcessId, open: u64, request: Request, fate: &mut Fate) -> (u64, u64) {
        let (offset, len, work) = match request {
            // A file of a disk that was pulled: nothing is done, and the operation fails.
            _ if !self.opens.contains_key(&open) => (0, 0, Work::Nothing),
            Request::Read { offset, buf } => (offset, buf.len() as u64, Work::Read { buf }),
            Request::Write { offset, data, durability } => {
                fate.note_bytes(&data);
                let range = offset..offset + data.len() as u64;
                if self.goes_wrong(DiskFault::LostWrite, &range, fate) {
                    fate.counters.writes_dropped += 1;
                    (offset, 0, Work::Nothing)
                } else {
                    let offset = self.misdirect(range, fate);
                    let (len, write) = (data.len() as u64, self.medium.begin());
                    (offset, len, Work::Write { data, write, durability })
                }
            }
            Request::Zero { blocks } => {
                let block_size = u64::from(self.block_size);
                let (offset, len) = (blocks.start * block_size, (blocks.end - blocks.start) * block_size);
                (offset, len, Work::Zero { write: self.medium.begin(), blocks })
            }
            Request::Sync => (0, 0, Work::Sync { barrier: self.medium.barrier() }),
        };
        self.next_op += 1;
        fate.note(Kind::DiskSubmit, offset, len);
        let latency = self.latency.draw(fate);
        let first_leg = if fate.rng.permille(500) { Some(fate.rng.below(latency + 1)) } else { None };
        let op = Op {
            process,
            open,
            offset,
            len,
            work,
            moved: 0,
            backwards: fate.rng.permille(500),
            second_leg: first_leg.map(|first| latency - first),
            abandoned: false,
            waker: None,
            result: None,
        };
        self.ops.insert(self.next_op, op);
        (self.next_op, first_leg.unwrap_or(latency))
    }

    /// One step of an operation: a first burst, or completion. Returns the time to the next step.
    fn step(&mut self, id: u64, fate: &mut Fate) -> Option<u64> {
        if self.hangs {
            self.held.push(id);
            return None;
        }
        // The operation of a dead process, or one that was cancelled, is gone.
        let mut op = self.ops.remove(&id)?;
        let spans = self.span_count(op.offset, op.len);
        if let Some(rest) = op.second_leg.take() {
            let upto = fate.rng.index(spans + 1);
            self.transfer(&mut op, upto);
            fate.note(Kind::DiskApply, id, upto as u64);
            self.ops.insert(id, op);
            return Some(rest);
        }
        let result = self.finish(&mut op, spans, fate);
        fate.note(Kind::DiskDone, id, u64::from(result.is_ok()));
        let (open, abandoned) = (op.open, op.abandoned);
        if !abandoned {
            let buf = match op.work {
                Work::Read { buf } => Some(buf),
                _ => None,
            };
            op.work = Work::Nothing;
            op.result = Some(result.map(|()| buf));
            if let Some(waker) = op.waker.take() {
                waker.wake();
            }
            self.ops.insert(id, op);
        }
        self.finish_close(open);
        None
    }

    /// Moves blocks until `upto` of them have been moved.
    fn transfer(&mut self, op: &mut Op, upto: usize) {
        let spans = self.span_count(op.offset, op.len);
        if let Work::Zero { write, blocks } = &op.work {
            // Zeroes have no length in memory: they are applied at once, by the last burst.
            if upto == spans && op.moved < spans {
                self.medium.apply_zeroes(*write, blocks.clone());
                op.moved = spans;
            }
            return;
        }
        for step in op.moved..upto {
            let span = self.span(op.offset, op.len, if op.backwards { spans - 1 - step } else { step });
            match &mut op.work {
                Work::Read { buf } => self.medium.read(span.block, span.start, &mut buf[span.bytes]),
                Work::Write { data, write, .. } => {
                    self.medium.apply(*write, span.block, span.start, &data[span.bytes]);
                    self.unreadable.remove(&span.block);
                }
                Work::Zero { .. } | Work::Sync { .. } | Work::Nothing => {}
            }
        }
        op.moved = upto.max(op.moved);
    }

    fn finish(&mut self, op: &mut Op, spans: usize, fate: &mut Fate) -> Result<(), Errno> {
        if !self.opens.contains_key(&op.open) {
            return Err(Errno::NODEV);
        }
        let range = op.offset..op.offset + op.len;
        match op.work {
            Work::Read { .. } => {
                fate.counters.reads += 1;
                self.transfer(op, spans);
                let first = op.offset / u64::from(self.block_size);
                let unreadable = self.unreadable.range(first..first + spans as u64).next().is_some();
                if self.goes_wrong(DiskFault::ReadError, &range, fate) || unreadable {
                    fate.counters.read_errors += 1;
                    return Err(Errno::IO);
                }
            }
            Work::Write { write, durability, .. } => {
                self.finish_change(op, write, spans, fate)?;
                if durability == Durability::Durable {
                    if self.goes_wrong(DiskFault::SyncError, &range, fate) {
                        fate.counters.sync_errors += 1;
                        return Err(Errno::IO);
                    }
                    if self.goes_wrong(DiskFault::SyncLie, &range, fate) {
                        fate.counters.sync_lies += 1;
                    } else {
                        self.medium.persist(write);
                    }
                }
            }
            Work::Zero { write, .. } => self.finish_change(op, write, spans, fate)?,
            Work::Nothing => {}
            Work::Sync { barrier } => {
                fate.counters.syncs += 1;
                let everything = 0..self.len_bytes;
                if self.goes_wrong(DiskFault::SyncError, &everything, fate) {
                    fate.counters.sync_errors += 1;
                    if fate.rng.permille(500) {
                        self.medium.lose_cache(barrier, fate);
                    }
                    return Err(Errno::IO);
                }
                if self.goes_wrong(DiskFault::SyncLie, &everything, fate) {
                    fate.counters.sync_lies += 1;
                } else {
                    self.medium.flush(barrier);
                }
            }
        }
        Ok(())
    }

    /// A write or zeroes: done, as far as nothing is said of durability.
    fn finish_change(&mut self, op: &mut Op, write: u64, spans: usize, fate: &mut Fate) -> Result<(), Errno> {
        fate.counters.writes += 1;
        let range = op.offset..op.offset + op.len;
        if self.goes_wrong(DiskFault::WriteError, &range, fate) {
            fate.counters.write_errors += 1;
            self.resolve(op, spans, fate);
            return Err(Errno::IO);
        }
        self.transfer(op, spans);
        self.medium.complete(write, fate);
        Ok(())
    }

    /// Ends a write that is not going to complete: wholly, partly or not applied beyond what already was.
    fn resolve(&mut self, op: &mut Op, spans: usize, fate: &mut Fate) {
        let (Work::Write { write, .. } | Work::Zero { write, .. }) = op.work else { return };
        match fate.rng.below(3) {
            0 => {}
            _ if op.moved == spans => {}
            1 => self.transfer(op, spans),
            _ => self.transfer_some(op, spans, fate),
        }
        fate.note(Kind::DiskFate, write, op.moved as u64);
        fate.counters.writes_torn += u64::from(0 < op.moved && op.moved < spans);
        if op.moved == 0 {
            self.medium.abandon(write);
        } else {
            self.medium.complete(write, fate);
        }
    }

    /// Applies some of the remaining blocks, in any pattern.
    fn transfer_some(&mut self, op: &mut Op, spans: usize, fate: &mut Fate) {
        let pattern = some_of(spans - op.moved, fate);
        match &op.work {
            Work::Write { data, write, .. } => {
                let mut moved = op.moved;
                for (step, _) in (op.moved..spans).zip(pattern).filter(|(_, chosen)| *chosen) {
                    let index = if op.backwards { spans - 1 - step } else { step };
                    let span = self.span(op.offset, op.len, index);
                    self.medium.apply(*write, span.block, span.start, &data[span.bytes]);
                    self.unreadable.remove(&span.block);
                    moved += 1;
                }
                op.moved = moved;
            }
            Work::Zero { write, blocks } => {
                let end = blocks.start + fate.rng.below(blocks.end - blocks.start + 1);
                self.medium.apply_zeroes(*write, blocks.start..end);
                op.moved = usize::try_from(end - blocks.start).expect("at most the count of blocks");
            }
            Work::Read { .. } | Work::Sync { .. } | Work::Nothing => {}
        }
    }

    fn goes_wrong(&self, fault: DiskFault, range: &Range<u64>, fate: &mut Fate) -> bool {
        let mut wrong = false;
        for rule in self.rules.iter().filter(|rule| rule.fault == fault) {
            let overlaps = rule.bytes.start < range.end && range.start < rule.bytes.end;
            wrong |= overlaps && fate.rng.permille(u64::from(rule.permille));
        }
        wrong
    }

    /// Where a write to `range` really goes.
    fn misdirect(&self, range: Range<u64>, fate: &mut Fate) -> u64 {
        if !self.goes_wrong(DiskFault::MisdirectedWrite, &range, fate) {
            return range.start;
        }
        fate.counters.writes_misdirected += 1;
        let block = u64::from(self.block_size);
        let places = (self.len_bytes - (range.end - range.start)) / block;
        fate.rng.below(places + 1) * block
    }

    /// Ends what a dying process has in flight.
    fn process_died(&mut self, process: ProcessId, fate: &mut Fate) {
        self.interrupt(|op| op.process == process, fate);
        self.ops.retain(|_, op| op.process != process);
        self.held.retain(|id| self.ops.contains_key(id));
        self.opens.retain(|_, open| open.process != process);
    }

    /// Resolves the chosen writes in flight, in random order; nothing is left to be done of them.
    fn interrupt(&mut self, chosen: impl Fn(&Op) -> bool, fate: &mut Fate) {
        let mut dying: Vec<u64> =
            self.ops.iter().filter(|(_, op)| op.result.is_none() && chosen(op)).map(|(id, _)| *id).collect();
        while !dying.is_empty() {
            let id = dying.swap_remove(fate.rng.index(dying.len()));
            let mut op = self.ops.remove(&id).expect("listed just now");
            let spans = self.span_count(op.offset, op.len);
            if matches!(op.work, Work::Write { .. } | Work::Zero { .. }) {
                fate.counters.writes_interrupted += 1;
                self.resolve(&mut op, spans, fate);
            }
            op.work = Work::Nothing;
            self.ops.insert(id, op);
        }
    }
}

impl State {
    pub(super) fn find_disk(&self, node: usize, path: &Path) -> Option<usize> {
        self.disks.iter().position(|disk| disk.node == node && disk.path == path)
    }

    pub(super) fn add_disk(&mut self, node: usize, path: &Path, len_bytes: u64, block_size: u32) -> usize {
        self.disks.push(Disk::new(node, path, len_bytes, block_size));
        self.disks.len() - 1
    }

    pub(super) fn disk_submit(
        &mut self,
        disk: usize,
        process: ProcessId,
        open: u64,
        request: Request,
    ) -> Option<u64> {
        if !self.is_alive(process) {
            return None;
        }
        let (op, delay) = self.disks[disk].submit(process, open, request, &mut self.fate);
        self.clock.after(delay, Event::Disk { disk, op });
        Some(op)
    }

    pub(super) fn disk_step(&mut self, disk: usize, op: u64) {
        if let Some(delay) = self.disks[disk].step(op, &mut self.fate) {
            self.clock.after(delay, Event::Disk { disk, op });
        }
    }

    /// The result of an operation, once; its buffer comes back with it.
    pub(super) fn disk_poll(
        &mut self,
        disk: usize,
        id: u64,
        waker: &Waker,
    ) -> Poll<Result<Option<DmaBuf>, Errno>> {
        let disk = &mut self.disks[disk];
        // The operations of a dead process are gone: its last poll waits for ever.
        let Some(op) = disk.ops.get_mut(&id) else { return Poll::Pending };
        let Some(result) = op.result.take() else {
            op.waker = Some(waker.clone());
            return Poll::Pending;
        };
        let open = op.open;
        disk.ops.remove(&id);
        disk.finish_close(open);
        Poll::Ready(result)
    }

    /// The future of an operation was dropped.
    pub(super) fn disk_abandon(&mut self, disk: usize, id: u64) {
        let disk = &mut self.disks[disk];
        let Some(mut op) = disk.ops.remove(&id) else { return };
        let open = op.open;
        let cancelled = op.moved == 0 && self.fate.rng.permille(300);
        if op.result.is_none() && !cancelled {
            op.abandoned = true;
            op.waker = None;
            disk.ops.insert(id, op);
        } else if op.result.is_none()
            && let Work::Write { write, .. } | Work::Zero { write, .. } = op.work
        {
            disk.medium.abandon(write);
        }
        disk.finish_close(open);
    }

    pub(super) fn disks_process_died(&mut self, process: ProcessId) {
        for disk in &mut self.disks {
            disk.process_died(process, &mut self.fate);
        }
    }

    pub(super) fn disks_flush(&mut self, node: usize) {
        for disk in self.disks.iter_mut().filter(|disk| disk.node == node) {
            disk.medium.flush(u64::MAX);
        }
    }

    pub(super) fn disks_power_cut(&mut self, node: usize) {
        for disk in self.disks.iter_mut().filter(|disk| disk.node == node) {
            disk.medium.lose_cache(u64::MAX, &mut self.fate);
        }
    }
}
