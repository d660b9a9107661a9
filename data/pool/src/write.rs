//! Writing: overwrites that touch no metadata, and first writes that take space and journal a record beside their data.
//!
//! # Invariants
//! 1. All space that a command needs is taken before anything of it is written, or nothing is.
//! 2. A block that becomes present is busy until its data has arrived: nobody reads what lay there before.
//! 3. A write that has a record runs in a task of its own: dropping the caller's future does not stop it half-way.
//! 4. A block is overwritten in place only when it is settled: recovery needs its record's checksum no more.

use crate::inner::Inner;
use crate::layer::Layer;
use crate::layout::{BLOCK_BYTES, BLOCK_LEN, PIECES_PER_EXTENT, crc32c, index};
use crate::map::{Entry, Map, Run, by_extent};
use crate::metrics::Metrics;
use crate::record::{MapRecord, Record, UnmapRecord};
use device::{Device, Status};
use futures_util::future::{join, try_join_all};
use model::Generation;
use rt::sync::oneshot;
use rt::{DmaBytes, Durability};
use std::rc::Rc;

/// Blocks of one extent from which on a write takes the whole extent.
const LARGE_BLOCKS: u32 = 32;
/// Attempts to find space by making freed space usable.
const RECLAIM_ATTEMPTS: usize = 2;

/// A write of whole blocks of 4 KiB.
pub(crate) struct Write {
    pub(crate) generation: Generation,
    /// First block, in units of 4 KiB.
    pub(crate) first: u64,
    pub(crate) data: DmaBytes,
    pub(crate) durability: Durability,
    /// The caller has made the blocks busy.
    pub(crate) locked: bool,
}

impl Write {
    fn count(&self) -> u64 {
        (self.data.len() / BLOCK_LEN) as u64
    }
}

/// A first write whose space is taken and whose records are in the journal.
struct Begun {
    first_record: u64,
    last_record: u64,
    /// Blocks that become present, per extent.
    fresh: Vec<(u64, u64)>,
    /// Those of them that were bad.
    bad: Vec<(u64, u64)>,
    runs: Vec<Run>,
    token: u64,
}

/// Sees to it that the space of a write that was dropped half-way is not given to somebody else.
struct Abandon<'a, D: Device + 'static> {
    inner: &'a Inner<D>,
    token: u64,
    run: Option<(u64, u64)>,
}

impl<D: Device + 'static> Drop for Abandon<'_, D> {
    fn drop(&mut self) {
        if let Some((offset, len)) = self.run {
            self.inner.space.borrow_mut().abandon(self.inner.pieces_at(offset, len));
        }
        self.inner.end_io(self.token);
    }
}

impl<D: Device + 'static> Inner<D> {
    /// Writes whole blocks.
    pub(crate) async fn write_blocks(self: &Rc<Self>, layer: &Rc<Layer>, write: Write) -> Result<(), Status> {
        let (first, count) = (write.first, write.count());
        self.announce(layer, write.generation).await?;
        let mut attempts = 0;
        loop {
            if !write.locked {
                layer.until_free(first, count).await;
            }
            admit(self, layer, write.generation)?;
            if let Some(record) = self.unsettled(layer, first, count) {
                self.settle_through(record).await?; // Invariant 4.
                continue;
            }
            if let Some(offset) = self.one_run(layer, first, count) {
                return self.overwrite(layer, offset, &write).await;
            }
            match self.begin_write(layer, &write) {
                Ok(begun) => return self.run_apart(layer, write, begun).await,
                Err(_) if attempts < RECLAIM_ATTEMPTS && self.reclaim().await? => attempts += 1,
                Err(status) => {
                    Metrics::count(&self.metrics, |metrics| metrics.refused_no_space += 1);
                    return Err(status);
                }
            }
        }
    }

    /// The newest record that must be settled before any of the blocks may be overwritten.
    fn unsettled(&self, layer: &Layer, first: u64, count: u64) -> Option<u64> {
        let settled = self.settled.get();
        if self.mapped.get() <= settled {
            return None;
        }
        let map = layer.map.borrow();
        by_extent(first, count).filter_map(|(extent, blocks, _)| map.unsettled(extent, blocks, settled)).max()
    }

    /// The one stretch that the blocks are, if all are here and lie together.
    fn one_run(&self, layer: &Layer, first: u64, count: u64) -> Option<u64> {
        let run = layer.map.borrow().runs(&self.layout, first, count).next()?;
        run.offset.filter(|_| run.blocks == count)
    }

    /// The fast path: one device write, no metadata.
    async fn overwrite(&self, layer: &Layer, offset: u64, write: &Write) -> Result<(), Status> {
        stamp(layer, write);
        let len = write.data.len() as u64;
        let token = self.io.borrow_mut().begin();
        let mut abandon = Abandon { inner: self, token, run: Some((offset, len)) };
        let result = self.write_at(offset, write.data.clone(), write.durability).await;
        abandon.run = None;
        result
    }

    /// Takes space, changes the map and journals it, all in one step; or does nothing.
    fn begin_write(self: &Rc<Self>, layer: &Layer, write: &Write) -> Result<Begun, Status> {
        let (first, count) = (write.first, write.count());
        let taken = self.take_space(layer, first, count)?; // Invariant 1.
        stamp(layer, write);
        let settled = self.settled.get();
        let mut begun = Begun {
            first_record: self.journal.borrow().next_record(),
            last_record: 0,
            fresh: Vec::new(),
            bad: Vec::new(),
            runs: Vec::new(),
            token: self.io.borrow_mut().begin(),
        };
        for ((extent, blocks, start), pieces) in by_extent(first, count).zip(taken) {
            let mut map = layer.map.borrow_mut();
            let fresh = blocks & !map.get(extent).present;
            if fresh == 0 {
                continue;
            }
            let entry = map.change(extent);
            entry.present |= fresh;
            if entry.bad & fresh != 0 {
                begun.bad.push((extent, entry.bad & fresh));
                entry.bad &= !fresh;
            }
            entry.generation = entry.generation.max(write.generation);
            for (piece, taken) in entry.pieces.iter_mut().zip(pieces) {
                if taken != 0 {
                    *piece = taken;
                }
            }
            let crcs = checksums(&write.data[index(start) * BLOCK_LEN..], blocks, fresh);
            let generation = write.generation;
            let layer_number = layer.number;
            let map_record =
                MapRecord { layer: layer_number, extent, generation, blocks: fresh, pieces, crcs };
            begun.last_record = self.push(|out| map_record.encode(out));
            map.note_fresh(extent, fresh, begun.last_record, settled);
            begun.fresh.push((extent, fresh));
            if !write.locked {
                layer.set_busy(extent, fresh); // Invariant 2.
            }
        }
        begun.runs = layer.map.borrow().runs(&self.layout, first, count).collect();
        if begun.last_record != 0 {
            self.mapped.set(begun.last_record + 1);
            self.data.borrow_mut().insert(begun.first_record);
            Metrics::count(&self.metrics, |metrics| metrics.recorded_writes += 1);
            self.start_settler();
        }
        Ok(begun)
    }

    /// New pieces for every extent of the range, or none at all.
    fn take_space(&self, layer: &Layer, first: u64, count: u64) -> Result<Vec<[u32; 8]>, Status> {
        self.release_space();
        let map = layer.map.borrow();
        let mut chunks = Vec::new();
        let mut all = Vec::new();
        let streams = layer.stream.get() == first;
        let mut space = self.space.borrow_mut();
        let alloc = &mut space.alloc;
        let mut enough = true;
        for (extent, blocks, _) in by_extent(first, count) {
            if !map.has_chunk(extent) && chunks.last() != Some(&(extent / crate::layout::EXTENTS_PER_CHUNK)) {
                chunks.push(extent / crate::layout::EXTENTS_PER_CHUNK);
            }
            let keep = self.slots_needed(chunks.len() as u64);
            let entry = map.get(extent);
            let mut pieces = [0; 8];
            let needed = missing(&entry, blocks);
            let whole = entry.pieces == [0; 8] && (streams || blocks.count_ones() >= LARGE_BLOCKS);
            if !chunks.is_empty() && alloc.metadata_slots() < keep {
                enough = false;
            } else if let Some(start) = whole.then(|| alloc.take_extent(keep)).flatten() {
                for (i, piece) in (0..PIECES_PER_EXTENT).zip(&mut pieces) {
                    *piece = start + i;
                }
            } else {
                for i in (0..8).filter(|i| needed >> i & 1 == 1) {
                    let before = if i == 0 { 0 } else { pieces[i - 1].max(entry.pieces[i - 1]) };
                    let wanted = (before != 0).then_some(before + 1);
                    match alloc.take_piece(wanted, keep) {
                        Some(piece) => pieces[i] = piece,
                        None => enough = false,
                    }
                }
            }
            all.push(pieces);
            if !enough {
                break;
            }
        }
        let taken = all.iter().flatten().filter(|piece| **piece != 0);
        if !enough {
            taken.for_each(|piece| alloc.release(*piece));
            return Err(Status::NoSpace);
        }
        layer.owned_pieces.set(layer.owned_pieces.get() + taken.count() as u64);
        self.chunks.set(self.chunks.get() + chunks.len() as u64);
        layer.stream.set(first + count);
        Ok(all)
    }

    /// Makes freed space usable, if there is any; whether it is worth another attempt.
    async fn reclaim(self: &Rc<Self>) -> Result<bool, Status> {
        let Some(record) = self.space.borrow().waiting_for() else { return Ok(false) };
        self.make_durable(record).await?;
        self.drain().await;
        self.release_space();
        Ok(true)
    }

    /// Runs the rest in a task of its own and waits for it. Invariant 3.
    async fn run_apart(self: &Rc<Self>, layer: &Rc<Layer>, write: Write, begun: Begun) -> Result<(), Status> {
        let (sender, receiver) = oneshot();
        let (inner, layer) = (Rc::clone(self), Rc::clone(layer));
        rt::spawn(async move { sender.send(inner.finish_write(&layer, &write, begun).await) }).detach();
        receiver.recv().await.unwrap_or(Err(Status::Aborted))
    }

    async fn finish_write(self: &Rc<Self>, layer: &Layer, write: &Write, begun: Begun) -> Result<(), Status> {
        if begun.last_record == 0 {
            // All here, but not in one stretch.
            let result = self.write_runs(&begun.runs, &write.data, write.durability).await;
            self.end_io(begun.token);
            return result;
        }
        let data = async {
            let result = self.write_runs(&begun.runs, &write.data, Durability::Cached).await;
            if result.is_err() {
                self.undo(layer, write.generation, &begun);
            }
            self.data.borrow_mut().remove(&begun.first_record);
            if !write.locked {
                layer.clear_busy(&begun.fresh);
            }
            self.end_io(begun.token);
            self.progress.notify();
            result
        };
        let (data, record) = join(data, self.written(begun.last_record)).await;
        data.and(record)?;
        match write.durability {
            Durability::Cached => Ok(()),
            Durability::Durable => self.flush().await,
        }
    }

    async fn write_runs(&self, runs: &[Run], data: &DmaBytes, durability: Durability) -> Result<(), Status> {
        if let [run] = runs {
            return self.write_at(run.offset.expect("all are here"), data.clone(), durability).await;
        }
        let mut start = 0;
        let writes = runs.iter().map(|run| {
            let len = index(run.blocks * BLOCK_BYTES);
            start += len;
            let part = data.slice(start - len..start);
            self.write_at(run.offset.expect("all are here"), part, durability)
        });
        try_join_all(writes).await.map(|_| ())
    }

    /// The data of a first write did not arrive: its blocks are absent again, or bad.
    fn undo(self: &Rc<Self>, layer: &Layer, generation: Generation, begun: &Begun) {
        self.undone.set(self.undone.get() + 1);
        if layer.deleted.get() {
            return;
        }
        for (extent, bad) in &begun.bad {
            self.spoil_blocks(layer, generation, *extent, *bad);
        }
        for (extent, blocks) in &begun.fresh {
            let bad = layer.map.borrow().get(*extent).bad;
            self.unmap_blocks(layer, generation, *extent, blocks & !bad);
        }
    }

    /// Makes blocks of one extent bad and frees what then holds nothing; returns the record.
    pub(crate) fn spoil_blocks(
        self: &Rc<Self>,
        layer: &Layer,
        generation: Generation,
        extent: u64,
        blocks: u64,
    ) -> u64 {
        let (freed, pieces) = take_out(&mut layer.map.borrow_mut(), generation, extent, blocks);
        {
            let mut map = layer.map.borrow_mut();
            map.change(extent).bad |= blocks;
            map.has_bad = true;
        }
        let bad = UnmapRecord { layer: layer.number, extent, generation, blocks, freed };
        let record = self.push(|out| Record::Bad(bad).encode(out));
        self.free_pieces(layer, &pieces, record);
        record
    }

    /// Makes blocks of one extent absent and frees what then holds nothing; returns the record, if anything changed.
    pub(crate) fn unmap_blocks(
        self: &Rc<Self>,
        layer: &Layer,
        generation: Generation,
        extent: u64,
        blocks: u64,
    ) -> Option<u64> {
        let mut map = layer.map.borrow_mut();
        let entry = map.get(extent);
        let blocks = blocks & (entry.present | entry.bad);
        if blocks == 0 {
            map.stamp(extent, generation);
            return None;
        }
        let (freed, pieces) = take_out(&mut map, generation, extent, blocks);
        drop(map);
        let unmap = UnmapRecord { layer: layer.number, extent, generation, blocks, freed };
        let record = self.push(|out| unmap.encode(out));
        self.free_pieces(layer, &pieces, record);
        Some(record)
    }

    /// Gives pieces back once `record` is durable and nothing is on its way to them.
    pub(crate) fn free_pieces(&self, layer: &Layer, pieces: &[u32], record: u64) {
        layer.owned_pieces.set(layer.owned_pieces.get() - pieces.len() as u64);
        let token = self.io.borrow().next();
        let mut space = self.space.borrow_mut();
        for piece in pieces {
            space.free_later(*piece, record, token);
        }
    }
}

/// Takes blocks out of an extent: they are neither here nor bad. Returns the pieces that then hold nothing, also as mask.
fn take_out(map: &mut Map, generation: Generation, extent: u64, blocks: u64) -> (u8, Vec<u32>) {
    let entry = map.change(extent);
    entry.present &= !blocks;
    entry.bad &= !blocks;
    entry.generation = entry.generation.max(generation);
    let touched = if entry.present == 0 { u8::MAX } else { Entry::pieces_of(blocks) };
    let idle = touched & !Entry::pieces_of(entry.present);
    let mut freed = 0;
    let mut pieces = Vec::new();
    for (i, piece) in entry.pieces.iter_mut().enumerate() {
        if idle >> i & 1 == 1 && *piece != 0 {
            freed |= 1 << i;
            pieces.push(std::mem::take(piece));
        }
    }
    (freed, pieces)
}

/// Whether the layer takes a write of `generation` now.
pub(crate) fn admit<D: Device + 'static>(
    inner: &Inner<D>,
    layer: &Layer,
    generation: Generation,
) -> Result<(), Status> {
    inner.admit_change()?;
    if layer.deleted.get() {
        return Err(Status::Gone);
    }
    match generation.epoch.cmp(&layer.fence.get().epoch) {
        std::cmp::Ordering::Less => Err(Status::Fenced),
        std::cmp::Ordering::Equal => Ok(()),
        std::cmp::Ordering::Greater => Err(Status::Invalid),
    }
}

fn stamp(layer: &Layer, write: &Write) {
    let mut map = layer.map.borrow_mut();
    for (extent, _, _) in by_extent(write.first, write.count()) {
        map.stamp(extent, write.generation);
    }
}

/// The checksums of those of `blocks` that are in `fresh`; `data` begins with the first of `blocks`.
fn checksums(data: &[u8], blocks: u64, fresh: u64) -> Vec<u32> {
    let numbers = (0..64u32).filter(|block| blocks >> block & 1 == 1);
    let contents = numbers.zip(data.chunks_exact(BLOCK_LEN));
    contents.filter(|(block, _)| fresh >> block & 1 == 1).map(|(_, block)| crc32c(block)).collect()
}

/// The pieces that `blocks` need and the entry lacks.
fn missing(entry: &Entry, blocks: u64) -> u8 {
    let mut missing = Entry::pieces_of(blocks);
    for (i, piece) in entry.pieces.iter().enumerate() {
        if *piece != 0 {
            missing &= !(1 << i);
        }
    }
    missing
}
