//! What a simulated disk holds: stable blocks, and above them a volatile cache of writes that were not flushed.
//!
//! # Fault model
//! - A write is applied block by block; each block is written whole or not at all. From then on reads see it.
//! - Applied blocks are volatile until a flush that began after the write's completion ends, until the write's own FUA
//!   completes, or until the disk destages them on its own (the cache is bounded; the order of destaging is random).
//! - A power cut decides for each write in the cache whether it is kept, lost or torn (some blocks kept, in any
//!   pattern), independent of the order of writes; sometimes all are kept, all are lost, or all after a point are lost.
//! - Of several writes to a block, what remains is the youngest one that was kept, or else what was stable before.
//!
//! # Invariants
//! 1. A stable block never goes back to an older stamp: a kept old write does not undo a stable younger one.
//! 2. A block reads as the youngest of its stable contents and the cached writes to it.
//! 3. Memory is used for blocks that were written, not for the length of the disk.

use crate::sim::trace::{Fate, Kind};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::rc::Rc;

/// Writes that the volatile cache holds before it destages some on its own.
const CACHE_WRITES_MAX: usize = 1024;

/// Contents of a block; `None` is zeroes.
type Block = Option<Rc<[u8]>>;

#[derive(Debug, Default)]
struct Cell {
    current: Block,
    stable: Block,
    stable_stamp: u64,
}

/// A block as one write left it. Stamps grow with every applied block.
#[derive(Clone, Debug)]
struct Piece {
    block: u64,
    stamp: u64,
    content: Block,
}

/// A write in the cache.
#[derive(Debug, Default)]
struct Cached {
    /// Its place among the completed writes.
    completed: Option<u64>,
    pieces: Vec<Piece>,
}

/// The blocks of one disk.
#[derive(Debug)]
pub(super) struct Medium {
    block_len: usize,
    cells: BTreeMap<u64, Cell>,
    cache: BTreeMap<u64, Cached>,
    writes_begun: u64,
    writes_completed: u64,
    stamps: u64,
}

impl Medium {
    pub(super) fn new(block_len: usize) -> Self {
        Self {
            block_len,
            cells: BTreeMap::new(),
            cache: BTreeMap::new(),
            writes_begun: 0,
            writes_completed: 0,
            stamps: 0,
        }
    }

    /// Copies `bytes.len()` bytes from `start` of `block`, within the block.
    pub(super) fn read(&self, block: u64, start: usize, bytes: &mut [u8]) {
        match self.cells.get(&block).and_then(|cell| cell.current.as_ref()) {
            Some(content) => bytes.copy_from_slice(&content[start..start + bytes.len()]),
            None => bytes.fill(0),
        }
    }

    /// Begins a write and returns its number.
    pub(super) fn begin(&mut self) -> u64 {
        self.writes_begun += 1;
        self.cache.insert(self.writes_begun, Cached::default());
        self.writes_begun
    }

    /// Applies `bytes` of `write` from `start` of `block` on, within the block.
    pub(super) fn apply(&mut self, write: u64, block: u64, start: usize, bytes: &[u8]) {
        let content = if bytes.len() == self.block_len {
            Rc::from(bytes)
        } else {
            let mut whole = vec![0; self.block_len];
            self.read(block, 0, &mut whole);
            whole[start..start + bytes.len()].copy_from_slice(bytes);
            Rc::from(whole)
        };
        self.put(write, block, Some(content));
    }

    /// Applies zeroes of `write` to all of `blocks`. Blocks that nobody wrote are zero already, volatile ones included.
    pub(super) fn apply_zeroes(&mut self, write: u64, blocks: Range<u64>) {
        let written: Vec<u64> = self.cells.range(blocks).map(|(block, _)| *block).collect();
        for block in written {
            self.put(write, block, None);
        }
    }

    fn put(&mut self, write: u64, block: u64, content: Block) {
        self.stamps += 1;
        self.cells.entry(block).or_default().current.clone_from(&content);
        let cached =
            self.cache.get_mut(&write).expect("a write is applied between its begin and its completion");
        cached.pieces.push(Piece { block, stamp: self.stamps, content });
    }

    /// Completes `write`: flushes that begin from now on cover it. A full cache destages another write.
    pub(super) fn complete(&mut self, write: u64, fate: &mut Fate) {
        self.writes_completed += 1;
        let cached = self.cache.get_mut(&write).expect("completed once");
        cached.completed = Some(self.writes_completed);
        if self.cache.len() > CACHE_WRITES_MAX {
            let chosen = fate.rng.index(self.cache.len());
            let (&other, cached) = self.cache.iter().nth(chosen).expect("below the length");
            if cached.completed.is_some() && other != write {
                self.persist(other);
            }
        }
    }

    /// Forgets a write of which nothing was applied.
    pub(super) fn abandon(&mut self, write: u64) {
        let cached = self.cache.remove(&write);
        assert!(
            cached.is_some_and(|cached| cached.pieces.is_empty()),
            "an applied write cannot be taken back"
        );
    }

    /// Makes one write stable.
    pub(super) fn persist(&mut self, write: u64) {
        let cached = self.cache.remove(&write).expect("persisted once");
        for piece in cached.pieces {
            self.settle(piece);
        }
    }

    /// Makes a piece stable unless a younger one is (invariant 1).
    fn settle(&mut self, piece: Piece) {
        let cell = self.cells.get_mut(&piece.block).expect("a cached block has a cell");
        if cell.stable_stamp < piece.stamp {
            cell.stable = piece.content;
            cell.stable_stamp = piece.stamp;
        }
    }

    /// What a flush that begins now covers.
    pub(super) fn barrier(&self) -> u64 {
        self.writes_completed
    }

    /// Makes every write that completed before `barrier` was taken stable.
    pub(super) fn flush(&mut self, barrier: u64) {
        for write in self.covered(barrier) {
            self.persist(write);
        }
    }

    fn covered(&self, barrier: u64) -> Vec<u64> {
        let covered =
            self.cache.iter().filter(|(_, cached)| cached.completed.is_some_and(|at| at <= barrier));
        covered.map(|(write, _)| *write).collect()
    }

    /// Loses the cache: each completed write up to `barrier` is kept, lost or torn.
    pub(super) fn lose_cache(&mut self, barrier: u64, fate: &mut Fate) {
        let mut doomed: Vec<Cached> =
            self.covered(barrier).iter().filter_map(|write| self.cache.remove(write)).collect();
        doomed.retain(|cached| !cached.pieces.is_empty());
        doomed.sort_by_key(|cached| cached.completed);
        let verdict = Verdict::draw(doomed.len(), fate);
        let mut touched = BTreeSet::new();
        let (mut lost_one, mut reordered) = (false, false);
        for (place, cached) in doomed.into_iter().enumerate() {
            let pieces = cached.pieces.len();
            let kept = verdict.kept_pieces(place, pieces, fate);
            let kept_count = kept.iter().filter(|kept| **kept).count();
            fate.note(Kind::DiskFate, cached.completed.unwrap_or(0), kept_count as u64);
            fate.counters.writes_lost += u64::from(kept_count == 0);
            fate.counters.writes_torn += u64::from(0 < kept_count && kept_count < pieces);
            reordered |= lost_one && kept_count > 0;
            lost_one |= kept_count < pieces;
            for (piece, kept) in cached.pieces.into_iter().zip(kept) {
                touched.insert(piece.block);
                if kept {
                    self.settle(piece);
                }
            }
        }
        fate.counters.writes_reordered += u64::from(reordered);
        self.recompute(touched.into_iter());
    }

    /// Restores invariant 2 after cached writes were taken away.
    fn recompute(&mut self, blocks: impl Iterator<Item = u64>) {
        let mut youngest: BTreeMap<u64, &Piece> = BTreeMap::new();
        for piece in self.cache.values().flat_map(|cached| &cached.pieces) {
            let best = youngest.entry(piece.block).or_insert(piece);
            if best.stamp < piece.stamp {
                *best = piece;
            }
        }
        for block in blocks {
            let cell = self.cells.get_mut(&block).expect("a cached block has a cell");
            cell.current = match youngest.get(&block) {
                Some(piece) if piece.stamp > cell.stable_stamp => piece.content.clone(),
                _ => cell.stable.clone(),
            };
        }
    }

    /// Flips one bit of `block`, on the medium and in the cache.
    pub(super) fn flip(&mut self, block: u64, bit: usize) {
        let flipped = |content: &Block| -> Block {
            let mut bytes = content.as_ref().map_or_else(|| vec![0; self.block_len], |bytes| bytes.to_vec());
            bytes[bit / 8] ^= 1 << (bit % 8);
            Some(Rc::from(bytes))
        };
        let cell = self.cells.entry(block).or_default();
        cell.current = flipped(&cell.current);
        cell.stable = flipped(&cell.stable);
        for piece in self.cache.values_mut().flat_map(|cached| &mut cached.pieces) {
            if piece.block == block {
                piece.content = flipped(&piece.content);
            }
        }
    }

    /// Whether a power cut now would take nothing.
    pub(super) fn is_stable(&self) -> bool {
        self.cache.is_empty()
    }
}

/// How one loss of the cache treats the writes in it.
enum Verdict {
    KeepAll,
    LoseAll,
    /// Writes from this place on are lost, in order of completion.
    LoseFrom(usize),
    /// Each write by itself: kept, torn (both in permille), or lost.
    Each {
        kept: u64,
        torn: u64,
    },
}

impl Verdict {
    fn draw(writes: usize, fate: &mut Fate) -> Self {
        match fate.rng.below(8) {
            0 => Self::KeepAll,
            1 => Self::LoseAll,
            2 => Self::LoseFrom(fate.rng.index(writes + 1)),
            _ => Self::Each { kept: fate.rng.between(50, 750), torn: 200 },
        }
    }

    fn kept_pieces(&self, place: usize, pieces: usize, fate: &mut Fate) -> Vec<bool> {
        let all = |kept| vec![kept; pieces];
        match *self {
            Self::KeepAll => all(true),
            Self::LoseAll => all(false),
            Self::LoseFrom(first) => all(place < first),
            Self::Each { kept, torn } => match fate.rng.below(1000) {
                drawn if drawn < kept => all(true),
                drawn if drawn < kept + torn => some_of(pieces, fate),
                _ => all(false),
            },
        }
    }
}

/// A pattern of survivors: some at the front, some at the back, or any.
pub(super) fn some_of(count: usize, fate: &mut Fate) -> Vec<bool> {
    match fate.rng.below(3) {
        0 if count > 1 => {
            let cut = 1 + fate.rng.index(count - 1);
            (0..count).map(|index| index < cut).collect()
        }
        1 if count > 1 => {
            let cut = 1 + fate.rng.index(count - 1);
            (0..count).map(|index| index >= cut).collect()
        }
        _ => (0..count).map(|_| fate.rng.permille(500)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const BLOCKS: u64 = 6;

    /// What a block may hold after the next power cut: the model against which the medium is held.
    #[derive(Default)]
    struct Allowed {
        stable: u8,
        /// Contents of unflushed writes, oldest first, each with the number of its write.
        volatile: Vec<(u64, u8)>,
    }

    impl Allowed {
        fn current(&self) -> u8 {
            self.volatile.last().map_or(self.stable, |(_, tag)| *tag)
        }

        /// Everything up to and including the youngest of `writes` on this block is past.
        fn settle(&mut self, writes: &BTreeSet<u64>) {
            if let Some(last) = self.volatile.iter().rposition(|(write, _)| writes.contains(write)) {
                self.stable = self.volatile[last].1;
                self.volatile.drain(..=last);
            }
        }
    }

    fn settle_all(model: &mut [Allowed], writes: &BTreeSet<u64>) {
        for block in model {
            block.settle(writes);
        }
    }

    fn tag_of(medium: &Medium, block: u64) -> u8 {
        let mut bytes = [0; 8];
        medium.read(block, 0, &mut bytes);
        assert!(bytes.iter().all(|byte| *byte == bytes[0]), "a block is written whole");
        bytes[0]
    }

    /// Random writes, zeroes, flushes, FUA writes and power cuts: reads see the youngest write, and a power cut leaves of
    /// each block its stable content or that of one unflushed write to it.
    #[test]
    fn every_power_cut_leaves_what_is_allowed() {
        let (mut kept_old, mut kept_young, mut lost) = (0, 0, 0);
        for seed in 0..300 {
            let mut fate = Fate::new(seed);
            let mut medium = Medium::new(8);
            let mut model: Vec<Allowed> = (0..BLOCKS).map(|_| Allowed::default()).collect();
            let mut completed = BTreeSet::new();
            for tag in 1..=200_u8 {
                let first = fate.rng.below(BLOCKS);
                let blocks = first..fate.rng.between(first + 1, BLOCKS);
                match fate.rng.below(20) {
                    0 => {
                        let barrier = medium.barrier();
                        medium.flush(barrier);
                        settle_all(&mut model, &completed);
                    }
                    1 => {
                        medium.lose_cache(u64::MAX, &mut fate);
                        for (block, allowed) in (0..).zip(&mut model) {
                            let left = tag_of(&medium, block);
                            let unflushed = allowed.volatile.iter().rposition(|(_, tag)| *tag == left);
                            match unflushed {
                                Some(place) if place + 1 == allowed.volatile.len() => kept_young += 1,
                                Some(_) => kept_old += 1,
                                None => {
                                    assert_eq!(left, allowed.stable, "seed {seed}, block {block}");
                                    lost += u32::from(!allowed.volatile.is_empty());
                                }
                            }
                            *allowed = Allowed { stable: left, volatile: Vec::new() };
                        }
                    }
                    kind => {
                        let tag = if kind == 2 { 0 } else { tag };
                        let write = medium.begin();
                        if tag == 0 {
                            medium.apply_zeroes(write, blocks.clone());
                        }
                        for block in blocks {
                            if tag != 0 {
                                medium.apply(write, block, 0, &[tag; 8]);
                            }
                            model[usize::try_from(block).unwrap()].volatile.push((write, tag));
                        }
                        medium.complete(write, &mut fate);
                        completed.insert(write);
                        if kind == 3 {
                            medium.persist(write);
                            settle_all(&mut model, &BTreeSet::from([write]));
                        }
                    }
                }
                for (block, allowed) in (0..).zip(&model) {
                    assert_eq!(tag_of(&medium, block), allowed.current(), "seed {seed}, block {block}");
                }
            }
        }
        assert!(kept_old > 100 && kept_young > 100 && lost > 100, "{kept_old} {kept_young} {lost}");
    }

    #[test]
    fn a_flush_leaves_out_what_was_not_complete_when_it_began() {
        let mut fate = Fate::new(1);
        let mut medium = Medium::new(8);
        let write = medium.begin();
        medium.apply(write, 0, 0, &[1; 8]);
        let barrier = medium.barrier();
        medium.complete(write, &mut fate);
        medium.flush(barrier);
        assert!(!medium.is_stable());
        medium.flush(medium.barrier());
        assert!(medium.is_stable());
    }

    #[test]
    fn a_full_cache_destages_in_random_order_and_stays_bounded() {
        let mut fate = Fate::new(1);
        let mut medium = Medium::new(8);
        let limit = CACHE_WRITES_MAX as u64;
        for block in 0..10 * limit {
            let write = medium.begin();
            medium.apply(write, block, 0, &[1; 8]);
            medium.complete(write, &mut fate);
        }
        assert!(medium.cache.len() <= 2 * CACHE_WRITES_MAX);
        let oldest = *medium.cache.keys().next().unwrap();
        assert!(oldest < 9 * limit, "an old write may still be volatile");
    }
}
