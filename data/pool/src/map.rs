//! The map of one layer: which blocks are here, where they lie, and when each extent last changed.
//!
//! Held in memory whole, in chunks of 63 extents: one page on disk each. A checkpoint shares the chunks it is writing;
//! whoever changes one meanwhile gets a copy of its own, so a checkpoint sees one moment and stops nobody.
//!
//! # Invariants
//! 1. A present block has a piece, and is not bad.
//! 2. A changed chunk is in `dirty` until a checkpoint has taken it.

use crate::layout::{BLOCK_BYTES, BLOCKS_PER_EXTENT, BLOCKS_PER_PIECE, EXTENTS_PER_CHUNK, Layout, index};
use crate::layout::{mask, narrow};
use model::Generation;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// What the map says of one extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The newest generation that changed the extent.
    pub(crate) generation: Generation,
    /// Bit i: block i is here.
    pub(crate) present: u64,
    /// Bit i: block i is bad: it had contents that no copy could be given. Neither here nor absent; takes no space.
    pub(crate) bad: u64,
    /// The pieces, plus one; zero: none.
    pub(crate) pieces: [u32; 8],
}

impl Entry {
    pub(crate) const EMPTY: Self = Self { generation: Generation::ZERO, present: 0, bad: 0, pieces: [0; 8] };

    /// The pieces, as a mask, that have blocks in `blocks`.
    pub(crate) fn pieces_of(blocks: u64) -> u8 {
        let mut pieces = 0;
        for i in 0..8 {
            pieces |= u8::from(blocks >> (i * 8) & 0xff != 0) << i;
        }
        pieces
    }
}

/// 63 neighbouring extents.
#[derive(Clone)]
pub(crate) struct Chunk {
    pub(crate) entries: [Entry; 63],
    /// Per extent the number of its newest map record, and the blocks that it and the ones before it made present
    /// since all were settled; settled again once the number is below the durable mark.
    pub(crate) records: [u64; 63],
    pub(crate) fresh: [u64; 63],
}

impl Chunk {
    /// A chunk as a checkpoint holds it.
    pub(crate) const fn settled(entries: &[Entry; 63]) -> Self {
        Self { entries: *entries, records: [0; 63], fresh: [0; 63] }
    }

    pub(crate) const fn empty() -> Self {
        Self::settled(&[Entry::EMPTY; 63])
    }
}

/// A stretch of blocks that lie together on the device, or are all absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// Byte offset on the device; `None` for a hole.
    pub(crate) offset: Option<u64>,
    /// Length in blocks.
    pub(crate) blocks: u64,
}

/// The map of one layer.
#[derive(Clone, Default)]
pub(crate) struct Map {
    pub(crate) chunks: BTreeMap<u64, Rc<Chunk>>,
    pub(crate) dirty: BTreeSet<u64>,
    /// Set once a block is made bad; without it nobody need look for one.
    pub(crate) has_bad: bool,
}

fn place(extent: u64) -> (u64, usize) {
    (extent / EXTENTS_PER_CHUNK, index(extent % EXTENTS_PER_CHUNK))
}

impl Map {
    /// The entry of `extent`; empty where there is none.
    pub(crate) fn get(&self, extent: u64) -> Entry {
        let (chunk, slot) = place(extent);
        self.chunks.get(&chunk).map_or(Entry::EMPTY, |chunk| chunk.entries[slot])
    }

    /// Whether the chunk of `extent` exists.
    pub(crate) fn has_chunk(&self, extent: u64) -> bool {
        self.chunks.contains_key(&place(extent).0)
    }

    /// The entry of `extent`, to change it.
    pub(crate) fn change(&mut self, extent: u64) -> &mut Entry {
        let (chunk, slot) = self.change_chunk(extent);
        &mut chunk.entries[slot]
    }

    fn change_chunk(&mut self, extent: u64) -> (&mut Chunk, usize) {
        let (number, slot) = place(extent);
        self.dirty.insert(number);
        let chunk = self.chunks.entry(number).or_insert_with(|| Rc::new(Chunk::empty()));
        (Rc::make_mut(chunk), slot)
    }

    /// `record` made `blocks` of `extent` present.
    pub(crate) fn note_fresh(&mut self, extent: u64, blocks: u64, record: u64, settled: u64) {
        let (chunk, slot) = self.change_chunk(extent);
        if chunk.records[slot] < settled {
            chunk.fresh[slot] = 0;
        }
        chunk.fresh[slot] |= blocks;
        chunk.records[slot] = record;
    }

    /// The record that must be settled before `blocks` of `extent` may be overwritten, if any.
    pub(crate) fn unsettled(&self, extent: u64, blocks: u64, settled: u64) -> Option<u64> {
        let (chunk, slot) = place(extent);
        let chunk = self.chunks.get(&chunk)?;
        let doubtful = chunk.fresh[slot] & chunk.entries[slot].present & blocks;
        (chunk.records[slot] >= settled && doubtful != 0).then(|| chunk.records[slot])
    }

    /// Stamps `extent`, which has an entry, with `generation` if that is newer.
    pub(crate) fn stamp(&mut self, extent: u64, generation: Generation) {
        let (chunk, slot) = place(extent);
        if self.chunks.get(&chunk).is_some_and(|chunk| chunk.entries[slot].generation < generation) {
            self.change(extent).generation = generation;
        }
    }

    /// The stretches that `count` blocks from `first` on consist of.
    pub(crate) fn runs<'a>(&'a self, layout: &'a Layout, first: u64, count: u64) -> Runs<'a> {
        Runs { map: self, layout, next: first, end: first + count, cached: None }
    }

    /// Whether any of `count` blocks from `first` on is bad.
    pub(crate) fn is_bad(&self, first: u64, count: u64) -> bool {
        self.has_bad && by_extent(first, count).any(|(extent, blocks, _)| self.get(extent).bad & blocks != 0)
    }

    /// How many blocks are bad.
    pub(crate) fn bad_blocks(&self) -> u64 {
        if !self.has_bad {
            return 0;
        }
        self.entries(0).map(|(_, entry)| u64::from(entry.bad.count_ones())).sum()
    }

    /// Every entry that says something, in order, from extent `first` on.
    pub(crate) fn entries(&self, first: u64) -> impl Iterator<Item = (u64, &Entry)> {
        let (chunk, _) = place(first);
        self.chunks
            .range(chunk..)
            .flat_map(|(number, chunk)| (number * EXTENTS_PER_CHUNK..).zip(chunk.entries.iter()))
            .filter(move |(extent, entry)| *extent >= first && **entry != Entry::EMPTY)
    }
}

/// The iterator behind [`Map::runs`].
pub(crate) struct Runs<'a> {
    map: &'a Map,
    layout: &'a Layout,
    next: u64,
    end: u64,
    cached: Option<(u64, Entry)>,
}

impl Runs<'_> {
    fn entry(&mut self, extent: u64) -> Entry {
        match self.cached {
            Some((cached, entry)) if cached == extent => entry,
            _ => {
                let entry = self.map.get(extent);
                self.cached = Some((extent, entry));
                entry
            }
        }
    }

    /// The stretch at `next` within one piece.
    fn step(&mut self) -> Run {
        let entry = self.entry(self.next / BLOCKS_PER_EXTENT);
        let block = narrow(self.next % BLOCKS_PER_EXTENT);
        let room = u64::from(BLOCKS_PER_PIECE - block % BLOCKS_PER_PIECE).min(self.end - self.next);
        let here = entry.present >> block & 1 == 1;
        // The length of the stretch of equal bits, within the piece.
        let bits = if here { !entry.present } else { entry.present } >> block;
        let blocks = room.min(u64::from(bits.trailing_zeros()));
        let offset = here.then(|| {
            self.layout.block_offset(entry.pieces[index(u64::from(block / BLOCKS_PER_PIECE))], block)
        });
        Run { offset, blocks }
    }
}

impl Iterator for Runs<'_> {
    type Item = Run;

    fn next(&mut self) -> Option<Run> {
        if self.next >= self.end {
            return None;
        }
        let mut run = self.step();
        self.next += run.blocks;
        while self.next < self.end {
            let more = self.step();
            let follows = match (run.offset, more.offset) {
                (Some(offset), Some(next)) => offset + run.blocks * BLOCK_BYTES == next,
                (None, None) => true,
                _ => false,
            };
            if !follows {
                break;
            }
            run.blocks += more.blocks;
            self.next += more.blocks;
        }
        Some(run)
    }
}

/// The parts that a range of blocks has in each extent: extent, mask of blocks, index of the first in the range.
pub(crate) fn by_extent(first: u64, count: u64) -> impl Iterator<Item = (u64, u64, u64)> {
    let end = first + count;
    let mut next = first;
    std::iter::from_fn(move || {
        (next < end).then(|| {
            let extent = next / BLOCKS_PER_EXTENT;
            let here = (end.min((extent + 1) * BLOCKS_PER_EXTENT)) - next;
            let part = (extent, mask(narrow(next % BLOCKS_PER_EXTENT), narrow(here)), next - first);
            next += here;
            part
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranges_split_by_extent() {
        let parts: Vec<_> = by_extent(62, 67).collect();
        assert_eq!(parts, [(0, 3 << 62, 0), (1, u64::MAX, 2), (2, 1, 66)]);
    }

    #[test]
    fn a_shared_chunk_is_copied_before_it_changes() {
        let mut map = Map::default();
        map.change(5).generation = Generation::new(1, 1);
        let taken = Rc::clone(&map.chunks[&0]);
        map.dirty.clear();
        map.stamp(5, Generation::new(1, 1));
        assert!(map.dirty.is_empty());
        map.stamp(5, Generation::new(1, 2));
        assert_eq!(taken.entries[5].generation, Generation::new(1, 1));
        assert_eq!(map.get(5).generation, Generation::new(1, 2));
        assert!(map.dirty.contains(&0));
    }

    proptest! {
        #[test]
        fn runs_cover_exactly_what_was_asked(
            extents in proptest::collection::vec(any::<(u64, [u8; 8])>(), 3),
            first in 0u64..150,
            count in 1u64..150,
        ) {
            let layout = Layout::new(1 << 30).expect("large enough");
            let count = count.min(192 - first);
            let mut map = Map::default();
            for (extent, (present, pieces)) in (0..).zip(&extents) {
                let entry = map.change(extent);
                entry.present = *present;
                entry.pieces = pieces.map(|piece| u32::from(piece) + 1);
            }
            let mut next = first;
            let mut previous: Option<Run> = None;
            for run in map.runs(&layout, first, count) {
                prop_assert!(run.blocks > 0);
                for i in 0..run.blocks {
                    let (extent, block) = ((next + i) / 64, narrow((next + i) % 64));
                    let entry = map.get(extent);
                    let expected = (entry.present >> block & 1 == 1)
                        .then(|| layout.block_offset(entry.pieces[index(u64::from(block / 8))], block));
                    prop_assert_eq!(run.offset.map(|offset| offset + i * BLOCK_BYTES), expected);
                }
                if let Some(Run { offset: Some(offset), blocks }) = previous {
                    prop_assert_ne!(run.offset, Some(offset + blocks * BLOCK_BYTES), "runs are as long as they can be");
                }
                previous = Some(run);
                next += run.blocks;
            }
            prop_assert_eq!(next, first + count);
        }
    }
}
