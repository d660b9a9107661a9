//! Where things lie on the device: units, addresses and the arithmetic between them.
//!
//! # Invariants
//! 1. Piece and page references are stored plus one: zero means none, so an entry of zero bytes is an empty entry.
//! 2. Every address is a multiple of [`BLOCK_BYTES`]; a piece never straddles extents.
//!
//! # Spec
//! `docs/formats/pool.md`, "Layout".

use crate::error::{Error, ErrorKind};
use device::ByteCount;

/// The unit of presence, of metadata pages and of device I/O, in bytes.
pub(crate) const BLOCK_BYTES: u64 = 4096;
/// [`BLOCK_BYTES`] as a length.
pub(crate) const BLOCK_LEN: usize = 4096;
/// The unit in which space is owned, in bytes.
pub const PIECE_SIZE: u64 = 32 << 10;
/// The pool's allocation unit, eight aligned pieces, in bytes.
pub const EXTENT_SIZE: u64 = 256 << 10;
/// Pieces in an extent.
pub(crate) const PIECES_PER_EXTENT: u32 = 8;
/// Blocks in a piece.
pub(crate) const BLOCKS_PER_PIECE: u32 = 8;
/// Blocks in an extent; also the metadata pages that fit one.
pub(crate) const BLOCKS_PER_EXTENT: u64 = 64;
/// Map entries in one page: a header's place and 63 entries of 64 bytes fill 4 KiB.
pub(crate) const EXTENTS_PER_CHUNK: u64 = 63;

/// Where the two superblocks lie.
pub(crate) const SUPERBLOCKS: [u64; 2] = [0, 512 << 10];
/// Where the journal begins; what lies before it is for superblocks.
pub(crate) const JOURNAL_OFFSET: u64 = 1 << 20;
const JOURNAL_BYTES_MIN: u64 = 256 << 10;
const JOURNAL_BYTES_MAX: u64 = 64 << 20;
/// The journal's share of the device.
const JOURNAL_FRACTION: u64 = 256;
/// Fewest extents that make a useful pool.
const EXTENTS_MIN: u64 = 8;

/// Where the parts of one pool lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// First byte of the journal.
    pub(crate) journal_offset: u64,
    /// Length of the journal's ring.
    pub(crate) journal_bytes: u64,
    /// First byte of extent 0.
    pub(crate) data_offset: u64,
    /// Number of extents.
    pub(crate) extents: u32,
}

/// Whether a device of `device_bytes` can become a pool.
///
/// # Errors
/// `TooSmall`, which says how large it has to be.
pub fn check_size(device_bytes: u64) -> Result<(), Error> {
    Layout::new(device_bytes).map(|_| ())
}

impl Layout {
    /// The layout of a new pool on a device of `device_bytes`.
    pub(crate) fn new(device_bytes: u64) -> Result<Self, Error> {
        let journal_bytes = (device_bytes / JOURNAL_FRACTION / EXTENT_SIZE * EXTENT_SIZE)
            .clamp(JOURNAL_BYTES_MIN, JOURNAL_BYTES_MAX);
        let data_offset = (JOURNAL_OFFSET + journal_bytes).next_multiple_of(EXTENT_SIZE);
        let extents = device_bytes.saturating_sub(data_offset) / EXTENT_SIZE;
        if extents < EXTENTS_MIN {
            let least = ByteCount(data_offset + EXTENTS_MIN * EXTENT_SIZE);
            return Err(Error::new(
                ErrorKind::TooSmall,
                format!(
                    "the device has {}, a pool needs at least {least}: use a larger one",
                    ByteCount(device_bytes)
                ),
            ));
        }
        let extents = narrow(extents.min(u64::from(u32::MAX / PIECES_PER_EXTENT - 1)));
        Ok(Self { journal_offset: JOURNAL_OFFSET, journal_bytes, data_offset, extents })
    }

    /// Whether the parts follow each other within `device_bytes`.
    pub(crate) fn is_sane(&self, device_bytes: u64) -> bool {
        self.journal_offset >= SUPERBLOCKS[1] + BLOCK_BYTES
            && self.journal_offset.is_multiple_of(BLOCK_BYTES)
            && self.journal_bytes.is_multiple_of(EXTENT_SIZE)
            && (JOURNAL_BYTES_MIN..=JOURNAL_BYTES_MAX).contains(&self.journal_bytes)
            && self.data_offset.is_multiple_of(EXTENT_SIZE)
            && self.journal_offset.checked_add(self.journal_bytes).is_some_and(|end| end <= self.data_offset)
            && self.extents < u32::MAX / PIECES_PER_EXTENT
            && u64::from(self.extents)
                .checked_mul(EXTENT_SIZE)
                .and_then(|bytes| bytes.checked_add(self.data_offset))
                .is_some_and(|end| end <= device_bytes)
    }

    /// The byte offset of block `block` of an extent whose piece there is `piece` (stored form, plus one).
    pub(crate) fn block_offset(&self, piece: u32, block: u32) -> u64 {
        self.data_offset
            + u64::from(piece - 1) * PIECE_SIZE
            + u64::from(block % BLOCKS_PER_PIECE) * BLOCK_BYTES
    }

    /// The byte offset of metadata page `page` (stored form, plus one).
    pub(crate) fn page_offset(&self, page: u64) -> u64 {
        self.data_offset + (page - 1) * BLOCK_BYTES
    }

    /// The number of metadata pages that the data area could hold.
    pub(crate) fn pages(&self) -> u64 {
        u64::from(self.extents) * BLOCKS_PER_EXTENT
    }

    /// The number of pieces of the data area.
    pub(crate) fn pieces(&self) -> u32 {
        self.extents * PIECES_PER_EXTENT
    }
}

/// A count or index as a length in memory.
pub(crate) fn index(value: u64) -> usize {
    usize::try_from(value).expect("pools are used on 64-bit machines")
}

/// A number known to fit 32 bits.
pub(crate) fn narrow(value: u64) -> u32 {
    u32::try_from(value).expect("bounded by the caller")
}

/// A length known to fit 32 bits.
pub(crate) fn narrow_len(value: usize) -> u32 {
    u32::try_from(value).expect("bounded by the caller")
}

/// The bits `from..from + count` of a 64-bit mask.
pub(crate) fn mask(from: u32, count: u32) -> u64 {
    debug_assert!(from + count <= 64);
    if count == 0 { 0 } else { (u64::MAX >> (64 - count)) << from }
}

/// CRC32C (Castagnoli).
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_of_all_sizes_are_sane() {
        for bytes in [4 << 20, 16 << 20, (16 << 20) + 4096, 1 << 30, 1 << 40, 1 << 44, 1 << 50] {
            let layout = Layout::new(bytes).expect("large enough");
            assert!(layout.is_sane(bytes), "{bytes}: {layout:?}");
            assert!(!layout.is_sane(layout.data_offset), "{bytes}");
        }
        assert!(Layout::new(1 << 20).is_err());
    }

    #[test]
    fn masks() {
        assert_eq!(mask(0, 64), u64::MAX);
        assert_eq!(mask(3, 2), 0b11000);
        assert_eq!(mask(63, 1), 1 << 63);
        assert_eq!(mask(7, 0), 0);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }
}
