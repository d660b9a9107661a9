//! A replica: one thin copy of a volume in a pool.
//!
//! # Invariants
//! 1. Only the highest epoch that was accepted, durably, may change anything.
//! 2. Before a write of a generation that no record has announced, a durable record announces it: after a crash the
//!    pool knows up to where its extents' generations may be too low, and then says "everything".

use crate::inner::{Inner, zero_blocks};
use crate::layer::Layer;
use crate::layout::{BLOCK_BYTES, BLOCK_LEN, BLOCKS_PER_EXTENT, EXTENT_SIZE, index};
use crate::map::{Run, by_extent};
use crate::metrics::Metrics;
use crate::record::{Fence, Progress, RECORD_LEN_MAX, Record, ReplicaConfig};
use crate::write::{Write, admit};
use device::{BlockCount, Device, Geometry, Lba, Status};
use futures_util::future::{join_all, try_join_all};
use model::Generation;
use rt::sync::oneshot;
use rt::{DmaBuf, DmaBytes, Durability};
use std::rc::Rc;

/// The hash of a block that cannot be read.
pub const UNREADABLE: [u8; 16] = [0xff; 16];

/// Writes within a ceiling after which the next one is raised no further than needed.
const LEASE_WRITES: u64 = 1024;
/// How far ahead a ceiling is raised, at most.
const LEASE_MAX: u64 = 1 << 16;
/// Extents unmapped in one go; between them others have their turn.
const UNMAP_EXTENTS: u64 = 64;

/// What a replica is and how it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaInfo {
    /// Its properties, with its present size.
    pub config: ReplicaConfig,
    /// Who may write.
    pub fence: Fence,
    /// Everything up to this generation is here and durable.
    pub stable: Generation,
    /// What a rebuild has done so far.
    pub progress: Option<Progress>,
    /// Space that it takes, in bytes.
    pub used_bytes: u64,
    /// Blocks of 4 KiB whose contents are recorded as lost.
    pub bad_blocks: u64,
}

/// What changed since a generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changed {
    /// The pool cannot tell: every extent may have. Those that hold anything are listed by asking since `ZERO`.
    Everything,
    /// Exactly these.
    Extents {
        /// Extent and the generation that last changed it.
        list: Vec<(u64, Generation)>,
        /// From where to ask on, if there is more.
        next: Option<u64>,
    },
}

/// A replica of an open pool; clones are handles to the same one.
pub struct Replica<D: Device> {
    inner: Rc<Inner<D>>,
    layer: Rc<Layer>,
}

impl<D: Device> Clone for Replica<D> {
    fn clone(&self) -> Self {
        Self { inner: Rc::clone(&self.inner), layer: Rc::clone(&self.layer) }
    }
}

impl<D: Device + 'static> Replica<D> {
    pub(crate) fn new(inner: Rc<Inner<D>>, layer: Rc<Layer>) -> Self {
        Self { inner, layer }
    }

    /// The replica's properties.
    pub fn config(&self) -> ReplicaConfig {
        self.layer.config()
    }

    /// How it stands.
    pub fn info(&self) -> ReplicaInfo {
        info_of(&self.layer)
    }

    /// Its block size and count.
    pub fn geometry(&self) -> Geometry {
        let block_size = self.layer.block_size();
        Geometry { block_size, blocks: BlockCount(self.layer.size_bytes.get() / u64::from(block_size)) }
    }

    /// Fills `buf` from block `lba` on; what was never written reads as zeroes.
    pub async fn read(&self, lba: Lba, buf: DmaBuf) -> Result<DmaBuf, Status> {
        self.geometry().check(lba, buf.len())?;
        self.admit_read()?;
        Metrics::count(&self.inner.metrics, |metrics| {
            metrics.reads += 1;
            metrics.read_bytes += buf.len() as u64;
        });
        let offset = self.geometry().offset_bytes(lba);
        let end = offset + buf.len() as u64;
        let (first, count) = (offset / BLOCK_BYTES, end.div_ceil(BLOCK_BYTES) - offset / BLOCK_BYTES);
        if offset.is_multiple_of(BLOCK_BYTES) && end.is_multiple_of(BLOCK_BYTES) {
            return self.read_blocks(first, count, buf).await;
        }
        let whole = self.read_blocks(first, count, DmaBuf::new(index(count * BLOCK_BYTES))).await?;
        let mut buf = buf;
        let start = index(offset % BLOCK_BYTES);
        let len = buf.len();
        buf.copy_from_slice(&whole[start..start + len]);
        Ok(buf)
    }

    /// Writes `data` from block `lba` on.
    ///
    /// # Errors
    /// `Fenced` if the generation's epoch is over, `Invalid` if it was never accepted; `NoSpace` with nothing done.
    pub async fn write(
        &self,
        generation: Generation,
        lba: Lba,
        data: DmaBytes,
        durability: Durability,
    ) -> Result<(), Status> {
        self.geometry().check(lba, data.len())?;
        admit(&self.inner, &self.layer, generation)?;
        Metrics::count(&self.inner.metrics, |metrics| {
            metrics.writes += 1;
            metrics.written_bytes += data.len() as u64;
        });
        let offset = self.geometry().offset_bytes(lba);
        let aligned = offset.is_multiple_of(BLOCK_BYTES) && data.len().is_multiple_of(BLOCK_LEN);
        if aligned {
            let write = Write { generation, first: offset / BLOCK_BYTES, data, durability, locked: false };
            self.inner.write_blocks(&self.layer, write).await
        } else {
            self.write_within_blocks(generation, offset, data, durability).await
        }
    }

    /// Makes `count` blocks read as zeroes and gives their space back.
    pub async fn write_zeroes(
        &self,
        generation: Generation,
        lba: Lba,
        count: BlockCount,
        durability: Durability,
    ) -> Result<(), Status> {
        self.geometry().check_blocks(lba, count)?;
        admit(&self.inner, &self.layer, generation)?;
        let offset = self.geometry().offset_bytes(lba);
        let end = self.geometry().offset_bytes(lba.plus(count.0));
        // Volumes of 512-byte blocks: what is no whole block of the pool is written as zeroes.
        let inner_start = offset.next_multiple_of(BLOCK_BYTES).min(end);
        let inner_end = (end / BLOCK_BYTES * BLOCK_BYTES).max(inner_start);
        for (start, end) in [(offset, inner_start), (inner_end, end)] {
            if start < end {
                let zeroes = DmaBuf::zeroed(index(end - start)).freeze();
                self.write_within_blocks(generation, start, zeroes, Durability::Cached).await?;
            }
        }
        self.unmap_range(generation, inner_start / BLOCK_BYTES, (inner_end - inner_start) / BLOCK_BYTES)
            .await?;
        match durability {
            Durability::Cached => Ok(()),
            Durability::Durable => self.flush().await,
        }
    }

    /// Gives the space of `count` blocks back; they read as zeroes afterwards.
    pub async fn unmap(&self, generation: Generation, lba: Lba, count: BlockCount) -> Result<(), Status> {
        self.write_zeroes(generation, lba, count, Durability::Cached).await
    }

    /// Records that the contents of `count` blocks are lost: reads of them fail with `MediaRead` from now on, until they
    /// are written or unmapped. Durable when it returns.
    ///
    /// # Errors
    /// `Invalid` if they are no whole blocks of 4 KiB; `NoSpace` without room for one more page of the map; those of
    /// [`Self::write`].
    pub async fn mark_bad(&self, generation: Generation, lba: Lba, count: BlockCount) -> Result<(), Status> {
        self.geometry().check_blocks(lba, count)?;
        admit(&self.inner, &self.layer, generation)?;
        let (offset, len) = (self.geometry().offset_bytes(lba), self.geometry().offset_bytes(Lba(count.0)));
        if !offset.is_multiple_of(BLOCK_BYTES) || !len.is_multiple_of(BLOCK_BYTES) || len > EXTENT_SIZE {
            return Err(Status::Invalid);
        }
        self.inner.announce(&self.layer, generation).await?;
        let (first, count) = (offset / BLOCK_BYTES, len / BLOCK_BYTES);
        self.layer.until_free(first, count).await;
        admit(&self.inner, &self.layer, generation)?;
        let mut last = None;
        for (extent, blocks, _) in by_extent(first, count) {
            if !self.layer.map.borrow().has_chunk(extent) {
                if self.inner.space.borrow().alloc.metadata_slots() < self.inner.slots_needed(1) {
                    return Err(Status::NoSpace);
                }
                self.inner.chunks.set(self.inner.chunks.get() + 1);
            }
            last = Some(self.inner.spoil_blocks(&self.layer, generation, extent, blocks));
        }
        match last {
            Some(record) => self.inner.make_durable(record).await,
            None => Ok(()),
        }
    }

    /// Makes every write that has completed durable.
    pub async fn flush(&self) -> Result<(), Status> {
        self.inner.admit_change()?;
        self.inner.flush().await
    }

    /// Who may write.
    pub fn fence(&self) -> Fence {
        self.layer.fence.get()
    }

    /// From now on only `nexus` in `epoch` may change anything; durable when it returns, and every older write has ended.
    ///
    /// # Errors
    /// `Fenced` if a higher epoch, or another nexus in this one, has been accepted.
    pub async fn accept_epoch(&self, epoch: u64, nexus: uuid::Uuid) -> Result<(), Status> {
        self.admit_read()?;
        let fence = self.layer.fence.get();
        if epoch < fence.epoch || (epoch == fence.epoch && nexus != fence.nexus) {
            return Err(Status::Fenced);
        }
        let fence = Fence { epoch, nexus };
        let record = Record::Fence { layer: self.layer.number, fence };
        self.control(&record, || self.layer.fence.set(fence)).await?;
        self.inner.drain().await;
        Ok(())
    }

    /// Everything up to this generation is here and durable.
    pub fn stable(&self) -> Generation {
        self.layer.stable.get()
    }

    /// Makes everything that completed durable, then records that all up to `generation` is. Never goes back.
    pub async fn set_stable(&self, generation: Generation) -> Result<(), Status> {
        self.admit_read()?;
        self.flush().await?;
        if generation <= self.layer.stable.get() {
            return Ok(());
        }
        let record = Record::Stable { layer: self.layer.number, generation };
        self.control(&record, || self.layer.stable.set(generation)).await
    }

    /// What a rebuild of this replica has done so far.
    pub fn progress(&self) -> Option<Progress> {
        self.layer.progress.get()
    }

    /// Records that, durably, after making durable what it copied.
    pub async fn set_progress(&self, progress: Option<Progress>) -> Result<(), Status> {
        self.admit_read()?;
        self.flush().await?;
        let record = Record::Progress { layer: self.layer.number, progress };
        self.control(&record, || self.layer.progress.set(progress)).await
    }

    /// The latest copy of the volume's record.
    pub fn record(&self) -> Option<Vec<u8>> {
        self.layer.blob.borrow().clone()
    }

    /// Keeps a copy of the volume's record, durably.
    ///
    /// # Errors
    /// `Invalid` if it is longer than [`RECORD_LEN_MAX`].
    pub async fn set_record(&self, bytes: &[u8]) -> Result<(), Status> {
        self.admit_read()?;
        if bytes.len() > RECORD_LEN_MAX {
            return Err(Status::Invalid);
        }
        let bytes = bytes.to_vec();
        let record = Record::Blob { layer: self.layer.number, bytes: bytes.clone() };
        self.control(&record, || _ = self.layer.blob.replace(Some(bytes))).await
    }

    /// Makes the volume larger, durably.
    ///
    /// # Errors
    /// `Invalid` for a smaller size, or one that is not whole blocks.
    pub async fn resize(&self, size_bytes: u64) -> Result<(), Status> {
        self.admit_read()?;
        let config = ReplicaConfig { size_bytes, ..self.config() };
        if !config.is_sane() || size_bytes < self.layer.size_bytes.get() {
            return Err(Status::Invalid);
        }
        let record = Record::Size { layer: self.layer.number, size_bytes };
        self.control(&record, || self.layer.size_bytes.set(size_bytes)).await
    }

    /// Extents changed later than `since`, from `first_extent` on, at most `max_extents`; those that lost their last
    /// block included. Since `ZERO`: every extent that was ever written.
    pub fn changed_since(&self, since: Generation, first_extent: u64, max_extents: usize) -> Changed {
        let known = since == Generation::ZERO
            || (since >= self.layer.unsure.get() && since.epoch <= self.layer.fence.get().epoch);
        if !known {
            return Changed::Everything;
        }
        let map = self.layer.map.borrow();
        let mut changed = map
            .entries(first_extent)
            .filter(|(_, entry)| since == Generation::ZERO || entry.generation > since)
            .map(|(extent, entry)| (extent, entry.generation));
        let list = changed.by_ref().take(max_extents).collect();
        Changed::Extents { list, next: changed.next().map(|(extent, _)| extent) }
    }

    /// One keyed hash per block of 4 KiB of `extent`; zero for a block that is absent or all zeroes, [`UNREADABLE`] for
    /// one that the device cannot read.
    pub async fn hash_extent(&self, extent: u64, seed: u64) -> Result<Vec<[u8; 16]>, Status> {
        self.admit_read()?;
        let blocks = self.layer.size_bytes.get().div_ceil(BLOCK_BYTES);
        let first = extent.checked_mul(BLOCKS_PER_EXTENT).filter(|first| *first < blocks);
        let first = first.ok_or(Status::OutOfRange)?;
        let count = BLOCKS_PER_EXTENT.min(blocks - first);
        let whole = self.read_blocks(first, count, DmaBuf::new(index(count * BLOCK_BYTES))).await;
        match whole {
            Ok(bytes) => Ok(bytes.chunks_exact(BLOCK_LEN).map(|block| hash_block(block, seed)).collect()),
            Err(Status::MediaRead) => self.hash_each(first, count, seed).await,
            Err(status) => Err(status),
        }
    }

    /// The hashes of blocks of which some cannot be read.
    async fn hash_each(&self, first: u64, count: u64, seed: u64) -> Result<Vec<[u8; 16]>, Status> {
        let reads = (first..first + count).map(|block| self.read_blocks(block, 1, DmaBuf::new(BLOCK_LEN)));
        let hash = |read: Result<DmaBuf, Status>| match read {
            Ok(block) => Ok(hash_block(&block, seed)),
            // Of a pool that has failed nothing can be said, not even this.
            Err(Status::MediaRead) if !self.inner.failed.get() => Ok(UNREADABLE),
            Err(status) => Err(status),
        };
        join_all(reads).await.into_iter().map(hash).collect()
    }

    /// Counts of extents, for a rebuild's progress: those that hold anything.
    pub fn extents(&self) -> u64 {
        self.layer.size_bytes.get().div_ceil(EXTENT_SIZE)
    }

    async fn control(&self, record: &Record, apply: impl FnOnce()) -> Result<(), Status> {
        self.admit_read()?;
        self.inner.control(record, apply).await
    }

    fn admit_read(&self) -> Result<(), Status> {
        if self.inner.closed.get() || self.layer.deleted.get() { Err(Status::Gone) } else { Ok(()) }
    }

    /// Reads whole blocks, unaligned volumes' last block included.
    async fn read_blocks(&self, first: u64, count: u64, buf: DmaBuf) -> Result<DmaBuf, Status> {
        self.layer.until_free(first, count).await;
        self.read_now(first, count, buf).await
    }

    async fn read_now(&self, first: u64, count: u64, mut buf: DmaBuf) -> Result<DmaBuf, Status> {
        self.admit_read()?;
        let _reading = Reading::begin(&self.inner);
        if self.layer.map.borrow().is_bad(first, count) {
            return Err(Status::MediaRead);
        }
        let run = self.layer.map.borrow().runs(&self.inner.layout, first, count).next();
        if let Some(run) = run.filter(|run| run.blocks == count) {
            return self.read_run(run, buf).await;
        }
        let runs: Vec<Run> = self.layer.map.borrow().runs(&self.inner.layout, first, count).collect();
        let mut parts = Vec::with_capacity(runs.len());
        for run in &runs {
            let part = buf.split_to(index(run.blocks * BLOCK_BYTES));
            parts.push(self.read_run(*run, part));
        }
        let mut parts = try_join_all(parts).await?.into_iter();
        let mut whole = parts.next().expect("at least one run");
        parts.for_each(|part| whole.unsplit(part));
        Ok(whole)
    }

    async fn read_run(&self, run: Run, mut buf: DmaBuf) -> Result<DmaBuf, Status> {
        match run.offset {
            Some(offset) => buf = self.inner.read_at(offset, buf).await?,
            None => buf.fill(0),
        }
        // What recovery will not find must not be seen: a failed flush may have lost it, a map may be ahead of its journal.
        // No block is bad: this opening of the pool is over, and the next one may answer.
        if self.inner.failed.get() { Err(Status::Gone) } else { Ok(buf) }
    }

    /// Writes parts of blocks: reads the blocks around, in a task of its own, with everybody else kept away.
    async fn write_within_blocks(
        &self,
        generation: Generation,
        offset: u64,
        data: DmaBytes,
        durability: Durability,
    ) -> Result<(), Status> {
        let (sender, receiver) = oneshot();
        let replica = self.clone();
        rt::spawn(async move {
            sender.send(replica.read_modify_write(generation, offset, &data, durability).await);
        })
        .detach();
        receiver.recv().await.unwrap_or(Err(Status::Aborted))
    }

    async fn read_modify_write(
        &self,
        generation: Generation,
        offset: u64,
        data: &[u8],
        durability: Durability,
    ) -> Result<(), Status> {
        let first = offset / BLOCK_BYTES;
        let count = (offset + data.len() as u64).div_ceil(BLOCK_BYTES) - first;
        self.layer.until_free(first, count).await;
        let parts: Vec<_> = by_extent(first, count).map(|(extent, blocks, _)| (extent, blocks)).collect();
        for (extent, blocks) in &parts {
            self.layer.set_busy(*extent, *blocks);
        }
        let result = async {
            let mut whole = self.read_now(first, count, zero_blocks(count)).await?;
            let start = index(offset % BLOCK_BYTES);
            whole[start..start + data.len()].copy_from_slice(data);
            let write = Write { generation, first, data: whole.freeze(), durability, locked: true };
            self.inner.write_blocks(&self.layer, write).await
        }
        .await;
        self.layer.clear_busy(&parts);
        result
    }

    async fn unmap_range(&self, generation: Generation, first: u64, count: u64) -> Result<(), Status> {
        if count == 0 {
            return Ok(());
        }
        self.inner.announce(&self.layer, generation).await?;
        let mut next = first;
        let end = first + count;
        while next < end {
            let stop = end.min((next / BLOCKS_PER_EXTENT + UNMAP_EXTENTS) * BLOCKS_PER_EXTENT);
            self.layer.until_free(next, stop - next).await;
            admit(&self.inner, &self.layer, generation)?;
            let mut last = None;
            for (extent, blocks, _) in by_extent(next, stop - next) {
                last = self.inner.unmap_blocks(&self.layer, generation, extent, blocks).or(last);
            }
            if let Some(record) = last {
                self.inner.written(record).await?;
            }
            next = stop.max(self.next_entry(stop).min(end));
        }
        Ok(())
    }

    /// The first block at or after `block` that could be here.
    fn next_entry(&self, block: u64) -> u64 {
        let map = self.layer.map.borrow();
        map.entries(block / BLOCKS_PER_EXTENT)
            .next()
            .map_or(u64::MAX, |(extent, _)| extent * BLOCKS_PER_EXTENT)
    }
}

impl<D: Device + 'static> Inner<D> {
    /// Sees to it that a durable record has announced `generation`. Invariant 2.
    pub(crate) async fn announce(
        self: &Rc<Self>,
        layer: &Layer,
        generation: Generation,
    ) -> Result<(), Status> {
        let (ahead, writes) = layer.lease.get();
        layer.lease.set((ahead, writes.saturating_add(1)));
        if generation <= layer.ceiling.get() {
            return Ok(());
        }
        let _raising = layer.raising.lock().await;
        if generation <= layer.ceiling.get() {
            return Ok(());
        }
        admit(self, layer, generation)?;
        // Raised one by one while generations last; ever further while each lasts for few writes only.
        let (ahead, writes) = layer.lease.get();
        let ahead = if writes >= LEASE_WRITES { 0 } else { (ahead * 2 + 1).min(LEASE_MAX) };
        let counter = generation.counter.saturating_add(ahead);
        let ceiling = Generation::new(generation.epoch, counter);
        let record = Record::Ceiling { layer: layer.number, generation: ceiling };
        layer.announced.set(layer.announced.get().max(ceiling));
        let number = self.push(|out| record.encode(out));
        self.make_durable(number).await?;
        layer.ceiling.set(layer.ceiling.get().max(ceiling));
        layer.lease.set((ahead, 0));
        Ok(())
    }
}

/// A read on its way: what it reads is not given to somebody else meanwhile.
struct Reading<'a, D: Device + 'static> {
    inner: &'a Inner<D>,
    token: u64,
}

impl<'a, D: Device + 'static> Reading<'a, D> {
    fn begin(inner: &'a Inner<D>) -> Self {
        let token = inner.io.borrow_mut().begin();
        Self { inner, token }
    }
}

impl<D: Device + 'static> Drop for Reading<'_, D> {
    fn drop(&mut self) {
        self.inner.end_io(self.token);
    }
}

pub(crate) fn info_of(layer: &Layer) -> ReplicaInfo {
    ReplicaInfo {
        config: layer.config(),
        fence: layer.fence.get(),
        stable: layer.stable.get(),
        progress: layer.progress.get(),
        used_bytes: layer.used_bytes(),
        bad_blocks: layer.map.borrow().bad_blocks(),
    }
}

/// The keyed hash of one block; zero for zeroes.
pub(crate) fn hash_block(block: &[u8], seed: u64) -> [u8; 16] {
    if block.iter().all(|byte| *byte == 0) {
        return [0; 16];
    }
    xxhash_rust::xxh3::xxh3_128_with_seed(block, seed).to_le_bytes()
}

const _: () = assert!(BLOCKS_PER_EXTENT * BLOCK_BYTES == EXTENT_SIZE);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeroes_hash_to_zero_and_nothing_else_does() {
        let mut block = vec![0; BLOCK_LEN];
        assert_eq!(hash_block(&block, 7), [0; 16]);
        block[4095] = 1;
        assert_ne!(hash_block(&block, 7), [0; 16]);
        assert_ne!(hash_block(&block, 7), hash_block(&block, 8));
    }
}
