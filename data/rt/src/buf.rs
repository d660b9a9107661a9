//! DMA buffers: aligned memory that an operation can own until its completion, in both drivers.
//!
//! [`DmaBuf`] is writable and the only owner of its bytes; [`DmaBytes`] is its frozen, shared form, cloned for the legs
//! of a mirror without copying. Both are windows into one reference-counted [`Region`], which comes from memory that the
//! thread's reactor has registered with the kernel where there is some left, else from the heap.
//!
//! # Invariants
//! 1. The windows of all `DmaBuf`s of one region are disjoint from each other and from every `DmaBytes`.
//! 2. A region's memory is freed or reused only after the last window is gone; an operation in flight holds a window.
//! 3. Memory is initialised (zeroed) when first allocated; a reused region holds older bytes, never uninitialised ones.
#![expect(
    unsafe_code,
    reason = "windows into shared, aligned memory; the wall that keeps the stages above safe"
)]

use crate::os::Arena;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::RefCell;
use std::fmt;
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;
use std::rc::Rc;

/// Alignment of every buffer's start: enough for `O_DIRECT` on any disk.
pub const BLOCK_ALIGN: usize = 4096;

/// Regions kept for reuse per size class and thread.
const FREE_PER_CLASS: usize = 64;
/// Size classes: powers of two from 4 KiB up to 1 MiB; larger regions are not kept.
const CLASSES: usize = 9;

/// One aligned piece of memory, shared by its windows.
struct Region {
    start: NonNull<u8>,
    capacity: usize,
    /// Where it goes back to; its own allocation if nowhere.
    arena: Option<Rc<Arena>>,
}

thread_local! {
    static FREE: RefCell<[Vec<Region>; CLASSES]> = const { RefCell::new([const { Vec::new() }; CLASSES]) };
}

fn class_of(capacity: usize) -> Option<usize> {
    let class = (capacity / BLOCK_ALIGN).ilog2() as usize;
    (class < CLASSES).then_some(class)
}

impl Region {
    fn layout(capacity: usize) -> Layout {
        Layout::from_size_align(capacity, BLOCK_ALIGN).expect("a buffer is smaller than the address space")
    }

    fn allocate(len: usize) -> Rc<Holder> {
        let capacity = len.max(BLOCK_ALIGN).next_power_of_two();
        let registered = Arena::current().and_then(|arena| {
            let start = arena.take(capacity)?;
            Some(Self { start, capacity, arena: Some(arena) })
        });
        let reused = || class_of(capacity).and_then(|class| FREE.with_borrow_mut(|free| free[class].pop()));
        let region = registered.or_else(reused).unwrap_or_else(|| {
            let layout = Self::layout(capacity);
            // SAFETY: the layout's size is at least BLOCK_ALIGN, so it is not zero.
            let start = unsafe { alloc_zeroed(layout) };
            let start = NonNull::new(start).unwrap_or_else(|| handle_alloc_error(layout));
            Self { start, capacity, arena: None }
        });
        Rc::new(Holder(Some(region)))
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        match &self.arena {
            Some(arena) => arena.give_back(self.start),
            // SAFETY: allocated in `allocate` with this very layout, and freed only here.
            None => unsafe { dealloc(self.start.as_ptr(), Self::layout(self.capacity)) },
        }
    }
}

/// The last window to go puts the region back on its thread's free list.
struct Holder(Option<Region>);

impl Holder {
    fn region(&self) -> &Region {
        self.0.as_ref().expect("taken only in drop")
    }

    fn start(&self) -> NonNull<u8> {
        self.region().start
    }

    /// The ring that has the memory registered; 0 if none.
    fn ring(&self) -> u64 {
        self.region().arena.as_ref().map_or(0, |arena| arena.ring())
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let Some(region) = self.0.take() else { return };
        let Some(class) = class_of(region.capacity).filter(|_| region.arena.is_none()) else { return };
        // While the thread itself ends its free list may be gone; then the region is simply freed.
        FREE.try_with(|free| {
            let mut free = free.borrow_mut();
            if free[class].len() < FREE_PER_CLASS {
                free[class].push(region);
            }
        })
        .ok();
    }
}

/// A writable buffer: the only owner of its bytes.
///
/// # Shape
/// A fresh buffer starts at a multiple of [`BLOCK_ALIGN`]; splitting at multiples of it keeps both parts aligned.
pub struct DmaBuf {
    region: Rc<Holder>,
    offset: usize,
    len: usize,
}

impl DmaBuf {
    /// A buffer of `len` bytes whose contents are arbitrary (older data of this process, never uninitialised).
    pub fn new(len: usize) -> Self {
        Self { region: Region::allocate(len), offset: 0, len }
    }

    /// A buffer of `len` zero bytes.
    pub fn zeroed(len: usize) -> Self {
        let mut buf = Self::new(len);
        buf.fill(0);
        buf
    }

    /// A buffer holding a copy of `bytes`.
    pub fn copy_of(bytes: &[u8]) -> Self {
        let mut buf = Self::new(bytes.len());
        buf.copy_from_slice(bytes);
        buf
    }

    /// Splits off the first `at` bytes and returns them; `self` keeps the rest.
    ///
    /// # Panics
    /// When `at` is beyond the end.
    #[must_use]
    pub fn split_to(&mut self, at: usize) -> Self {
        assert!(at <= self.len, "split at {at} of a buffer of {} bytes", self.len);
        let front = Self { region: Rc::clone(&self.region), offset: self.offset, len: at };
        self.offset += at;
        self.len -= at;
        front
    }

    /// Joins `next` behind `self` again, after both came from splitting one buffer.
    ///
    /// # Panics
    /// When `next` does not start where `self` ends, in the same memory.
    #[expect(clippy::needless_pass_by_value, reason = "the other window ceases to be")]
    pub fn unsplit(&mut self, next: Self) {
        assert!(
            Rc::ptr_eq(&self.region, &next.region) && self.offset + self.len == next.offset,
            "joined buffers must be neighbours"
        );
        self.len += next.len;
    }

    /// Gives up all but the first `len` bytes.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// The shared, read-only form; no copy.
    pub fn freeze(self) -> DmaBytes {
        DmaBytes { region: self.region, offset: self.offset, len: self.len }
    }

    /// The ring that has this memory registered; 0 if none.
    pub(crate) fn ring(&self) -> u64 {
        self.region.ring()
    }
}

impl Deref for DmaBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: offset + len lies within the region (split and join keep it so), the memory is initialised
        // (invariant 3) and no other window overlaps (invariant 1).
        unsafe { std::slice::from_raw_parts(self.region.start().as_ptr().add(self.offset), self.len) }
    }
}

impl DerefMut for DmaBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; `&mut self` is the only way to this window (invariant 1).
        unsafe { std::slice::from_raw_parts_mut(self.region.start().as_ptr().add(self.offset), self.len) }
    }
}

impl fmt::Debug for DmaBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DmaBuf({} bytes)", self.len)
    }
}

/// A frozen buffer: shared, read-only, cheap to clone and slice.
#[derive(Clone)]
pub struct DmaBytes {
    region: Rc<Holder>,
    offset: usize,
    len: usize,
}

impl DmaBytes {
    /// A shared copy of `bytes`.
    pub fn copy_of(bytes: &[u8]) -> Self {
        DmaBuf::copy_of(bytes).freeze()
    }

    /// The window `range` of this one.
    ///
    /// # Panics
    /// When `range` reaches beyond the end.
    #[must_use]
    pub fn slice(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {} bytes", self.len);
        Self {
            region: Rc::clone(&self.region),
            offset: self.offset + range.start,
            len: range.end - range.start,
        }
    }

    /// The ring that has this memory registered; 0 if none.
    pub(crate) fn ring(&self) -> u64 {
        self.region.ring()
    }

    /// Whether the bytes start at a multiple of [`BLOCK_ALIGN`] in memory.
    pub fn is_aligned(&self) -> bool {
        self.offset.is_multiple_of(BLOCK_ALIGN)
    }
}

impl Deref for DmaBytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: as in `DmaBuf::deref`; a frozen window is never written (invariant 1).
        unsafe { std::slice::from_raw_parts(self.region.start().as_ptr().add(self.offset), self.len) }
    }
}

impl fmt::Debug for DmaBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DmaBytes({} bytes)", self.len)
    }
}

/// One piece of a gathered send or write.
#[derive(Debug)]
pub enum Part {
    /// Small bytes, such as a protocol header.
    Bytes(Vec<u8>),
    /// Bulk data, sent from where it lies.
    Data(DmaBytes),
}

impl Deref for Part {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Data(data) => data,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_share_memory_and_stay_disjoint() {
        let mut buf = DmaBuf::zeroed(3 * BLOCK_ALIGN);
        let mut front = buf.split_to(BLOCK_ALIGN);
        front.fill(1);
        buf.fill(2);
        assert!(front.iter().all(|&b| b == 1));
        front.unsplit(buf);
        let bytes = front.freeze();
        assert_eq!(bytes.len(), 3 * BLOCK_ALIGN);
        assert_eq!(bytes.slice(BLOCK_ALIGN - 1..BLOCK_ALIGN + 1)[..], [1, 2]);
        assert!(bytes.slice(BLOCK_ALIGN..2 * BLOCK_ALIGN).is_aligned());
    }

    #[test]
    #[should_panic(expected = "neighbours")]
    fn joining_strangers_panics() {
        let mut a = DmaBuf::zeroed(8);
        a.unsplit(DmaBuf::zeroed(8));
    }

    #[test]
    fn memory_is_reused_and_aligned() {
        let address = {
            let buf = DmaBuf::new(100);
            buf.as_ptr() as usize
        };
        assert_eq!(address % BLOCK_ALIGN, 0);
        let again = DmaBuf::new(4096);
        assert_eq!(again.as_ptr() as usize, address);
    }
}
