//! One layer in memory: the map of a replica and what is durable about it besides.
//!
//! # Invariants
//! 1. A field that records describe changes in the same step in which its record is pushed, so that a checkpoint taken
//!    between two steps holds exactly the records before it.
//! 2. A block that is busy has a first write, or a read-modify-write, on its way: everything else waits.

use crate::layout::PIECE_SIZE;
use crate::map::{Map, by_extent};
use crate::record::{DIRECTORY_LEN_MAX, Fence, PageRef, Progress, Record, ReplicaConfig};
use model::Generation;
use rt::sync::{Event, Mutex};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

/// A layer as recovered or to be checkpointed.
#[derive(Clone)]
pub(crate) struct LayerState {
    pub(crate) config: ReplicaConfig,
    pub(crate) fence: Fence,
    pub(crate) stable: Generation,
    pub(crate) ceiling: Generation,
    pub(crate) unsure: Generation,
    pub(crate) progress: Option<Progress>,
    pub(crate) blob: Option<Vec<u8>>,
    pub(crate) map: Map,
    pub(crate) directory: BTreeMap<u64, PageRef>,
}

impl LayerState {
    pub(crate) fn new(config: ReplicaConfig) -> Self {
        Self {
            config,
            fence: Fence::default(),
            stable: Generation::ZERO,
            ceiling: Generation::ZERO,
            unsure: Generation::ZERO,
            progress: None,
            blob: None,
            map: Map::default(),
            directory: BTreeMap::new(),
        }
    }
}

/// A layer of an open pool.
pub(crate) struct Layer {
    pub(crate) number: u32,
    /// Its size is that at the time of opening; see `size_bytes`.
    config: ReplicaConfig,
    pub(crate) size_bytes: Cell<u64>,
    pub(crate) fence: Cell<Fence>,
    pub(crate) stable: Cell<Generation>,
    /// Announced by a record: writes up to this generation may happen. The first may not be durable yet.
    pub(crate) announced: Cell<Generation>,
    pub(crate) ceiling: Cell<Generation>,
    /// Up to this generation the extents' own generations may be too low, since a crash.
    pub(crate) unsure: Cell<Generation>,
    pub(crate) progress: Cell<Option<Progress>>,
    pub(crate) blob: RefCell<Option<Vec<u8>>>,
    pub(crate) map: RefCell<Map>,
    /// Where the pages of the last checkpoint lie; changed by checkpoints only.
    pub(crate) directory: RefCell<BTreeMap<u64, PageRef>>,
    pub(crate) owned_pieces: Cell<u64>,
    pub(crate) deleted: Cell<bool>,
    /// Block after the last write: the next one that begins here is taken for a stream.
    pub(crate) stream: Cell<u64>,
    /// How far the ceiling is raised ahead, and the writes since it was raised.
    pub(crate) lease: Cell<(u64, u64)>,
    pub(crate) raising: Mutex<()>,
    busy: RefCell<BTreeMap<u64, u64>>,
    unbusy: Event,
}

impl Layer {
    pub(crate) fn new(number: u32, state: LayerState) -> Self {
        let owned = state.map.entries(0).map(|(_, entry)| owned_pieces(&entry.pieces)).sum();
        Self {
            number,
            size_bytes: Cell::new(state.config.size_bytes),
            config: state.config,
            fence: Cell::new(state.fence),
            stable: Cell::new(state.stable),
            announced: Cell::new(state.ceiling),
            ceiling: Cell::new(state.ceiling),
            unsure: Cell::new(state.unsure),
            progress: Cell::new(state.progress),
            blob: RefCell::new(state.blob),
            map: RefCell::new(state.map),
            directory: RefCell::new(state.directory),
            owned_pieces: Cell::new(owned),
            deleted: Cell::new(false),
            stream: Cell::new(u64::MAX),
            lease: Cell::new((0, 0)),
            raising: Mutex::new(()),
            busy: RefCell::default(),
            unbusy: Event::new(),
        }
    }

    pub(crate) fn config(&self) -> ReplicaConfig {
        ReplicaConfig { size_bytes: self.size_bytes.get(), ..self.config.clone() }
    }

    pub(crate) fn block_size(&self) -> u32 {
        self.config.block_size
    }

    pub(crate) fn used_bytes(&self) -> u64 {
        self.owned_pieces.get() * PIECE_SIZE
    }

    /// Appends the records that say everything about this layer but its map.
    pub(crate) fn describe(&self, out: &mut Vec<u8>) {
        let layer = self.number;
        Record::Layer { layer, parent: 0, config: self.config() }.encode(out);
        Record::Fence { layer, fence: self.fence.get() }.encode(out);
        Record::Stable { layer, generation: self.stable.get() }.encode(out);
        Record::Ceiling { layer, generation: self.announced.get() }.encode(out);
        Record::Unsure { layer, generation: self.unsure.get() }.encode(out);
        Record::Progress { layer, progress: self.progress.get() }.encode(out);
        if let Some(bytes) = self.blob.borrow().clone() {
            Record::Blob { layer, bytes }.encode(out);
        }
    }

    /// Appends the records that say where the pages of its map lie.
    pub(crate) fn describe_directory(number: u32, directory: &BTreeMap<u64, PageRef>, out: &mut Vec<u8>) {
        let mut pages = directory.iter().map(|(chunk, page)| (*chunk, *page)).peekable();
        while pages.peek().is_some() {
            let pages = pages.by_ref().take(DIRECTORY_LEN_MAX).collect();
            Record::Directory { layer: number, pages }.encode(out);
        }
    }

    /// Waits until none of the blocks is busy. The caller must act before it next waits for anything.
    pub(crate) async fn until_free(&self, first: u64, count: u64) {
        loop {
            let unbusy = self.unbusy.wait();
            if !self.is_busy(first, count) {
                return;
            }
            unbusy.await;
        }
    }

    fn is_busy(&self, first: u64, count: u64) -> bool {
        let busy = self.busy.borrow();
        !busy.is_empty()
            && by_extent(first, count)
                .any(|(extent, blocks, _)| busy.get(&extent).is_some_and(|busy| busy & blocks != 0))
    }

    /// Marks blocks busy.
    pub(crate) fn set_busy(&self, extent: u64, blocks: u64) {
        let mut busy = self.busy.borrow_mut();
        let mask = busy.entry(extent).or_default();
        assert!(*mask & blocks == 0, "a busy block is left alone"); // Invariant 2.
        *mask |= blocks;
    }

    /// Ends that.
    pub(crate) fn clear_busy(&self, parts: &[(u64, u64)]) {
        let mut busy = self.busy.borrow_mut();
        for (extent, blocks) in parts {
            let mask = busy.get_mut(extent).expect("was made busy");
            *mask &= !blocks;
            if *mask == 0 {
                busy.remove(extent);
            }
        }
        drop(busy);
        self.unbusy.notify();
    }
}

/// How many pieces an entry owns.
pub(crate) fn owned_pieces(pieces: &[u32; 8]) -> u64 {
    pieces.iter().filter(|piece| **piece != 0).count() as u64
}
