//! Buffers that all connections of a reactor share for receiving: given to the kernel as a ring, from which it picks one
//! when bytes arrive.
//!
//! # Invariants
//! 1. A buffer belongs to the kernel or to exactly one [`Piece`]; the piece gives it back when it is dropped.
//! 2. The memory lives until the last piece and the ring have let go of it: a piece may outlive its reactor.
#![expect(unsafe_code, reason = "memory shared with the kernel")]

use crate::Errno;
use io_uring::types::BufRingEntry;
use io_uring::{IoUring, cqueue, opcode, types};
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::Cell;
use std::fmt;
use std::io;
use std::ops::Deref;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::atomic::{AtomicU16, Ordering::Release};

/// Size of one buffer: what one completion brings at most.
pub(super) const PIECE_BYTES: usize = 64 << 10;
/// The number under which a ring knows the buffers.
pub(super) const GROUP: u16 = 0;
const PAGE: usize = 4096;

/// The buffers of one reactor.
#[derive(Debug)]
pub(super) struct Provided {
    /// The ring of entries that the kernel reads, of whole pages, and the buffers behind it.
    entries: NonNull<BufRingEntry>,
    buffers: NonNull<u8>,
    count: u16,
    /// Entries written so far; wraps around.
    tail: Cell<u16>,
    /// Buffers out in pieces.
    taken: Cell<u16>,
}

impl Provided {
    fn entries_layout(count: u16) -> Layout {
        let bytes = usize::from(count) * size_of::<BufRingEntry>();
        Layout::from_size_align(bytes.next_multiple_of(PAGE), PAGE).expect("at most 512 KiB")
    }

    fn buffers_layout(count: u16) -> Layout {
        Layout::from_size_align(usize::from(count) * PIECE_BYTES, PAGE).expect("at most 2 GiB")
    }

    /// Gives `count` buffers to a ring that has just been made, and tries whether the kernel receives into them.
    pub(super) fn register(kernel: &mut IoUring, count: u16) -> io::Result<Rc<Self>> {
        assert!(count.is_power_of_two(), "a ring has a power of two of buffers, not {count}");
        let entries = allocate(Self::entries_layout(count)).cast();
        let buffers = allocate(Self::buffers_layout(count));
        let provided = Rc::new(Self { entries, buffers, count, tail: Cell::new(0), taken: Cell::new(count) });
        let address = entries.as_ptr() as u64;
        // SAFETY: the entries live as long as `provided`, which the ring's driver drops after having unregistered them.
        unsafe { kernel.submitter().register_buf_ring_with_flags(address, count, GROUP, 0)? };
        (0..count).for_each(|id| provided.give_back(id));
        match provided.attempt(kernel) {
            Ok(()) => Ok(provided),
            Err(error) => {
                provided.unregister(kernel);
                Err(error)
            }
        }
    }

    pub(super) fn unregister(&self, kernel: &IoUring) {
        // Fails only where the ring does not know them.
        kernel.submitter().unregister_buf_ring(GROUP).ok();
        self.taken.set(self.count);
    }

    /// Receives one byte and the end of a stream, as a connection does.
    fn attempt(self: &Rc<Self>, kernel: &mut IoUring) -> io::Result<()> {
        let (ours, theirs) = UnixStream::pair()?;
        rustix::io::write(&theirs, &[1])?;
        let receive = opcode::RecvMulti::new(types::Fd(ours.as_raw_fd()), GROUP).build();
        // SAFETY: the entry points at nothing; its descriptor stays open until its last completion below.
        unsafe { kernel.submission().push(&receive) }.expect("a new ring has room");
        let (result, more, piece) = self.next(kernel)?;
        drop(theirs);
        if more {
            self.next(kernel)?;
        }
        if result < 0 {
            return Err(io::Error::from_raw_os_error(-result));
        }
        let works = more && piece.is_some_and(|piece| piece[..] == [1]);
        if works { Ok(()) } else { Err(Errno::OPNOTSUPP.into()) }
    }

    fn next(self: &Rc<Self>, kernel: &mut IoUring) -> io::Result<(i32, bool, Option<Piece>)> {
        loop {
            match kernel.submit_and_wait(1) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            if let Some(entry) = kernel.completion().next() {
                let piece = cqueue::buffer_select(entry.flags()).map(|id| self.take(id, entry.result()));
                return Ok((entry.result(), cqueue::more(entry.flags()), piece));
            }
        }
    }

    /// Buffers out in pieces.
    pub(super) fn taken(&self) -> u16 {
        self.taken.get()
    }

    /// Whether there are enough buffers left for another connection to rely on them.
    pub(super) fn has_room(&self) -> bool {
        self.taken.get() <= self.count - self.count.div_ceil(4)
    }

    /// The buffer `id`, which a completion says the kernel has filled with `len` bytes.
    pub(super) fn take(self: &Rc<Self>, id: u16, len: i32) -> Piece {
        assert!(id < self.count, "the kernel has no buffer {id}");
        self.taken.set(self.taken.get() + 1);
        let len = usize::try_from(len).unwrap_or(0);
        assert!(len <= PIECE_BYTES, "a buffer holds {PIECE_BYTES} bytes, not {len}");
        Piece(Memory::Provided { pool: Rc::clone(self), id, len })
    }

    fn give_back(&self, id: u16) {
        let tail = self.tail.get();
        let slot = usize::from(tail & (self.count - 1));
        let next = tail.wrapping_add(1);
        // SAFETY: the slot lies within the allocation; the kernel reads entries before the tail only, and this one is not
        // (at most `count` entries are between the kernel's head and the tail, since each buffer is in the ring once).
        // The tail lies in a reserved field of the first entry, which nothing else touches.
        unsafe {
            let entry = self.entries.add(slot).as_mut();
            entry.set_addr(self.buffer(id).as_ptr() as u64);
            entry.set_len(u32::try_from(PIECE_BYTES).expect("small"));
            entry.set_bid(id);
            AtomicU16::from_ptr(BufRingEntry::tail(self.entries.as_ptr()).cast_mut()).store(next, Release);
        }
        self.tail.set(next);
        self.taken.set(self.taken.get() - 1);
    }

    fn buffer(&self, id: u16) -> NonNull<u8> {
        // SAFETY: there are `count` buffers, and callers have only numbers below that.
        unsafe { self.buffers.add(usize::from(id) * PIECE_BYTES) }
    }
}

fn allocate(layout: Layout) -> NonNull<u8> {
    // SAFETY: there is at least one buffer, so no layout here is empty.
    let start = unsafe { alloc_zeroed(layout) };
    NonNull::new(start).unwrap_or_else(|| handle_alloc_error(layout))
}

impl Drop for Provided {
    fn drop(&mut self) {
        // SAFETY: allocated in `register` with these very layouts, and freed only here; the last piece is gone, and the
        // ring has forgotten the memory or never knew it.
        unsafe {
            dealloc(self.entries.as_ptr().cast(), Self::entries_layout(self.count));
            dealloc(self.buffers.as_ptr(), Self::buffers_layout(self.count));
        }
    }
}

/// Bytes that arrived, in order: a window into a shared buffer, or a copy.
pub(super) struct Piece(Memory);

enum Memory {
    Provided { pool: Rc<Provided>, id: u16, len: usize },
    Copied(Vec<u8>),
}

impl Piece {
    pub(super) fn copy_of(bytes: Vec<u8>) -> Self {
        Self(Memory::Copied(bytes))
    }

    /// The same bytes without a shared buffer.
    pub(super) fn copied(self) -> Self {
        match &self.0 {
            Memory::Provided { .. } => Self::copy_of(self.to_vec()),
            Memory::Copied(_) => self,
        }
    }
}

impl Deref for Piece {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match &self.0 {
            // SAFETY: the buffer is as long, was zeroed when allocated, and belongs to this piece: the kernel does not
            // write to it before it is given back (invariant 1).
            Memory::Provided { pool, id, len } => unsafe {
                std::slice::from_raw_parts(pool.buffer(*id).as_ptr(), *len)
            },
            Memory::Copied(bytes) => bytes,
        }
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        if let Memory::Provided { pool, id, .. } = &self.0 {
            pool.give_back(*id);
        }
    }
}

impl fmt::Debug for Piece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Piece({} bytes)", self.len())
    }
}
