//! Which space is free: pieces for data, whole extents for large writes and for metadata.
//!
//! # Invariants
//! 1. Every piece is either free or owned by exactly one entry of one map, or belongs to a metadata extent, or waits in
//!    the limbo of [`crate::space`].
//! 2. Data never takes the space that the next checkpoint needs ([`Allocator::metadata_slots`]).

use crate::layout::{BLOCKS_PER_EXTENT, PIECES_PER_EXTENT, index, narrow};
use std::collections::{BTreeMap, BTreeSet};

const FULL: u8 = 0xff;

/// The free space of one pool.
#[derive(Debug)]
pub(crate) struct Allocator {
    /// Per extent the mask of its pieces in use.
    used: Vec<u8>,
    /// Extents with all pieces free.
    free: BTreeSet<u32>,
    /// Extents of which some, but not all, pieces are free.
    partial: BTreeSet<u32>,
    free_pieces: u64,
    /// Metadata extents, and which of their pages are in use.
    metadata: BTreeMap<u32, u64>,
    /// Metadata extents with a free page.
    metadata_free: BTreeSet<u32>,
    free_slots: u64,
    /// Where the next free extent is looked for: keeps streams together.
    cursor: u32,
}

impl Allocator {
    /// All of `extents` extents free.
    pub(crate) fn new(extents: u32) -> Self {
        Self {
            used: vec![0; index(extents.into())],
            free: (0..extents).collect(),
            partial: BTreeSet::new(),
            free_pieces: u64::from(extents) * u64::from(PIECES_PER_EXTENT),
            metadata: BTreeMap::new(),
            metadata_free: BTreeSet::new(),
            free_slots: 0,
            cursor: 0,
        }
    }

    /// Free pieces, those of free extents included.
    pub(crate) fn free_pieces(&self) -> u64 {
        self.free_pieces
    }

    /// Pages that a checkpoint could still take.
    pub(crate) fn metadata_slots(&self) -> u64 {
        self.free_slots + self.free.len() as u64 * BLOCKS_PER_EXTENT
    }

    /// Claims a piece (stored form) that a map owns, after all pages have been claimed.
    pub(crate) fn claim(&mut self, piece: u32) -> Result<(), &'static str> {
        let (extent, bit) = ((piece - 1) / PIECES_PER_EXTENT, 1 << ((piece - 1) % PIECES_PER_EXTENT));
        let Some(used) = self.used.get_mut(index(extent.into())) else {
            return Err("it lies beyond the pool");
        };
        if *used & bit != 0 {
            let metadata = self.metadata.contains_key(&extent);
            return Err(if metadata { "metadata lies there" } else { "something else owns it too" });
        }
        *used |= bit;
        self.free_pieces -= 1;
        Ok(())
    }

    /// Ends a series of [`Self::claim`]s: sorts the extents by what is left of them, in one pass.
    pub(crate) fn finish_claims(&mut self) {
        let with = |wanted: fn(u8) -> bool| {
            (0u32..).zip(&self.used).filter(move |(_, used)| wanted(**used)).map(|(extent, _)| extent)
        };
        self.free = with(|used| used == 0).collect();
        self.partial = with(|used| used != 0 && used != FULL).collect();
    }

    /// Claims a metadata page (stored form).
    pub(crate) fn claim_page(&mut self, page: u64) -> Result<(), &'static str> {
        let Ok(extent) = u32::try_from((page - 1) / BLOCKS_PER_EXTENT) else {
            return Err("it lies beyond the pool");
        };
        let bit = 1 << ((page - 1) % BLOCKS_PER_EXTENT);
        if index(extent.into()) >= self.used.len() {
            return Err("it lies beyond the pool");
        }
        if !self.metadata.contains_key(&extent) {
            if self.used[index(extent.into())] != 0 {
                return Err("data lies there");
            }
            self.add_metadata_extent(extent);
        }
        if self.metadata[&extent] & bit != 0 {
            return Err("something else owns it too");
        }
        self.set_slots(extent, self.metadata[&extent] | bit);
        Ok(())
    }

    /// Takes a whole extent for data; its pieces are the returned one (stored form) and the seven that follow.
    pub(crate) fn take_extent(&mut self, slots_to_keep: u64) -> Option<u32> {
        if self.metadata_slots() < slots_to_keep + BLOCKS_PER_EXTENT {
            return None;
        }
        let extent = self.next_free()?;
        self.set_used(extent, FULL);
        Some(extent * PIECES_PER_EXTENT + 1)
    }

    /// Takes one piece, preferably `wanted`, else of an extent already begun.
    pub(crate) fn take_piece(&mut self, wanted: Option<u32>, slots_to_keep: u64) -> Option<u32> {
        let wanted = wanted.map(|piece| piece - 1).filter(|piece| {
            let extent = piece / PIECES_PER_EXTENT;
            self.partial.contains(&extent)
                && self.used[index(extent.into())] & (1 << (piece % PIECES_PER_EXTENT)) == 0
        });
        let piece = if let Some(piece) = wanted {
            piece
        } else {
            let extent = match self.partial.first() {
                Some(extent) => *extent,
                None if self.metadata_slots() < slots_to_keep + BLOCKS_PER_EXTENT => return None,
                None => self.next_free()?,
            };
            extent * PIECES_PER_EXTENT + self.used[index(extent.into())].trailing_ones()
        };
        let extent = piece / PIECES_PER_EXTENT;
        self.set_used(extent, self.used[index(extent.into())] | 1 << (piece % PIECES_PER_EXTENT));
        Some(piece + 1)
    }

    /// Gives a piece (stored form) back.
    pub(crate) fn release(&mut self, piece: u32) {
        let (extent, bit) = ((piece - 1) / PIECES_PER_EXTENT, 1 << ((piece - 1) % PIECES_PER_EXTENT));
        let used = self.used[index(extent.into())];
        assert!(used & bit != 0 && !self.metadata.contains_key(&extent), "piece {piece} was not taken");
        self.set_used(extent, used & !bit);
    }

    /// Takes `count` metadata pages (stored form), lowest first; all or none.
    pub(crate) fn take_pages(&mut self, count: u64) -> Option<Vec<u64>> {
        if self.metadata_slots() < count {
            return None;
        }
        let mut pages = Vec::with_capacity(index(count));
        while (pages.len() as u64) < count {
            let Some(&extent) = self.metadata_free.first() else {
                let extent = self.next_free()?;
                self.add_metadata_extent(extent);
                continue;
            };
            let slots = self.metadata[&extent];
            let slot = slots.trailing_ones();
            self.set_slots(extent, slots | 1 << slot);
            pages.push(u64::from(extent) * BLOCKS_PER_EXTENT + u64::from(slot) + 1);
        }
        Some(pages)
    }

    /// Gives a metadata page (stored form) back.
    pub(crate) fn release_page(&mut self, page: u64) {
        let extent = narrow((page - 1) / BLOCKS_PER_EXTENT);
        let bit = 1 << ((page - 1) % BLOCKS_PER_EXTENT);
        let slots = self.metadata[&extent];
        assert!(slots & bit != 0, "page {page} was not taken");
        self.set_slots(extent, slots & !bit);
        if slots == bit {
            self.metadata.remove(&extent);
            self.metadata_free.remove(&extent);
            self.free_slots -= BLOCKS_PER_EXTENT;
            self.set_used(extent, 0);
        }
    }

    fn next_free(&mut self) -> Option<u32> {
        let extent = *self.free.range(self.cursor..).next().or_else(|| self.free.first())?;
        self.cursor = extent + 1;
        Some(extent)
    }

    fn add_metadata_extent(&mut self, extent: u32) {
        self.set_used(extent, FULL);
        self.metadata.insert(extent, 0);
        self.metadata_free.insert(extent);
        self.free_slots += BLOCKS_PER_EXTENT;
    }

    fn set_slots(&mut self, extent: u32, slots: u64) {
        let before = self.metadata.insert(extent, slots).expect("a metadata extent");
        self.free_slots += u64::from(before.count_ones());
        self.free_slots -= u64::from(slots.count_ones());
        if slots == u64::MAX {
            self.metadata_free.remove(&extent);
        } else {
            self.metadata_free.insert(extent);
        }
    }

    fn set_used(&mut self, extent: u32, used: u8) {
        let place = &mut self.used[index(extent.into())];
        self.free_pieces += u64::from(place.count_ones());
        self.free_pieces -= u64::from(used.count_ones());
        *place = used;
        self.free.remove(&extent);
        self.partial.remove(&extent);
        match used {
            0 => _ = self.free.insert(extent),
            FULL => {}
            _ => _ = self.partial.insert(extent),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_reserve_of_the_next_checkpoint_is_kept() {
        let mut alloc = Allocator::new(4);
        assert!(alloc.take_extent(3 * 64).is_some());
        assert!(alloc.take_extent(3 * 64).is_none());
        assert!(alloc.take_piece(None, 3 * 64).is_none());
        let piece = alloc.take_piece(None, 2 * 64).expect("one extent may be begun");
        assert!(alloc.take_piece(None, 3 * 64).is_some(), "an extent already begun costs metadata nothing");
        assert_eq!(alloc.take_piece(Some(piece + 3), 3 * 64), Some(piece + 3));
        assert!(alloc.take_pages(2 * 64).is_some());
        assert!(alloc.take_pages(1).is_none());
    }

    #[derive(Clone, Debug)]
    enum Step {
        Extent,
        Piece(Option<u32>),
        Pages(u64),
        Release(prop::sample::Index),
        ReleasePage(prop::sample::Index),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            Just(Step::Extent),
            proptest::option::of(1u32..129).prop_map(Step::Piece),
            (1u64..80).prop_map(Step::Pages),
            any::<prop::sample::Index>().prop_map(Step::Release),
            any::<prop::sample::Index>().prop_map(Step::ReleasePage),
        ]
    }

    proptest! {
        #[test]
        fn nothing_is_given_twice_and_all_comes_back(steps in proptest::collection::vec(step(), 0..200)) {
            let mut alloc = Allocator::new(16);
            let (mut pieces, mut pages) = (BTreeSet::new(), BTreeSet::new());
            for step in steps {
                match step {
                    Step::Extent => {
                        if let Some(first) = alloc.take_extent(0) {
                            prop_assert!((first..first + 8).all(|piece| pieces.insert(piece)));
                        }
                    }
                    Step::Piece(wanted) => {
                        if let Some(piece) = alloc.take_piece(wanted, 0) {
                            prop_assert!(pieces.insert(piece));
                        } else {
                            prop_assert_eq!(alloc.free_pieces(), 0);
                        }
                    }
                    Step::Pages(count) => {
                        let free = alloc.metadata_slots();
                        match alloc.take_pages(count) {
                            Some(taken) => {
                                prop_assert_eq!(taken.len() as u64, count);
                                prop_assert!(taken.into_iter().all(|page| pages.insert(page)));
                            }
                            None => prop_assert!(free < count),
                        }
                    }
                    Step::Release(which) => {
                        if let Some(piece) = pieces.iter().nth(which.index(pieces.len().max(1))).copied() {
                            pieces.remove(&piece);
                            alloc.release(piece);
                        }
                    }
                    Step::ReleasePage(which) => {
                        if let Some(page) = pages.iter().nth(which.index(pages.len().max(1))).copied() {
                            pages.remove(&page);
                            alloc.release_page(page);
                        }
                    }
                }
                // Pieces and pages never share an extent, and a rebuilt allocator knows the same.
                let mut rebuilt = Allocator::new(16);
                for page in &pages {
                    prop_assert_eq!(rebuilt.claim_page(*page), Ok(()));
                }
                for piece in &pieces {
                    prop_assert_eq!(rebuilt.claim(*piece), Ok(()));
                }
                rebuilt.finish_claims();
                prop_assert_eq!(&rebuilt.free, &alloc.free);
                prop_assert_eq!(&rebuilt.partial, &alloc.partial);
                prop_assert_eq!(rebuilt.free_pieces(), alloc.free_pieces());
                prop_assert_eq!(rebuilt.metadata_slots(), alloc.metadata_slots());
            }
            for piece in pieces { alloc.release(piece); }
            for page in pages { alloc.release_page(page); }
            prop_assert_eq!(alloc.free_pieces(), 128);
            prop_assert_eq!(alloc.metadata_slots(), 16 * 64);
        }
    }
}
