//! Headers and entries as bytes.
//!
//! # Spec
//! UEFI 2.10, tables 5.5 (header) and 5.6 (entry). Numbers are little-endian, GUIDs in their mixed order.

use super::crc::crc32;
use std::ops::Range;
use uuid::Uuid;

/// The type of partitions that are meant to become pools. Nothing else has it.
pub const ORLOP: Uuid = Uuid::from_u128(0x7d4f_eb3b_9547_443f_8d8b_f182_6ec3_f5a7);

pub(super) const MAGIC: &[u8; 8] = b"EFI PART";
/// The length of a header, without what pads its block.
pub(super) const HEADER_LEN: usize = 92;
/// The length of an entry; Linux reads no table with other ones.
pub(super) const ENTRY_LEN: usize = 128;
/// How many entries a new table has, as all tools make it.
pub(super) const NEW_ENTRIES: u32 = 128;
/// Where an entry's own GUID ends: four bytes before are drawn at random like all of it.
pub(super) const ID_END: usize = 32;
/// The longest name of a partition, in units of UTF-16.
const LABEL_LEN_MAX: usize = 36;

/// A header without what follows from where it lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Where it lies.
    pub(super) lba: u64,
    /// Where the other one lies.
    pub(super) alternate: u64,
    pub(super) first_usable: u64,
    pub(super) last_usable: u64,
    pub(super) disk: Uuid,
    pub(super) entries_lba: u64,
    pub(super) entries: u32,
    pub(super) entries_crc: u32,
}

/// One of the two copies of a table: all that is said of it has been checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Copy {
    pub(super) header: Header,
    /// Its entries, as they lie on the disk.
    pub(super) array: Vec<u8>,
}

/// One partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its number, from 1.
    pub number: u32,
    /// What it is for.
    pub kind: Uuid,
    /// Its own GUID.
    pub id: Uuid,
    /// Its first byte.
    pub start_bytes: u64,
    /// Its size.
    pub size_bytes: u64,
    /// Its name.
    pub label: String,
}

impl Header {
    /// Reads a header, if the block is one: what it says is not judged yet.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn decode(block: &[u8]) -> Result<Self, String> {
        let u32_at = |at: usize| u32::from_le_bytes(part(block, at));
        let u64_at = |at: usize| u64::from_le_bytes(part(block, at));
        if block.len() < HEADER_LEN || !block.starts_with(MAGIC) {
            return Err("it has no header".into());
        }
        if u32_at(8) >> 16 != 1 {
            return Err(format!("its header is of version {:#x}, which is not known", u32_at(8)));
        }
        let len = u32_at(12) as usize;
        let mut checked = block.get(..len).filter(|_| len >= HEADER_LEN).map(<[u8]>::to_vec);
        let checked = checked.as_mut().ok_or_else(|| format!("its header says that it has {len} bytes"))?;
        checked[16..20].fill(0);
        if crc32(checked) != u32_at(16) {
            return Err("its header has a wrong checksum".into());
        }
        if u32_at(84) as usize != ENTRY_LEN {
            return Err(format!("its entries have {} bytes and not {ENTRY_LEN}", u32_at(84)));
        }
        Ok(Self {
            lba: u64_at(24),
            alternate: u64_at(32),
            first_usable: u64_at(40),
            last_usable: u64_at(48),
            disk: Uuid::from_bytes_le(part(block, 56)),
            entries_lba: u64_at(72),
            entries: u32_at(80),
            entries_crc: u32_at(88),
        })
    }

    /// The block of `len` bytes that it is.
    pub(super) fn encode(&self, len: usize) -> Vec<u8> {
        let mut block = vec![0; len];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, MAGIC);
        put(8, &0x0001_0000_u32.to_le_bytes());
        put(12, &92_u32.to_le_bytes());
        for (at, number) in
            [(24, self.lba), (32, self.alternate), (40, self.first_usable), (48, self.last_usable)]
        {
            put(at, &number.to_le_bytes());
        }
        put(56, &self.disk.to_bytes_le());
        put(72, &self.entries_lba.to_le_bytes());
        for (at, number) in [(80, self.entries), (84, 128), (88, self.entries_crc)] {
            put(at, &number.to_le_bytes());
        }
        let crc = crc32(&block[..HEADER_LEN]);
        block[16..20].copy_from_slice(&crc.to_le_bytes());
        block
    }

    /// The length of its array.
    pub(super) fn array_len(&self) -> u64 {
        u64::from(self.entries) * ENTRY_LEN as u64
    }
}

impl Copy {
    /// The entries that are used, in units of `block` bytes.
    pub(super) fn entries(&self, block: u64) -> Vec<Entry> {
        let slots = (1..).zip(self.array.chunks_exact(ENTRY_LEN));
        slots.filter_map(|(number, slot)| Entry::decode(number, slot, block)).collect()
    }

    /// The number of the first entry that is free.
    pub(super) fn first_free(&self) -> Option<u32> {
        let mut slots = (1..).zip(self.array.chunks_exact(ENTRY_LEN));
        slots.find(|(_, slot)| is_free(slot)).map(|(number, _)| number)
    }

    /// Where the entry of this number lies in an array.
    pub(super) fn slot(number: u32) -> Range<usize> {
        let start = (number as usize - 1) * ENTRY_LEN;
        start..start + ENTRY_LEN
    }
}

fn is_free(slot: &[u8]) -> bool {
    slot[..16].iter().all(|byte| *byte == 0)
}

impl Entry {
    fn decode(number: u32, slot: &[u8], block: u64) -> Option<Self> {
        if is_free(slot) {
            return None;
        }
        let lba = |at: usize| u64::from_le_bytes(part(slot, at));
        let (first, last) = (lba(32), lba(40));
        let units: Vec<u16> =
            slot[56..ENTRY_LEN].chunks_exact(2).map(|unit| u16::from_le_bytes(part(unit, 0))).collect();
        let label = units.split(|unit| *unit == 0).next().unwrap_or_default();
        Some(Self {
            number,
            kind: Uuid::from_bytes_le(part(slot, 0)),
            id: Uuid::from_bytes_le(part(slot, 16)),
            start_bytes: first.saturating_mul(block),
            // What ends before it begins is refused where the table is read.
            size_bytes: last.saturating_add(1).saturating_sub(first).saturating_mul(block),
            label: String::from_utf16_lossy(label).replace(char::is_control, " "),
        })
    }

    /// The entry as it lies on a disk with blocks of this size.
    pub(super) fn encode(&self, block: u64) -> [u8; ENTRY_LEN] {
        let mut slot = [0; ENTRY_LEN];
        let first = self.start_bytes / block;
        let last = first + self.size_bytes / block - 1;
        slot[..16].copy_from_slice(&self.kind.to_bytes_le());
        slot[16..ID_END].copy_from_slice(&self.id.to_bytes_le());
        slot[32..40].copy_from_slice(&first.to_le_bytes());
        slot[40..48].copy_from_slice(&last.to_le_bytes());
        for (place, unit) in slot[56..].chunks_exact_mut(2).zip(self.label.encode_utf16()) {
            place.copy_from_slice(&unit.to_le_bytes());
        }
        slot
    }
}

/// Whether it can be the name of a partition, and of a link to it.
///
/// # Errors
/// What to write instead.
pub(super) fn check_label(label: &str) -> Result<(), String> {
    let fine = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if (1..=LABEL_LEN_MAX).contains(&label.len()) && label.chars().all(fine) {
        return Ok(());
    }
    Err(format!(
        "{label:?} cannot be a partition's label: use 1 to {LABEL_LEN_MAX} letters, digits, hyphens, dots and underscores"
    ))
}

/// `N` bytes at `at`; zeroes where there are none.
fn part<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..at + N).and_then(|part| part.try_into().ok()).unwrap_or([0; N])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_entry_is_what_was_written() {
        let entry = Entry {
            number: 3,
            kind: ORLOP,
            id: Uuid::from_u128(0x1122_3344_5566_7788_99aa_bbcc_ddee_ff00),
            start_bytes: 1 << 20,
            size_bytes: 64 << 20,
            label: "orlop-3".into(),
        };
        let slot = entry.encode(512);
        // The first three fields of a GUID are little-endian, the others are as they are read.
        assert_eq!(slot[16..24], [0x44, 0x33, 0x22, 0x11, 0x66, 0x55, 0x88, 0x77]);
        assert_eq!((&slot[32..34], &slot[40..43]), (&[0, 8][..], &[0xff, 0x07, 0x02][..]));
        assert_eq!(Entry::decode(3, &slot, 512), Some(entry));
        assert_eq!(Entry::decode(3, &[0; 128], 512), None);
    }

    #[test]
    fn a_label_is_a_name() {
        for label in ["orlop-1", "a", "Data_2.x"] {
            check_label(label).unwrap();
        }
        for label in ["", "a/b", "a b", "\u{e4}", &"x".repeat(37)] {
            assert!(check_label(label).unwrap_err().contains("partition's label"), "{label:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_lies_there_is_read_or_refused(block in proptest::collection::vec(any::<u8>(), 0..600)) {
            prop_assert!(Header::decode(&block).is_err());
            let mut like_one = block;
            if let Some(start) = like_one.get_mut(..16) {
                start.copy_from_slice(b"EFI PART\0\0\x01\0\x5c\0\0\0");
                prop_assert!(Header::decode(&like_one).is_err());
            }
        }

        #[test]
        fn every_slot_is_an_entry_or_free(slot in any::<[u8; 32]>(), rest in any::<[u8; 32]>(), block in 1_u64..1 << 32) {
            let slot = [slot, rest, slot, rest].concat();
            if let Some(entry) = Entry::decode(1, &slot, block) {
                prop_assert!(entry.label.chars().all(|c| !c.is_control()));
            }
        }
    }
}
