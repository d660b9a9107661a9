//! Space between owners: what has been freed waits until nobody can want it back and no I/O is still on its way there.
//!
//! # Invariants
//! 1. Freed space is given out again only after the record that freed it is durable.
//! 2. And only after every read and write has ended that began before it was freed.
//! 3. Space to which a write was abandoned half-way is not given out again before the pool is next opened.

use crate::alloc::Allocator;
use std::collections::{BTreeSet, VecDeque};

/// Neighbouring pieces that were freed together.
struct Freed {
    record: u64,
    token: u64,
    first: u32,
    count: u32,
}

/// Free space and what waits to become it.
pub(crate) struct Space {
    pub(crate) alloc: Allocator,
    limbo: VecDeque<Freed>,
    abandoned: BTreeSet<u32>,
}

impl Space {
    pub(crate) fn new(alloc: Allocator) -> Self {
        Self { alloc, limbo: VecDeque::new(), abandoned: BTreeSet::new() }
    }

    /// `piece` was freed by `record`; I/O up to `token` may still be on its way there.
    pub(crate) fn free_later(&mut self, piece: u32, record: u64, token: u64) {
        match self.limbo.back_mut() {
            Some(last)
                if last.record == record && last.token == token && last.first + last.count == piece =>
            {
                last.count += 1;
            }
            _ => self.limbo.push_back(Freed { record, token, first: piece, count: 1 }),
        }
    }

    /// Gives out again what was freed by records below `durable` and before all I/O that is still open.
    pub(crate) fn release(&mut self, durable: u64, open_io: u64) {
        let ready = |freed: &Freed| freed.record < durable && freed.token <= open_io;
        while self.limbo.front().is_some_and(ready) {
            let freed = self.limbo.pop_front().expect("there is a first");
            for piece in freed.first..freed.first + freed.count {
                if !self.abandoned.contains(&piece) {
                    self.alloc.release(piece);
                }
            }
        }
    }

    /// The newest record whose durability would free space, if any.
    pub(crate) fn waiting_for(&self) -> Option<u64> {
        self.limbo.back().map(|freed| freed.record)
    }

    /// A write to `pieces` was dropped before it completed.
    pub(crate) fn abandon(&mut self, pieces: impl Iterator<Item = u32>) {
        self.abandoned.extend(pieces);
    }
}

/// The I/Os under way, in the order in which they began.
#[derive(Default)]
pub(crate) struct Inflight {
    first: u64,
    ended: VecDeque<bool>,
}

impl Inflight {
    /// Begins one; returns its token.
    pub(crate) fn begin(&mut self) -> u64 {
        self.ended.push_back(false);
        self.next() - 1
    }

    /// Ends one.
    pub(crate) fn end(&mut self, token: u64) {
        let place = usize::try_from(token - self.first).expect("fewer than memory holds");
        self.ended[place] = true;
        while self.ended.front() == Some(&true) {
            self.ended.pop_front();
            self.first += 1;
        }
    }

    /// The token that the next one gets.
    pub(crate) fn next(&self) -> u64 {
        self.first + self.ended.len() as u64
    }

    /// Everything before this token has ended.
    pub(crate) fn oldest(&self) -> u64 {
        self.first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freed_space_waits_for_its_record_and_for_io() {
        let mut alloc = Allocator::new(8);
        let piece = alloc.take_piece(None, 0).expect("free");
        let mut space = Space::new(alloc);
        let mut io = Inflight::default();
        let (early, other) = (io.begin(), io.begin());
        space.free_later(piece, 10, io.next());
        let late = io.begin();
        io.end(other);
        space.release(11, io.oldest());
        assert_eq!(space.alloc.free_pieces(), 63, "an earlier read is still on its way");
        io.end(early);
        space.release(10, io.oldest());
        assert_eq!(space.alloc.free_pieces(), 63, "its record is not durable");
        space.release(11, io.oldest());
        assert_eq!(space.alloc.free_pieces(), 64);
        io.end(late);
        assert_eq!((io.oldest(), io.next()), (3, 3));
    }
}
