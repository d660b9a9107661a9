//! A device in memory: sparse, for tests, benchmarks and scratch space.
//!
//! Blocks that were never written cost nothing. Contents die with the last clone; there is no cache to flush.
//!
//! # Invariants
//! 1. A chunk that is absent reads as zeroes.

use crate::{BlockCount, Device, Geometry, Lba, Status};
use rt::{DmaBuf, DmaBytes, Durability};
use rustc_hash::FxHashMap;
use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;

/// Unit of allocation.
const CHUNK_BYTES: u64 = 64 << 10;

/// A sparse device in memory; clones share its contents.
#[derive(Clone)]
pub struct Mem {
    geometry: Geometry,
    // Looked up only, never iterated.
    chunks: Rc<RefCell<FxHashMap<u64, Box<[u8]>>>>,
}

/// One piece of a byte range: where it lies in a chunk, and where in the caller's buffer.
struct Piece {
    chunk: u64,
    in_chunk: std::ops::Range<usize>,
    in_buffer: std::ops::Range<usize>,
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "offsets within a chunk and lengths of buffers in memory"
)]
fn pieces(start_bytes: u64, len_bytes: u64) -> impl Iterator<Item = Piece> {
    let end = start_bytes + len_bytes;
    let mut at = start_bytes;
    std::iter::from_fn(move || {
        if at == end {
            return None;
        }
        let (chunk, offset) = (at / CHUNK_BYTES, at % CHUNK_BYTES);
        let count = (CHUNK_BYTES - offset).min(end - at);
        let in_buffer = (at - start_bytes) as usize..(at - start_bytes + count) as usize;
        at += count;
        Some(Piece { chunk, in_chunk: offset as usize..(offset + count) as usize, in_buffer })
    })
}

impl Mem {
    /// An empty device of this shape.
    pub fn new(geometry: Geometry) -> Self {
        Self { geometry, chunks: Rc::default() }
    }

    /// Bytes of memory in use.
    pub fn allocated_bytes(&self) -> u64 {
        self.chunks.borrow().len() as u64 * CHUNK_BYTES
    }

    fn zero(&self, lba: Lba, count: BlockCount) -> Result<(), Status> {
        let count = self.geometry.check_blocks(lba, count)?;
        let mut chunks = self.chunks.borrow_mut();
        let len_bytes = count.0 * u64::from(self.geometry.block_size);
        for piece in pieces(self.geometry.offset_bytes(lba), len_bytes) {
            if piece.in_chunk.len() as u64 == CHUNK_BYTES {
                chunks.remove(&piece.chunk);
            } else if let Some(chunk) = chunks.get_mut(&piece.chunk) {
                chunk[piece.in_chunk].fill(0);
            }
        }
        Ok(())
    }
}

impl Device for Mem {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    async fn read(&self, lba: Lba, mut buf: DmaBuf) -> Result<DmaBuf, Status> {
        self.geometry.check(lba, buf.len())?;
        let chunks = self.chunks.borrow();
        for piece in pieces(self.geometry.offset_bytes(lba), buf.len() as u64) {
            let target = &mut buf[piece.in_buffer];
            match chunks.get(&piece.chunk) {
                Some(chunk) => target.copy_from_slice(&chunk[piece.in_chunk]),
                None => target.fill(0),
            }
        }
        Ok(buf)
    }

    async fn write(&self, lba: Lba, data: DmaBytes, _durability: Durability) -> Result<(), Status> {
        self.geometry.check(lba, data.len())?;
        let mut chunks = self.chunks.borrow_mut();
        for piece in pieces(self.geometry.offset_bytes(lba), data.len() as u64) {
            let chunk = chunks.entry(piece.chunk).or_insert_with(empty_chunk);
            chunk[piece.in_chunk].copy_from_slice(&data[piece.in_buffer]);
        }
        Ok(())
    }

    async fn write_zeroes(&self, lba: Lba, count: BlockCount, _durability: Durability) -> Result<(), Status> {
        self.zero(lba, count)
    }

    async fn unmap(&self, lba: Lba, count: BlockCount) -> Result<(), Status> {
        self.zero(lba, count)
    }

    async fn flush(&self) -> Result<(), Status> {
        Ok(())
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a small constant")]
fn empty_chunk() -> Box<[u8]> {
    vec![0; CHUNK_BYTES as usize].into_boxed_slice()
}

impl fmt::Debug for Mem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mem({}, {} in use)", self.geometry.size(), crate::ByteCount(self.allocated_bytes()))
    }
}
