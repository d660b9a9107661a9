//! Applying the journal to the checkpoint, and believing only what deserves it.
//!
//! # Spec
//! `docs/formats/pool.md`, "Recovery".

use crate::error::Error;
use crate::layer::LayerState;
use crate::layout::{crc32c, index};
use crate::load::{Loaded, check_entry, read_blocks};
use crate::map::Entry;
use crate::record::{MapRecord, Record, UnmapRecord};
use crate::ring::Numbered;
use device::Device;
use std::collections::BTreeMap;

/// Blocks that only their checksums vouch for: per extent of a layer.
#[derive(Default)]
struct Doubtful(BTreeMap<(u32, u64), Vec<Claim>>);

/// A record's claim that a block is here.
struct Claim {
    block: u32,
    crc: u32,
    /// It was bad before: without this claim it still is.
    was_bad: bool,
}

impl Doubtful {
    fn has(&self, layer: u32, extent: u64, block: u32) -> bool {
        self.0.get(&(layer, extent)).is_some_and(|blocks| blocks.iter().any(|claim| claim.block == block))
    }

    fn add(&mut self, layer: u32, extent: u64, claim: Claim) {
        self.0.entry((layer, extent)).or_default().push(claim);
    }

    fn remove(&mut self, layer: u32, extent: u64, blocks: u64) {
        if let Some(doubtful) = self.0.get_mut(&(layer, extent)) {
            doubtful.retain(|claim| blocks >> claim.block & 1 == 0);
        }
    }

    fn remove_layer(&mut self, layer: u32) {
        self.0.retain(|(other, _), _| *other != layer);
    }
}

/// Applies the records of the journal to what the checkpoint says.
pub(crate) async fn apply(
    device: &impl Device,
    loaded: &mut Loaded,
    records: &[Numbered],
) -> Result<(), Error> {
    let marks = records.iter().map(|(_, record)| match record {
        Record::Mark { settled } => *settled,
        _ => 0,
    });
    let settled = marks.max().unwrap_or(0);
    let cut = loaded.superblock.cut;
    let mut doubtful = Doubtful::default();
    for (number, record) in records.iter().filter(|(number, _)| *number >= cut) {
        let applied = match record {
            Record::Map(map) => apply_map(loaded, map, *number < settled, &mut doubtful),
            Record::Unmap(unmap) => apply_unmap(loaded, unmap, false, &mut doubtful),
            Record::Bad(bad) => apply_unmap(loaded, bad, true, &mut doubtful),
            Record::Mark { .. } => true,
            Record::Delete { layer } => {
                doubtful.remove_layer(*layer);
                let gone = loaded.layers.remove(layer);
                let pages = gone.iter().flat_map(|layer| layer.directory.values());
                loaded.retired.extend(pages.map(|page| page.page));
                gone.is_some()
            }
            record => apply_control(loaded, record.clone()),
        };
        if !applied {
            let offset = loaded.superblock.layout.journal_offset;
            loaded.problem("journal", offset, format!("record {number} contradicts the ones before"));
        }
    }
    verify(device, loaded, doubtful).await;
    Ok(())
}

/// Applies a record that is not about space; whether it makes sense.
pub(crate) fn apply_control(loaded: &mut Loaded, record: Record) -> bool {
    let with = |layer: u32, loaded: &mut Loaded, change: &mut dyn FnMut(&mut LayerState)| {
        loaded.layers.get_mut(&layer).map(change).is_some()
    };
    match record {
        Record::Layer { layer, parent: _, config } => {
            loaded.next_layer = loaded.next_layer.max(layer.saturating_add(1));
            loaded.layers.insert(layer, LayerState::new(config)).is_none()
        }
        Record::Fence { layer, fence } => with(layer, loaded, &mut |state| state.fence = fence),
        Record::Stable { layer, generation } => with(layer, loaded, &mut |state| state.stable = generation),
        Record::Ceiling { layer, generation } => {
            with(layer, loaded, &mut |state| state.ceiling = state.ceiling.max(generation))
        }
        Record::Unsure { layer, generation } => with(layer, loaded, &mut |state| state.unsure = generation),
        Record::Progress { layer, progress } => with(layer, loaded, &mut |state| state.progress = progress),
        Record::Blob { layer, bytes } => with(layer, loaded, &mut |state| state.blob = Some(bytes.clone())),
        Record::Size { layer, size_bytes } => {
            with(layer, loaded, &mut |state| state.config.size_bytes = size_bytes)
        }
        Record::Delete { .. }
        | Record::Map(_)
        | Record::Unmap(_)
        | Record::Bad(_)
        | Record::Mark { .. }
        | Record::Directory { .. } => false,
    }
}

fn apply_map(loaded: &mut Loaded, map: &MapRecord, settled: bool, doubtful: &mut Doubtful) -> bool {
    let layout = loaded.superblock.layout;
    let Some(layer) = loaded.layers.get_mut(&map.layer) else { return false };
    let mut new = layer.map.get(map.extent);
    let (before, bad) = (new.present, new.bad);
    new.generation = new.generation.max(map.generation);
    new.present |= map.blocks;
    new.bad &= !map.blocks;
    for (piece, assigned) in new.pieces.iter_mut().zip(map.pieces) {
        if assigned != 0 {
            *piece = assigned;
        }
    }
    if check_entry(&layout, layer, map.extent, &new).is_err() {
        return false;
    }
    *layer.map.change(map.extent) = new;
    let blocks = (0..64u32).filter(|block| map.blocks >> block & 1 == 1);
    for (block, crc) in blocks.zip(&map.crcs) {
        let was_believed = before >> block & 1 == 1 && !doubtful.has(map.layer, map.extent, block);
        if !settled && !was_believed {
            let was_bad = bad >> block & 1 == 1;
            doubtful.add(map.layer, map.extent, Claim { block, crc: *crc, was_bad });
        }
    }
    true
}

/// Applies an unmap, or what makes blocks bad.
fn apply_unmap(loaded: &mut Loaded, unmap: &UnmapRecord, bad: bool, doubtful: &mut Doubtful) -> bool {
    let layout = loaded.superblock.layout;
    let Some(layer) = loaded.layers.get_mut(&unmap.layer) else { return false };
    let mut new = layer.map.get(unmap.extent);
    new.generation = new.generation.max(unmap.generation);
    new.present &= !unmap.blocks;
    new.bad = if bad { new.bad | unmap.blocks } else { new.bad & !unmap.blocks };
    layer.map.has_bad |= bad;
    for (i, piece) in new.pieces.iter_mut().enumerate() {
        if unmap.freed >> i & 1 == 1 {
            *piece = 0;
        }
    }
    if check_entry(&layout, layer, unmap.extent, &new).is_err() {
        return false;
    }
    *layer.map.change(unmap.extent) = new;
    doubtful.remove(unmap.layer, unmap.extent, unmap.blocks);
    true
}

/// Reads every doubtful block and takes those away that match none of their checksums. A block that the device cannot
/// read stays: reading it fails loudly, which absence would not.
async fn verify(device: &impl Device, loaded: &mut Loaded, doubtful: Doubtful) {
    let layout = loaded.superblock.layout;
    for ((number, extent), checksums) in doubtful.0 {
        let layer = loaded.layers.get_mut(&number).expect("its records were applied");
        let entry = layer.map.get(extent);
        let blocks = checksums.iter().fold(0u64, |blocks, claim| blocks | 1 << claim.block);
        let bad =
            checksums.iter().filter(|claim| claim.was_bad).fold(0u64, |bad, claim| bad | 1 << claim.block);
        let mut lost = 0u64;
        for (block, read) in read_blocks(device, &layout, &entry, blocks).await {
            let Ok(bytes) = read else { continue };
            let crc = crc32c(&bytes);
            if !checksums.iter().any(|claim| claim.block == block && claim.crc == crc) {
                lost |= 1 << block;
            }
        }
        if lost != 0 {
            let entry = layer.map.change(extent);
            entry.present &= !lost;
            entry.bad |= lost & bad;
            for i in 0..8u64 {
                if Entry::pieces_of(lost) & !Entry::pieces_of(entry.present) & (1 << i) != 0 {
                    entry.pieces[index(i)] = 0;
                }
            }
        }
    }
}
