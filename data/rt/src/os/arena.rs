//! Memory registered with a ring: the kernel has pinned it once, so that an operation on it need not.
//!
//! An arena is one block of memory, given out in regions of a power of two. It is cut into chunks of 1 MiB; a chunk
//! holds regions of one size and goes back to the others when its last region does.
//!
//! # Invariants
//! 1. Regions of one arena never overlap.
//! 2. The memory lives until the last region and the ring have let go of it.
#![expect(unsafe_code, reason = "one aligned allocation")]

use crate::buf::BLOCK_ALIGN;
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::cell::RefCell;
use std::ptr::NonNull;
use std::rc::Rc;

pub(super) const CHUNK: usize = 1 << 20;
/// Region sizes: powers of two from 4 KiB to 1 MiB.
const CLASSES: usize = 9;
const WORDS: usize = CHUNK / BLOCK_ALIGN / 64;

thread_local! {
    /// The arena of this thread's reactor.
    static CURRENT: RefCell<Option<Rc<Arena>>> = const { RefCell::new(None) };
}

/// The memory registered with one ring.
#[derive(Debug)]
pub(crate) struct Arena {
    start: NonNull<u8>,
    len: usize,
    /// The ring that knows this memory, as its only registered buffer.
    ring: u64,
    state: RefCell<State>,
}

#[derive(Debug)]
struct State {
    chunks: Vec<Chunk>,
    empty: Vec<usize>,
    /// Chunks of each class that have room.
    partial: [Vec<usize>; CLASSES],
}

#[derive(Clone, Copy, Debug, Default)]
struct Chunk {
    class: usize,
    used: usize,
    taken: [u64; WORDS],
}

impl Chunk {
    /// Regions that the chunk holds.
    fn room(&self) -> usize {
        CHUNK / (BLOCK_ALIGN << self.class)
    }

    fn take(&mut self) -> usize {
        let word = self.taken.iter().position(|&word| word != u64::MAX).expect("a partial chunk has room");
        let slot = word * 64 + self.taken[word].trailing_ones() as usize;
        assert!(slot < self.room(), "a partial chunk has room");
        self.taken[word] |= 1 << (slot % 64);
        self.used += 1;
        slot
    }

    fn give_back(&mut self, slot: usize) {
        let (word, bit) = (slot / 64, 1 << (slot % 64));
        assert!(self.taken[word] & bit != 0, "region {slot} was given back twice");
        self.taken[word] &= !bit;
        self.used -= 1;
    }
}

impl Arena {
    fn layout(len: usize) -> Layout {
        Layout::from_size_align(len, CHUNK).expect("an arena is smaller than the address space")
    }

    /// Zeroed memory of `len` bytes, for `ring` to register; none where memory is short.
    pub(super) fn new(len: usize, ring: u64) -> Option<Self> {
        assert!(len > 0 && len.is_multiple_of(CHUNK), "an arena is made of whole chunks");
        // SAFETY: the length is not zero.
        let start = NonNull::new(unsafe { alloc_zeroed(Self::layout(len)) })?;
        let chunks = vec![Chunk::default(); len / CHUNK];
        let empty = (0..chunks.len()).rev().collect();
        let state = RefCell::new(State { chunks, empty, partial: Default::default() });
        Some(Self { start, len, ring, state })
    }

    pub(super) fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The ring that has this memory registered.
    pub(crate) fn ring(&self) -> u64 {
        self.ring
    }

    /// A region of `capacity` bytes, a power of two from 4 KiB on; none where the arena is full or the size too large.
    pub(crate) fn take(&self, capacity: usize) -> Option<NonNull<u8>> {
        let class = (capacity / BLOCK_ALIGN).ilog2() as usize;
        if class >= CLASSES {
            return None;
        }
        let state = &mut *self.state.borrow_mut();
        let index = if let Some(index) = state.partial[class].last() {
            *index
        } else {
            let index = state.empty.pop()?;
            state.chunks[index] = Chunk { class, ..Chunk::default() };
            state.partial[class].push(index);
            index
        };
        let chunk = &mut state.chunks[index];
        let offset = index * CHUNK + chunk.take() * capacity;
        if chunk.used == chunk.room() {
            state.partial[class].pop();
        }
        // SAFETY: the offset lies in chunk `index` of the allocation.
        Some(unsafe { self.start.add(offset) })
    }

    /// Takes a region back that `take` gave.
    pub(crate) fn give_back(&self, region: NonNull<u8>) {
        let offset = region.as_ptr() as usize - self.start.as_ptr() as usize;
        let state = &mut *self.state.borrow_mut();
        let index = offset / CHUNK;
        let chunk = &mut state.chunks[index];
        let class = chunk.class;
        let was_full = chunk.used == chunk.room();
        chunk.give_back(offset % CHUNK / (BLOCK_ALIGN << class));
        if was_full {
            state.partial[class].push(index);
        }
        if state.chunks[index].used == 0 {
            state.partial[class].retain(|&partial| partial != index);
            state.empty.push(index);
        }
    }

    /// Makes `arena` the source of this thread's regions.
    pub(super) fn make_current(arena: Option<Rc<Self>>) {
        let old = CURRENT.replace(arena);
        drop(old);
    }

    /// This thread's arena ceases to be the source of regions if it belongs to `ring`.
    pub(super) fn retire(ring: u64) {
        if Self::current().is_some_and(|arena| arena.ring == ring) {
            Self::make_current(None);
        }
    }

    /// The source of this thread's regions.
    pub(crate) fn current() -> Option<Rc<Self>> {
        // While the thread itself ends there may be none.
        CURRENT.try_with(|current| current.borrow().clone()).ok().flatten()
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this very layout, and freed only here.
        unsafe { dealloc(self.start.as_ptr(), Self::layout(self.len)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_never_overlap_and_chunks_change_their_size() {
        let arena = Arena::new(4 * CHUNK, 1).expect("memory");
        let mut random = 1_u64;
        let mut held: Vec<(usize, usize, NonNull<u8>)> = Vec::new();
        let mut refused = 0;
        for _ in 0..100_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let pick = usize::try_from(random >> 33).expect("31 bits");
            if pick.is_multiple_of(2) && !held.is_empty() {
                let (_, _, region) = held.swap_remove(pick / 2 % held.len());
                arena.give_back(region);
                continue;
            }
            let capacity = BLOCK_ALIGN << (pick / 2 % CLASSES);
            let Some(region) = arena.take(capacity) else {
                refused += 1;
                continue;
            };
            let at = region.as_ptr() as usize - arena.as_ptr() as usize;
            assert!(at.is_multiple_of(capacity) && at + capacity <= arena.len());
            assert!(held.iter().all(|&(start, len, _)| at + capacity <= start || start + len <= at));
            held.push((at, capacity, region));
        }
        assert!(refused > 0);
        for (_, _, region) in held {
            arena.give_back(region);
        }
        let whole: Vec<_> = (0..4).map(|_| arena.take(CHUNK).expect("all is free again")).collect();
        assert_eq!(arena.take(BLOCK_ALIGN), None);
        for region in whole {
            arena.give_back(region);
        }
        assert_eq!(arena.take(2 * CHUNK), None);
    }
}
