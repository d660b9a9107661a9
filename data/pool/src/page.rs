//! Metadata pages of 4 KiB: pages of the map, pages of the manifest; and the header of a journal batch.
//!
//! # Invariants
//! 1. A page names what it is a page of, so that a misdirected or stale one is noticed, and its checksum is kept.
//!
//! # Spec
//! `docs/formats/pool.md`, "Map pages", "Manifest", "Journal".

use crate::layout::{BLOCK_LEN, EXTENTS_PER_CHUNK, crc32c, index, narrow_len};
use crate::map::Entry;
use model::Generation;
use uuid::Uuid;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

const MAP_MAGIC: [u8; 8] = *b"ORLOPMAP";
const MANIFEST_MAGIC: [u8; 8] = *b"ORLOPMAN";
const BATCH_MAGIC: [u8; 8] = *b"ORLOPJNL";
const HEADER_LEN: usize = 64;
/// Bytes of the record stream in one manifest page.
pub(crate) const MANIFEST_PAYLOAD_LEN: usize = BLOCK_LEN - HEADER_LEN;
/// Length of a batch's header.
pub(crate) const BATCH_HEADER_LEN: usize = 80;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct MapHeaderDisk {
    magic: [u8; 8],
    layer: U32,
    reserved: U32,
    chunk: U64,
    checkpoint: U64,
    pool: [u8; 16],
    more: [u8; 16],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct EntryDisk {
    epoch: U64,
    counter: U64,
    present: U64,
    zeroes: U64,
    pieces: [U32; 8],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ManifestHeaderDisk {
    magic: [u8; 8],
    checkpoint: U64,
    pool: [u8; 16],
    number: U64,
    next: U64,
    len: U32,
    crc: U32,
    reserved: [u8; 8],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct BatchHeaderDisk {
    magic: [u8; 8],
    crc: U32,
    len: U32,
    session: [u8; 16],
    batch: U64,
    position: U64,
    first_record: U64,
    durable_position: U64,
    records: U32,
    reserved: [u8; 12],
}

const _: () = {
    assert!(size_of::<MapHeaderDisk>() == HEADER_LEN);
    assert!(size_of::<ManifestHeaderDisk>() == HEADER_LEN);
    assert!(size_of::<EntryDisk>() == 64);
    assert!(HEADER_LEN + 63 * size_of::<EntryDisk>() == BLOCK_LEN && EXTENTS_PER_CHUNK == 63);
    assert!(size_of::<BatchHeaderDisk>() == BATCH_HEADER_LEN && BATCH_HEADER_LEN.is_multiple_of(8));
};

/// The page of chunk `chunk` of `layer`, into `page`.
pub(crate) fn encode_map_page(
    page: &mut [u8],
    pool: Uuid,
    checkpoint: u64,
    layer: u32,
    chunk: u64,
    entries: &[Entry; 63],
) {
    let header = MapHeaderDisk {
        magic: MAP_MAGIC,
        layer: U32::new(layer),
        reserved: U32::new(0),
        chunk: U64::new(chunk),
        checkpoint: U64::new(checkpoint),
        pool: pool.into_bytes(),
        more: [0; 16],
    };
    page[..HEADER_LEN].copy_from_slice(header.as_bytes());
    for (slot, entry) in page[HEADER_LEN..].chunks_exact_mut(64).zip(entries) {
        let disk = EntryDisk {
            epoch: U64::new(entry.generation.epoch),
            counter: U64::new(entry.generation.counter),
            // Both bits: bad.
            present: U64::new(entry.present | entry.bad),
            zeroes: U64::new(entry.bad),
            pieces: entry.pieces.map(U32::new),
        };
        slot.copy_from_slice(disk.as_bytes());
    }
}

/// The entries of a map page, after its checksum has been verified against the directory.
pub(crate) fn decode_map_page(
    page: &[u8],
    pool: Uuid,
    layer: u32,
    chunk: u64,
) -> Result<[Entry; 63], &'static str> {
    let (header, rest) = MapHeaderDisk::ref_from_prefix(page).map_err(|_| "it is short")?;
    if header.magic != MAP_MAGIC || header.pool != pool.into_bytes() {
        return Err("it is not a map page of this pool");
    }
    if header.layer.get() != layer || header.chunk.get() != chunk {
        return Err("it is a map page of something else");
    }
    let disks = <[EntryDisk]>::ref_from_bytes(rest).map_err(|_| "it is short")?;
    let mut entries = [Entry::EMPTY; 63];
    for (entry, disk) in entries.iter_mut().zip(disks) {
        let (present, zeroes) = (disk.present.get(), disk.zeroes.get());
        if zeroes & !present != 0 {
            return Err("an entry has known zeroes, which this version does not know");
        }
        *entry = Entry {
            generation: Generation::new(disk.epoch.get(), disk.counter.get()),
            present: present & !zeroes,
            bad: zeroes,
            pieces: disk.pieces.map(U32::get),
        };
    }
    Ok(entries)
}

/// One page of a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ManifestPage<'a> {
    pub(crate) checkpoint: u64,
    /// Its number within the manifest, from zero.
    pub(crate) number: u64,
    /// The next page, plus one; zero at the end.
    pub(crate) next: u64,
    /// Its part of the record stream.
    pub(crate) payload: &'a [u8],
}

impl<'a> ManifestPage<'a> {
    /// The page's bytes, into `page`.
    pub(crate) fn encode(&self, page: &mut [u8], pool: Uuid) {
        let mut header = ManifestHeaderDisk {
            magic: MANIFEST_MAGIC,
            checkpoint: U64::new(self.checkpoint),
            pool: pool.into_bytes(),
            number: U64::new(self.number),
            next: U64::new(self.next),
            len: U32::new(narrow_len(self.payload.len())),
            crc: U32::new(0),
            reserved: [0; 8],
        };
        page.fill(0);
        page[HEADER_LEN..HEADER_LEN + self.payload.len()].copy_from_slice(self.payload);
        page[..HEADER_LEN].copy_from_slice(header.as_bytes());
        header.crc = U32::new(crc32c(page));
        page[..HEADER_LEN].copy_from_slice(header.as_bytes());
    }

    /// Reads a page, verifying its checksum.
    pub(crate) fn decode(page: &'a [u8], pool: Uuid) -> Result<Self, &'static str> {
        let (header, rest) = ManifestHeaderDisk::ref_from_prefix(page).map_err(|_| "it is short")?;
        if header.magic != MANIFEST_MAGIC || header.pool != pool.into_bytes() {
            return Err("it is not a manifest page of this pool");
        }
        let mut zeroed = page.to_vec();
        zeroed[52..56].fill(0);
        if crc32c(&zeroed) != header.crc.get() {
            return Err("its checksum does not hold");
        }
        let payload = rest.get(..index(header.len.get().into())).ok_or("its length is wrong")?;
        Ok(Self {
            checkpoint: header.checkpoint.get(),
            number: header.number.get(),
            next: header.next.get(),
            payload,
        })
    }
}

/// The header of a batch: records committed together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatchHeader {
    /// The opening that wrote it.
    pub(crate) session: Uuid,
    /// Its number; each batch's is one above its predecessor's.
    pub(crate) batch: u64,
    /// Where it begins.
    pub(crate) position: u64,
    /// The number of its first record.
    pub(crate) first_record: u64,
    /// Everything before this position was known to be durable when the batch was formed.
    pub(crate) durable_position: u64,
    /// How many records it has.
    pub(crate) records: u32,
}

impl BatchHeader {
    /// Completes `batch`, whose first [`BATCH_HEADER_LEN`] bytes are kept for the header and whose `len` bytes are
    /// followed by zeroes up to whole blocks.
    pub(crate) fn seal(&self, batch: &mut [u8], len: usize) {
        let mut header = BatchHeaderDisk {
            magic: BATCH_MAGIC,
            crc: U32::new(0),
            len: U32::new(narrow_len(len)),
            session: self.session.into_bytes(),
            batch: U64::new(self.batch),
            position: U64::new(self.position),
            first_record: U64::new(self.first_record),
            durable_position: U64::new(self.durable_position),
            records: U32::new(self.records),
            reserved: [0; 12],
        };
        batch[..BATCH_HEADER_LEN].copy_from_slice(header.as_bytes());
        header.crc = U32::new(crc32c(batch));
        batch[..BATCH_HEADER_LEN].copy_from_slice(header.as_bytes());
    }

    /// The header at the start of `block` and the batch's length, unverified; `None` where there is none.
    pub(crate) fn peek(block: &[u8]) -> Option<(Self, usize)> {
        let (disk, _) = BatchHeaderDisk::ref_from_prefix(block).ok()?;
        let len = index(disk.len.get().into());
        (disk.magic == BATCH_MAGIC && len >= BATCH_HEADER_LEN).then(|| {
            let header = Self {
                session: Uuid::from_bytes(disk.session),
                batch: disk.batch.get(),
                position: disk.position.get(),
                first_record: disk.first_record.get(),
                durable_position: disk.durable_position.get(),
                records: disk.records.get(),
            };
            (header, len)
        })
    }

    /// Whether the checksum of `batch` (whole blocks, as written) holds.
    pub(crate) fn holds(batch: &[u8]) -> bool {
        let Ok((disk, _)) = BatchHeaderDisk::ref_from_prefix(batch) else { return false };
        let mut zeroed = batch.to_vec();
        zeroed[8..12].fill(0);
        crc32c(&zeroed) == disk.crc.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const POOL: Uuid = Uuid::from_u128(42);

    proptest! {
        #[test]
        fn map_pages_read_back(
            raw in proptest::collection::vec(any::<(u64, u64, u64, [u32; 8])>(), 63),
            layer: u32,
            chunk: u64,
        ) {
            let mut entries = [Entry::EMPTY; 63];
            for (entry, (epoch, counter, present, pieces)) in entries.iter_mut().zip(raw) {
                let bad = epoch & !present;
                *entry = Entry { generation: Generation::new(epoch, counter), present, bad, pieces };
            }
            let mut page = vec![0; BLOCK_LEN];
            encode_map_page(&mut page, POOL, 5, layer, chunk, &entries);
            prop_assert_eq!(decode_map_page(&page, POOL, layer, chunk), Ok(entries));
            prop_assert!(decode_map_page(&page, POOL, layer, chunk.wrapping_add(1)).is_err());
            prop_assert!(decode_map_page(&page, Uuid::nil(), layer, chunk).is_err());
        }

        #[test]
        fn manifest_pages_read_back(
            payload in proptest::collection::vec(any::<u8>(), 0..MANIFEST_PAYLOAD_LEN),
            numbers: (u64, u64, u64),
            flip in 0..BLOCK_LEN,
        ) {
            let manifest =
                ManifestPage { checkpoint: numbers.0, number: numbers.1, next: numbers.2, payload: &payload };
            let mut page = vec![7; BLOCK_LEN];
            manifest.encode(&mut page, POOL);
            prop_assert_eq!(ManifestPage::decode(&page, POOL), Ok(manifest));
            page[flip] ^= 1;
            prop_assert!(ManifestPage::decode(&page, POOL).is_err());
        }

        #[test]
        fn batches_read_back(
            body in proptest::collection::vec(any::<u8>(), 0..9000),
            numbers: (u64, u64, u64, u64),
            flip: prop::sample::Index,
        ) {
            let len = BATCH_HEADER_LEN + body.len();
            let mut batch = vec![0; len.next_multiple_of(BLOCK_LEN)];
            batch[BATCH_HEADER_LEN..len].copy_from_slice(&body);
            let header = BatchHeader {
                session: POOL,
                batch: numbers.0,
                position: numbers.1,
                first_record: numbers.2,
                durable_position: numbers.3,
                records: 3,
            };
            header.seal(&mut batch, len);
            prop_assert_eq!(BatchHeader::peek(&batch), Some((header, len)));
            prop_assert!(BatchHeader::holds(&batch));
            let at = flip.index(batch.len());
            batch[at] ^= 4;
            prop_assert!(!BatchHeader::holds(&batch));
        }
    }
}
