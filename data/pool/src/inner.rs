//! The open pool behind its handles: the device, the state machines over it, and what they share.
//!
//! # Invariants
//! 1. After a failed metadata write or flush nothing is promised or shown any more: the pool must be opened again, and
//!    recovery says what is true.

use crate::checkpoint::write_superblock;
use crate::journal::Journal;
use crate::layer::Layer;
use crate::layout::{Layout, index};
use crate::metrics::Metrics;
use crate::page::MANIFEST_PAYLOAD_LEN;
use crate::record::RECORD_LEN_MAX;
use crate::space::{Inflight, Space};
use crate::superblock::Superblock;
use device::{Device, Lba, Status};
use rt::sync::{Event, Mutex};
use rt::{DmaBuf, DmaBytes, Durability};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use uuid::Uuid;

/// Bytes of one layer's records in the manifest, at most, without its directory.
const LAYER_BYTES_MAX: u64 = RECORD_LEN_MAX as u64 + 1024;
/// Bytes of the directory per page of the map, generously.
const DIRECTORY_BYTES: u64 = 25;
/// Pages kept beyond the computed need.
const SLOTS_MARGIN: u64 = 4;

/// An open pool.
pub(crate) struct Inner<D> {
    pub(crate) device: D,
    device_block: u64,
    pub(crate) layout: Layout,
    pub(crate) superblock: RefCell<Superblock>,
    /// The copy of it that may be torn after a failed write; the other one is whole.
    pub(crate) doubtful: Cell<usize>,
    pub(crate) space: RefCell<Space>,
    pub(crate) journal: RefCell<Journal>,
    pub(crate) layers: RefCell<BTreeMap<Uuid, Rc<Layer>>>,
    /// Layers deleted since the last checkpoint: their pages are still in use.
    pub(crate) deleted: RefCell<Vec<Rc<Layer>>>,
    /// Pages of the manifest of the last checkpoint.
    pub(crate) manifest: RefCell<Vec<u64>>,
    pub(crate) io: RefCell<Inflight>,
    /// Records whose data is being written: the first one of each write.
    pub(crate) data: RefCell<BTreeSet<u64>>,
    /// First writes that failed so far: their blocks must not get into a checkpoint.
    pub(crate) undone: Cell<u64>,
    /// Records below need no checksum in recovery; one above the newest map record.
    pub(crate) settled: Cell<u64>,
    pub(crate) mapped: Cell<u64>,
    /// The number of the next layer.
    pub(crate) next_layer: Cell<u32>,
    /// Chunks of all maps, and how many of them have a page already.
    pub(crate) chunks: Cell<u64>,
    pub(crate) placed: Cell<u64>,
    pub(crate) failed: Cell<bool>,
    pub(crate) closed: Cell<bool>,
    /// Flushes begun, ended and asked for.
    pub(crate) flushes: Cell<(u64, u64, u64)>,
    pub(crate) running: Running,
    /// A batch was written, a flush or a checkpoint has ended, data has arrived, or the pool has failed.
    pub(crate) progress: Event,
    pub(crate) drained: Event,
    pub(crate) closing: Event,
    /// Held by the one that settles.
    pub(crate) settling: Mutex<()>,
    pub(crate) metrics: Cell<Metrics>,
}

/// The background tasks that run now; each is started when there is work and ends when there is none.
#[derive(Default)]
pub(crate) struct Running {
    pub(crate) writer: Cell<bool>,
    pub(crate) flusher: Cell<bool>,
    pub(crate) settler: Cell<bool>,
    pub(crate) checkpoint: Cell<bool>,
}

impl<D: Device + 'static> Inner<D> {
    pub(crate) fn new(device: D, superblock: Superblock, space: Space, journal: Journal) -> Self {
        let first = journal.next_record();
        Self {
            device_block: u64::from(device.geometry().block_size),
            device,
            layout: superblock.layout,
            next_layer: Cell::new(superblock.next_layer),
            superblock: RefCell::new(superblock),
            doubtful: Cell::new(0),
            space: RefCell::new(space),
            journal: RefCell::new(journal),
            layers: RefCell::default(),
            deleted: RefCell::default(),
            manifest: RefCell::default(),
            io: RefCell::default(),
            data: RefCell::default(),
            undone: Cell::new(0),
            settled: Cell::new(first),
            mapped: Cell::new(0),
            chunks: Cell::new(0),
            placed: Cell::new(0),
            failed: Cell::new(false),
            closed: Cell::new(false),
            flushes: Cell::default(),
            running: Running::default(),
            progress: Event::new(),
            drained: Event::new(),
            closing: Event::new(),
            settling: Mutex::new(()),
            metrics: Cell::default(),
        }
    }

    /// The device's address of a byte offset.
    pub(crate) fn lba(&self, offset_bytes: u64) -> Lba {
        Lba(offset_bytes / self.device_block)
    }

    /// Reads from a byte offset of the device.
    pub(crate) async fn read_at(&self, offset_bytes: u64, buf: DmaBuf) -> Result<DmaBuf, Status> {
        self.device.read(self.lba(offset_bytes), buf).await
    }

    /// Writes at a byte offset of the device.
    pub(crate) async fn write_at(
        &self,
        offset_bytes: u64,
        data: DmaBytes,
        durability: Durability,
    ) -> Result<(), Status> {
        self.device.write(self.lba(offset_bytes), data, durability).await
    }

    /// Refuses everything once the pool is closed or has failed.
    pub(crate) fn admit_change(&self) -> Result<(), Status> {
        if self.closed.get() {
            return Err(Status::Gone);
        }
        if self.failed.get() {
            return Err(Status::MediaWrite); // Invariant 1.
        }
        Ok(())
    }

    /// Stops everything that needs metadata, for good.
    pub(crate) fn fail(self: &Rc<Self>, doing: &'static str, status: Status) {
        if !self.failed.replace(true) {
            rt::spawn(Rc::clone(self).note_loss()).detach();
            tracing::error!(
                pool = %self.superblock.borrow().name,
                doing,
                %status,
                "the pool has failed: it takes no more changes until it is opened again"
            );
        }
        self.progress.notify();
        self.drained.notify();
    }

    /// Writes into the superblock that the pool has failed, for an opening by another process. What a failed flush has
    /// lost is gone although the machine runs on, and nobody else would know (I5).
    pub(crate) async fn note_loss(self: Rc<Self>) {
        self.begin_checkpoint().await;
        let mut superblock = self.superblock.borrow().clone();
        // Beyond that of a checkpoint that failed half-way: it does not count, and what it replaces is still there.
        superblock.sequence += 2;
        superblock.lost = true;
        // Not durable: it is for the same boot of the machine, and a flush on this disk could lose more. One copy, so
        // that the whole one stays.
        let copy = self.doubtful.get();
        if let Err(status) = write_superblock(&self.device, &superblock, copy, Durability::Cached).await {
            tracing::warn!(pool = %superblock.name, %status, "cannot note that the pool has failed");
        }
        self.end_checkpoint();
    }

    /// Metadata pages that must stay free for the next checkpoint, with `new_chunks` more in the maps.
    pub(crate) fn slots_needed(&self, new_chunks: u64) -> u64 {
        let chunks = self.chunks.get() + new_chunks;
        // Every chunk may be dirty; those without a page keep the one they get.
        let pages = chunks + (chunks - self.placed.get().min(chunks));
        let layers = self.layers.borrow().len() as u64;
        // A whole manifest beside the present one, and what the next but one may need more than that gives back.
        let manifest = Self::manifest_pages_max(layers, chunks);
        let growth = manifest.saturating_sub(self.manifest.borrow().len() as u64);
        pages + manifest + growth + SLOTS_MARGIN
    }

    fn manifest_pages_max(layers: u64, chunks: u64) -> u64 {
        (layers * LAYER_BYTES_MAX + chunks * DIRECTORY_BYTES).div_ceil(MANIFEST_PAYLOAD_LEN as u64) + 1
    }

    /// Whether one more layer leaves room for its checkpoint.
    pub(crate) fn has_room_for_layer(&self) -> bool {
        let more = LAYER_BYTES_MAX.div_ceil(MANIFEST_PAYLOAD_LEN as u64) * 3;
        self.space.borrow().alloc.metadata_slots() >= self.slots_needed(0) + more
    }

    /// Makes what was freed usable as far as that is safe.
    pub(crate) fn release_space(&self) {
        let (durable, open) = (self.journal.borrow().durable(), self.io.borrow().oldest());
        self.space.borrow_mut().release(durable, open);
    }

    /// Ends an I/O.
    pub(crate) fn end_io(&self, token: u64) {
        let before = self.io.borrow().oldest();
        self.io.borrow_mut().end(token);
        if self.io.borrow().oldest() != before {
            self.drained.notify();
        }
    }

    /// Waits until every I/O that has begun has ended.
    pub(crate) async fn drain(&self) {
        let token = self.io.borrow().next();
        loop {
            let drained = self.drained.wait();
            if self.io.borrow().oldest() >= token {
                return;
            }
            drained.await;
        }
    }

    /// The pieces (stored form) that `len_bytes` at byte offset `offset` touch.
    pub(crate) fn pieces_at(&self, offset: u64, len_bytes: u64) -> impl Iterator<Item = u32> {
        use crate::layout::{PIECE_SIZE, narrow};
        let first = (offset - self.layout.data_offset) / PIECE_SIZE;
        let last = (offset - self.layout.data_offset + len_bytes - 1) / PIECE_SIZE;
        (first..=last).map(|piece| narrow(piece) + 1)
    }
}

/// A zeroed buffer of `blocks` blocks.
pub(crate) fn zero_blocks(blocks: u64) -> DmaBuf {
    DmaBuf::zeroed(index(blocks * crate::layout::BLOCK_BYTES))
}
