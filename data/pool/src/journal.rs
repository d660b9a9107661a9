//! The journal's ring, as a pure state machine: records wait in order, are formed into batches, and become written and
//! durable. The I/O is in [`crate::commit`].
//!
//! Positions count on for ever; modulo the ring's length they are offsets. Record numbers count on over all openings.
//!
//! # Invariants
//! 1. Batches are written one after the other: if one is on the device, so was its predecessor's write complete.
//! 2. A batch never overwrites the space from `tail` on: it waits for a checkpoint to move the tail.
//! 3. A mark names only records whose data was complete before a flush began that has ended.
//!
//! # Spec
//! `docs/formats/pool.md`, "Journal".

use crate::layout::{BLOCK_BYTES, BLOCK_LEN, narrow};
use crate::page::{BATCH_HEADER_LEN, BatchHeader};
use crate::record::{ENCODED_LEN_MAX, Record, encoded_len};
use rt::DmaBuf;
use uuid::Uuid;

/// Longest batch; at least four fit the smallest ring.
pub(crate) const BATCH_LEN_MAX: usize = 64 << 10;
const _: () = assert!(BATCH_HEADER_LEN + ENCODED_LEN_MAX + 64 <= BATCH_LEN_MAX);

/// The journal of an open pool.
#[derive(Debug)]
pub(crate) struct Journal {
    session: Uuid,
    ring_bytes: u64,
    /// Where the first batch that recovery would read begins.
    tail: u64,
    /// Where the next batch begins.
    head: u64,
    next_batch: u64,
    next_record: u64,
    /// Records not yet formed into a batch, and the number of the first of them.
    pending: Vec<u8>,
    pending_from: u64,
    /// Records below are in batches written completely; so is the ring before `written_position`.
    written: u64,
    written_position: u64,
    /// Records below are durable; so is the ring before `durable_position`.
    durable: u64,
    durable_position: u64,
    /// Records below are durable together with their data.
    flushed: u64,
    /// The newest mark that is written; and one on its way: its record's number and its value.
    mark_written: u64,
    mark_on_its_way: Option<(u64, u64)>,
}

/// A batch on its way to the ring.
#[derive(Debug)]
pub(crate) struct Batch {
    /// Whole blocks.
    pub(crate) bytes: DmaBuf,
    /// Where it begins in the ring.
    pub(crate) ring_offset: u64,
    end_record: u64,
    end_position: u64,
}

/// What [`Journal::form`] made.
#[derive(Debug)]
pub(crate) enum Formed {
    /// Nothing waits.
    Idle,
    /// The ring has no room before the next checkpoint.
    Full,
    /// A batch to write, then to [`Journal::complete`].
    Batch(Batch),
}

/// What was written when a flush began.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FlushStart {
    written: u64,
    written_position: u64,
    with_data: u64,
    mark: u64,
}

/// The place in the journal where a checkpoint cuts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cut {
    /// Records below are part of the checkpoint.
    pub(crate) record: u64,
    /// Where the batches begin that recovery must still read.
    pub(crate) position: u64,
    /// The number of the first of them.
    pub(crate) batch: u64,
}

impl Journal {
    /// An empty ring for the opening `session`; the first record will be `next_record`.
    pub(crate) fn new(session: Uuid, ring_bytes: u64, next_record: u64) -> Self {
        Self {
            session,
            ring_bytes,
            tail: 0,
            head: 0,
            next_batch: 1,
            next_record,
            pending: Vec::new(),
            pending_from: next_record,
            written: next_record,
            written_position: 0,
            durable: next_record,
            durable_position: 0,
            flushed: next_record,
            mark_written: next_record,
            mark_on_its_way: None,
        }
    }

    /// Adds a record; returns its number.
    pub(crate) fn push(&mut self, encode: impl FnOnce(&mut Vec<u8>)) -> u64 {
        encode(&mut self.pending);
        self.next_record += 1;
        self.next_record - 1
    }

    /// The number that the next record gets.
    pub(crate) fn next_record(&self) -> u64 {
        self.next_record
    }

    /// Records below this number are in batches written completely.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    /// Records below this number are durable.
    pub(crate) fn durable(&self) -> u64 {
        self.durable
    }

    /// Whether half of the ring is in use: time for a checkpoint.
    pub(crate) fn wants_checkpoint(&self) -> bool {
        (self.head - self.tail) * 2 > self.ring_bytes
    }

    /// Whether everything pushed has been written.
    pub(crate) fn is_idle(&self) -> bool {
        self.written == self.next_record
    }

    /// Takes waiting records into a batch.
    pub(crate) fn form(&mut self) -> Formed {
        if self.pending.is_empty() {
            return Formed::Idle;
        }
        if self.mark_is_due() {
            self.push_mark();
        }
        let (len, count) = self.next_batch_len();
        let total = (BATCH_HEADER_LEN + len).next_multiple_of(BLOCK_LEN);
        if self.head + total as u64 - self.tail > self.ring_bytes {
            return Formed::Full; // Invariant 2.
        }
        let mut bytes = DmaBuf::zeroed(total);
        bytes[BATCH_HEADER_LEN..BATCH_HEADER_LEN + len].copy_from_slice(&self.pending[..len]);
        self.pending.drain(..len);
        let header = BatchHeader {
            session: self.session,
            batch: self.next_batch,
            position: self.head,
            first_record: self.pending_from,
            durable_position: self.durable_position,
            records: narrow(count),
        };
        header.seal(&mut bytes, BATCH_HEADER_LEN + len);
        let ring_offset = self.head % self.ring_bytes;
        self.head += total as u64;
        self.next_batch += 1;
        self.pending_from += count;
        Formed::Batch(Batch { bytes, ring_offset, end_record: self.pending_from, end_position: self.head })
    }

    /// Length and number of the waiting records that fit one batch.
    fn next_batch_len(&self) -> (usize, u64) {
        let room = BATCH_LEN_MAX - BATCH_HEADER_LEN;
        if self.pending.len() <= room {
            return (self.pending.len(), self.next_record - self.pending_from);
        }
        let (mut len, mut count) = (0, 0);
        loop {
            let next = encoded_len(&self.pending[len..]);
            if len + next > room {
                return (len, count);
            }
            len += next;
            count += 1;
        }
    }

    /// The write of a batch has completed: its end record and position.
    pub(crate) fn complete(&mut self, end_record: u64, end_position: u64) {
        assert!(
            self.written < end_record && self.written_position < end_position,
            "batches complete in order"
        );
        self.written = end_record;
        self.written_position = end_position;
        if let Some((number, value)) = self.mark_on_its_way.filter(|(number, _)| *number < end_record) {
            debug_assert!(number < self.written);
            self.mark_written = self.mark_written.max(value);
            self.mark_on_its_way = None;
        }
    }

    /// A flush begins; data of the records from `data_from` on may still be under way.
    pub(crate) fn flush_start(&self, data_from: u64) -> FlushStart {
        FlushStart {
            written: self.written,
            written_position: self.written_position,
            with_data: self.written.min(data_from),
            mark: self.mark_written,
        }
    }

    /// That flush has ended. Returns the record below which all are settled: durable, with a durable mark saying so.
    pub(crate) fn flush_end(&mut self, start: FlushStart) -> u64 {
        self.durable = self.durable.max(start.written);
        self.durable_position = self.durable_position.max(start.written_position);
        self.flushed = self.flushed.max(start.with_data); // Invariant 3.
        start.mark
    }

    fn mark_is_due(&self) -> bool {
        self.mark_on_its_way.is_none() && self.flushed > self.mark_written
    }

    fn push_mark(&mut self) {
        let settled = self.flushed;
        let number = self.push(|out| Record::Mark { settled }.encode(out));
        self.mark_on_its_way = Some((number, settled));
    }

    /// Adds a mark if one is due, to be written even if nothing else is; returns its number.
    pub(crate) fn push_due_mark(&mut self) -> Option<u64> {
        if self.mark_is_due() {
            self.push_mark();
        }
        self.mark_on_its_way.map(|(number, _)| number)
    }

    /// Where a checkpoint of the present state cuts: all records so far are part of it, even if not yet written.
    pub(crate) fn cut(&self) -> Cut {
        Cut { record: self.next_record, position: self.head, batch: self.next_batch }
    }

    /// The checkpoint of `cut` is durable.
    pub(crate) fn advance(&mut self, cut: Cut) {
        assert!(cut.position >= self.tail && cut.position <= self.head, "the tail only advances");
        assert!(cut.position.is_multiple_of(BLOCK_BYTES));
        self.tail = cut.position;
        self.durable = self.durable.max(cut.record);
        self.flushed = self.flushed.max(cut.record);
        self.mark_written = self.mark_written.max(cut.record);
    }
}

impl Batch {
    /// What [`Journal::complete`] wants to know of it.
    pub(crate) fn end(&self) -> (u64, u64) {
        (self.end_record, self.end_position)
    }
}
