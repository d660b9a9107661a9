//! Checkpoints: the maps and everything else that the journal says, written elsewhere, then made to count by the
//! superblock; after that the journal's space is free again.
//!
//! # Invariants
//! 1. A checkpoint holds exactly the records below its cut; chunks are shared with the maps, and copied by whoever
//!    changes them meanwhile.
//! 2. It counts only after its pages, and the data of every record below its cut, have been flushed.
//! 3. Pages of the checkpoint before are reused only after both superblocks carry the new one.
//!
//! # Spec
//! `docs/formats/pool.md`, "Checkpoint".

use crate::inner::Inner;
use crate::journal::Cut;
use crate::layer::Layer;
use crate::layout::{BLOCK_BYTES, BLOCK_LEN, SUPERBLOCKS, crc32c, index};
use crate::map::Chunk;
use crate::metrics::Metrics;
use crate::page::{MANIFEST_PAYLOAD_LEN, ManifestPage, encode_map_page};
use crate::record::PageRef;
use crate::superblock::{BAD_BLOCKS, Superblock};
use device::{Device, Lba, Status};
use rt::{DmaBuf, Durability};
use std::collections::BTreeMap;
use std::rc::Rc;

/// Pages written by one I/O, at most.
const PAGES_PER_WRITE: usize = 64;

/// The state at the cut.
struct Snapshot {
    cut: Cut,
    undone: u64,
    next_layer: u32,
    /// Whether any map has bad blocks.
    has_bad: bool,
    checkpoint: u64,
    /// The records of all layers, without their directories.
    stream: Vec<u8>,
    layers: Vec<Rc<Layer>>,
    deleted: Vec<Rc<Layer>>,
    dirty: Vec<Dirty>,
}

struct Dirty {
    layer: Rc<Layer>,
    chunk: u64,
    contents: Rc<Chunk>,
}

/// What has been written of a checkpoint that does not count yet.
struct Written {
    /// In the order of `Snapshot::dirty`.
    pages: Vec<PageRef>,
    /// In the order of `Snapshot::layers`.
    directories: Vec<BTreeMap<u64, PageRef>>,
    manifest: Vec<u64>,
}

impl<D: Device + 'static> Inner<D> {
    /// Sees to it that a checkpoint runs.
    pub(crate) fn start_checkpoint(self: &Rc<Self>) {
        if self.running.checkpoint.get() {
            return;
        }
        self.running.checkpoint.set(true);
        let inner = Rc::clone(self);
        rt::spawn(async move {
            if let Err(status) = inner.checkpoint(|_| {}).await {
                inner.fail("writing a checkpoint", status);
            }
            inner.end_checkpoint();
        })
        .detach();
    }

    /// Waits for the checkpoint that runs, if any, then writes one in which `change` has the last word on the superblock.
    pub(crate) async fn last_checkpoint(
        self: &Rc<Self>,
        change: impl Fn(&mut Superblock),
    ) -> Result<(), Status> {
        self.begin_checkpoint().await;
        let result = self.checkpoint(change).await;
        self.end_checkpoint();
        result
    }

    /// Waits for the checkpoint that runs, if any, and keeps others from beginning.
    pub(crate) async fn begin_checkpoint(&self) {
        loop {
            let progress = self.progress.wait();
            if !self.running.checkpoint.get() {
                break;
            }
            progress.await;
        }
        self.running.checkpoint.set(true);
    }

    pub(crate) fn end_checkpoint(&self) {
        self.running.checkpoint.set(false);
        self.progress.notify();
    }

    async fn checkpoint(self: &Rc<Self>, change: impl Fn(&mut Superblock)) -> Result<(), Status> {
        loop {
            let snapshot = self.take_snapshot();
            let written = self.write_pages(&snapshot).await?;
            self.data_arrived(snapshot.cut.record).await?;
            if !barrier_is_skipped() {
                self.flush().await?; // Invariant 2.
            }
            if self.undone.get() != snapshot.undone {
                self.forget(snapshot, written);
                continue;
            }
            let mut superblock = self.superblock.borrow().clone();
            superblock.sequence += 1;
            superblock.checkpoint = snapshot.checkpoint;
            superblock.cut = snapshot.cut.record;
            superblock.journal_position = snapshot.cut.position;
            superblock.journal_batch = snapshot.cut.batch;
            superblock.next_layer = snapshot.next_layer;
            superblock.features_incompatible |= if snapshot.has_bad { BAD_BLOCKS } else { 0 };
            superblock.manifest_head = written.manifest.first().copied().unwrap_or(0);
            superblock.manifest_pages = written.manifest.len() as u64;
            change(&mut superblock);
            for copy in 0..SUPERBLOCKS.len() {
                self.doubtful.set(copy);
                write_superblock(&self.device, &superblock, copy, Durability::Durable).await?;
            }
            self.doubtful.set(0);
            self.superblock.replace(superblock);
            self.adopt(snapshot, written);
            return Ok(());
        }
    }

    fn take_snapshot(&self) -> Snapshot {
        let layers: Vec<_> = self.layers.borrow().values().map(Rc::clone).collect();
        let mut stream = Vec::new();
        let mut dirty = Vec::new();
        for layer in &layers {
            layer.describe(&mut stream);
            let mut map = layer.map.borrow_mut();
            for chunk in std::mem::take(&mut map.dirty) {
                let contents = Rc::clone(&map.chunks[&chunk]); // Invariant 1.
                dirty.push(Dirty { layer: Rc::clone(layer), chunk, contents });
            }
        }
        let superblock = self.superblock.borrow();
        Snapshot {
            cut: self.journal.borrow().cut(),
            undone: self.undone.get(),
            next_layer: self.next_layer.get(),
            has_bad: layers.iter().any(|layer| layer.map.borrow().has_bad),
            checkpoint: superblock.checkpoint + 1,
            stream,
            layers,
            deleted: self.deleted.take(),
            dirty,
        }
    }

    async fn write_pages(&self, snapshot: &Snapshot) -> Result<Written, Status> {
        let numbers = self.take_pages(snapshot.dirty.len())?;
        let pool = self.superblock.borrow().pool;
        let mut pages = Vec::with_capacity(numbers.len());
        for group in contiguous(&numbers) {
            let mut buf = DmaBuf::new(group.len() * BLOCK_LEN);
            for (page, number) in buf.chunks_exact_mut(BLOCK_LEN).zip(group) {
                let dirty = &snapshot.dirty[pages.len()];
                let entries = &dirty.contents.entries;
                encode_map_page(page, pool, snapshot.checkpoint, dirty.layer.number, dirty.chunk, entries);
                pages.push(PageRef { page: *number, crc: crc32c(page) });
            }
            self.write_at(self.layout.page_offset(group[0]), buf.freeze(), Durability::Cached).await?;
        }
        let directories = new_directories(snapshot, &pages);
        let mut stream = snapshot.stream.clone();
        for (layer, directory) in snapshot.layers.iter().zip(&directories) {
            Layer::describe_directory(layer.number, directory, &mut stream);
        }
        let manifest = self.write_manifest(snapshot.checkpoint, &stream).await?;
        Ok(Written { pages, directories, manifest })
    }

    async fn write_manifest(&self, checkpoint: u64, stream: &[u8]) -> Result<Vec<u64>, Status> {
        let pool = self.superblock.borrow().pool;
        let numbers = self.take_pages(stream.len().div_ceil(MANIFEST_PAYLOAD_LEN))?;
        let mut payloads = stream.chunks(MANIFEST_PAYLOAD_LEN).zip(0u64..);
        for group in contiguous(&numbers) {
            let mut buf = DmaBuf::new(group.len() * BLOCK_LEN);
            for page in buf.chunks_exact_mut(BLOCK_LEN) {
                let (payload, number) = payloads.next().expect("a page for each part of the stream");
                let next = numbers.get(index(number) + 1).copied().unwrap_or(0);
                ManifestPage { checkpoint, number, next, payload }.encode(page, pool);
            }
            self.write_at(self.layout.page_offset(group[0]), buf.freeze(), Durability::Cached).await?;
        }
        Ok(numbers)
    }

    fn take_pages(&self, count: usize) -> Result<Vec<u64>, Status> {
        self.space.borrow_mut().alloc.take_pages(count as u64).ok_or(Status::NoSpace)
    }

    /// Waits until the data of every record below `cut` has been written, or given up.
    pub(crate) async fn data_arrived(&self, cut: u64) -> Result<(), Status> {
        loop {
            let progress = self.progress.wait();
            if self.failed.get() {
                return Err(Status::MediaWrite);
            }
            if self.data_from() >= cut {
                return Ok(());
            }
            progress.await;
        }
    }

    /// Takes back a checkpoint that must not count: a first write that it contains has failed.
    fn forget(&self, snapshot: Snapshot, written: Written) {
        let mut space = self.space.borrow_mut();
        for page in written.pages.iter().map(|page| page.page).chain(written.manifest) {
            space.alloc.release_page(page);
        }
        for dirty in snapshot.dirty {
            dirty.layer.map.borrow_mut().dirty.insert(dirty.chunk);
        }
        self.deleted.borrow_mut().extend(snapshot.deleted);
    }

    /// The checkpoint counts: frees what only the one before needed.
    fn adopt(&self, snapshot: Snapshot, written: Written) {
        self.journal.borrow_mut().advance(snapshot.cut);
        self.settled.set(self.settled.get().max(snapshot.cut.record));
        let mut space = self.space.borrow_mut();
        for dirty in &snapshot.dirty {
            let old = dirty.layer.directory.borrow().get(&dirty.chunk).map(|page| page.page);
            match old {
                Some(page) => space.alloc.release_page(page),
                None if !dirty.layer.deleted.get() => self.placed.set(self.placed.get() + 1),
                None => {}
            }
        }
        for layer in snapshot.deleted {
            layer.directory.take().into_values().for_each(|page| space.alloc.release_page(page.page));
        }
        for page in self.manifest.replace(written.manifest) {
            space.alloc.release_page(page);
        }
        drop(space);
        for (layer, directory) in snapshot.layers.iter().zip(written.directories) {
            layer.directory.replace(directory);
        }
        Metrics::count(&self.metrics, |metrics| metrics.checkpoints += 1);
        self.release_space();
        self.progress.notify();
    }
}

fn new_directories(snapshot: &Snapshot, pages: &[PageRef]) -> Vec<BTreeMap<u64, PageRef>> {
    let mut dirty = snapshot.dirty.iter().zip(pages).peekable();
    let mut directories = Vec::with_capacity(snapshot.layers.len());
    for layer in &snapshot.layers {
        let mut directory = layer.directory.borrow().clone();
        while let Some((dirty, page)) = dirty.next_if(|(dirty, _)| Rc::ptr_eq(&dirty.layer, layer)) {
            directory.insert(dirty.chunk, *page);
        }
        directories.push(directory);
    }
    directories
}

/// Groups of neighbouring pages, each short enough for one write.
fn contiguous(pages: &[u64]) -> impl Iterator<Item = &[u64]> {
    pages.chunk_by(|a, b| a + 1 == *b).flat_map(|group| group.chunks(PAGES_PER_WRITE))
}

fn barrier_is_skipped() -> bool {
    #[cfg(any(test, feature = "planted"))]
    return crate::planted::no_barrier();
    #[cfg(not(any(test, feature = "planted")))]
    false
}

/// Writes both copies of the superblock, the second only when the first is durable.
pub(crate) async fn write_superblocks(device: &impl Device, superblock: &Superblock) -> Result<(), Status> {
    for copy in 0..SUPERBLOCKS.len() {
        write_superblock(device, superblock, copy, Durability::Durable).await?;
    }
    Ok(())
}

/// Writes one copy of the superblock.
pub(crate) async fn write_superblock(
    device: &impl Device,
    superblock: &Superblock,
    copy: usize,
    durability: Durability,
) -> Result<(), Status> {
    let block = u64::from(device.geometry().block_size);
    debug_assert!(BLOCK_BYTES.is_multiple_of(block));
    let number = u32::try_from(copy).expect("there are two");
    let bytes = DmaBuf::copy_of(&superblock.encode(number)).freeze();
    device.write(Lba(SUPERBLOCKS[copy] / block), bytes, durability).await
}
