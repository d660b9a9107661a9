//! A table is read from both ends of a disk, and believed only where all its checks hold.

use super::Division;
use super::crc::crc32;
use super::table::{Copy, ENTRY_LEN, Header, MAGIC, ORLOP};
use pool::signature::Ends;
use std::ops::RangeInclusive;

/// The largest array that is read; it lies within what is looked at of a disk.
const ARRAY_LEN_MAX: u64 = 512 << 10;
/// The sizes that the logical block of a disk may have.
const BLOCKS: RangeInclusive<u32> = 512..=4096;
/// The type of the only partition of a protective MBR.
const PROTECTIVE: u8 = 0xee;

/// A disk's table; at least one copy of it is whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Gpt {
    /// Bytes per logical block.
    pub(super) block: u64,
    /// That in front and the one at the end, or what is wrong with it.
    pub(super) copies: [Result<Copy, String>; 2],
    /// Why nothing may be added.
    pub(super) damage: Option<String>,
}

/// The ends of a disk, addressed as it is.
struct Window<'a> {
    ends: Ends<'a>,
    block: u64,
}

impl Window<'_> {
    /// Bytes from block `lba` on; none if they are not within what was looked at.
    fn bytes(&self, lba: u64, len: u64) -> Option<&[u8]> {
        let offset = lba.checked_mul(self.block)?;
        let within = |part: &'_ [u8], begin: u64| {
            let start = usize::try_from(offset.checked_sub(begin)?).ok()?;
            Some(start..start.checked_add(usize::try_from(len).ok()?)?)
                .filter(|range| range.end <= part.len())
        };
        let Ends { front, back, size } = self.ends;
        if let Some(range) = within(front, 0) {
            return front.get(range);
        }
        back.get(within(back, size.checked_sub(back.len() as u64)?)?)
    }
}

/// Reads the table of a disk with logical blocks of `block` bytes; none if it has none.
///
/// # Errors
/// There is one, and neither copy can be believed.
pub(crate) fn read(ends: &Ends<'_>, block: u32) -> Result<Option<Gpt>, String> {
    if !BLOCKS.contains(&block) || !block.is_power_of_two() {
        return Ok(None);
    }
    let block = u64::from(block);
    let Some(last) = ends.size.checked_div(block).and_then(|blocks| blocks.checked_sub(1)) else {
        return Ok(None);
    };
    let window = Window { ends: *ends, block };
    let is_there = |lba| window.bytes(lba, block).is_some_and(|header| header.starts_with(MAGIC));
    if !is_there(1) && !is_there(last) {
        return Ok(None);
    }
    let front = window.copy(1, last).map_err(|why| format!("the table in front: {why}"));
    let back = window.copy(last, last).map_err(|why| format!("the table at the end: {why}"));
    let damage = match (&front, &back) {
        (Err(front), Err(back)) => return Err(format!("{front}; {back}")),
        (Err(why), Ok(_)) | (Ok(_), Err(why)) => Some(why.clone()),
        (Ok(front), Ok(back)) => window.protection().or_else(|| disagreement(front, back)),
    };
    Ok(Some(Gpt { block, copies: [front, back], damage }))
}

impl Window<'_> {
    /// The copy whose header is at `lba`, of a disk whose last block is `last`.
    fn copy(&self, lba: u64, last: u64) -> Result<Copy, String> {
        let block = self.bytes(lba, self.block).ok_or("it lies beyond the disk")?;
        let header = Header::decode(block)?;
        let alternate = if lba == last { 1 } else { last };
        if header.lba != lba {
            return Err(format!("its header says that it is at block {}", header.lba));
        }
        if header.alternate != alternate {
            return Err(format!(
                "the other one is said to be at block {} and not {alternate}: the disk had another size",
                header.alternate
            ));
        }
        let array_len = Some(header.array_len()).filter(|len| (1..=ARRAY_LEN_MAX).contains(len));
        let array_len = array_len.ok_or_else(|| format!("it has {} entries", header.entries))?;
        let array_end = header.entries_lba.checked_add(array_len.div_ceil(self.block));
        let Header { first_usable, last_usable, entries_lba, .. } = header;
        // The array of the first lies between header and partitions, that of the second between partitions and header.
        let fits = array_end.is_some_and(|end| {
            let in_front = lba != last && entries_lba > lba && end <= first_usable;
            let behind = lba == last && entries_lba > last_usable && end <= lba;
            in_front || behind
        });
        if !fits || first_usable > last_usable || first_usable < 3 || last_usable >= last {
            return Err("its parts overlap".into());
        }
        let array = self.bytes(entries_lba, array_len).ok_or("its entries lie far from it")?;
        if crc32(array) != header.entries_crc {
            return Err("its entries have a wrong checksum".into());
        }
        let copy = Copy { header, array: array.to_vec() };
        copy.check_entries(self.block)?;
        Ok(copy)
    }

    /// Why the MBR is not one that only keeps others off, if it is not.
    fn protection(&self) -> Option<String> {
        let mbr = self.bytes(0, self.block)?;
        let kinds: Vec<u8> = (0..4).map(|part| mbr[446 + 16 * part + 4]).collect();
        let starts_behind_it = mbr[454..458] == [1, 0, 0, 0];
        match kinds[..] {
            _ if mbr[510..512] != [0x55, 0xaa] => Some("there is no protective MBR before it".into()),
            [PROTECTIVE, 0, 0, 0] if starts_behind_it => None,
            [PROTECTIVE | 0, 0, 0, 0] => Some("there is no protective MBR before it".into()),
            _ => Some("its MBR has partitions as well (a hybrid MBR)".into()),
        }
    }
}

impl Copy {
    /// Each partition lies where partitions may, and no two of them overlap.
    fn check_entries(&self, block: u64) -> Result<(), String> {
        let slots = (1_u32..).zip(self.array.chunks_exact(ENTRY_LEN));
        let lba = |slot: &[u8], at: usize| {
            slot[at..at + 8].iter().rev().fold(0_u64, |number, byte| (number << 8) | u64::from(*byte))
        };
        let used = slots.filter(|(_, slot)| slot[..16].iter().any(|byte| *byte != 0));
        let mut parts: Vec<(u64, u64, u32)> =
            used.map(|(number, slot)| (lba(slot, 32), lba(slot, 40), number)).collect();
        parts.sort_unstable();
        let Header { first_usable, last_usable, .. } = self.header;
        if let Some((.., number)) =
            parts.iter().find(|(first, last, _)| first > last || *first < first_usable || *last > last_usable)
        {
            return Err(format!("its partition {number} does not lie where partitions may"));
        }
        if let Some(two) = parts.windows(2).find(|two| two[0].1 >= two[1].0) {
            return Err(format!("its partitions {} and {} overlap", two[0].2, two[1].2));
        }
        let end = last_usable.checked_add(1).and_then(|end| end.checked_mul(block));
        end.map(drop).ok_or_else(|| "it is larger than a disk can be".into())
    }
}

/// What the two copies say differently. An entry of Orlop's that only the one at the end has was about to be added when
/// the power went: nobody has ever seen it as a partition, and the next one takes its place.
fn disagreement(front: &Copy, back: &Copy) -> Option<String> {
    let facts = |copy: &Copy| {
        let Header { first_usable, last_usable, disk, entries, .. } = copy.header;
        (first_usable, last_usable, disk, entries)
    };
    let mut array = back.array.clone();
    if let Some(free) = front.first_free() {
        let slot = Copy::slot(free);
        if back.array[slot.clone()].starts_with(&ORLOP.to_bytes_le()) {
            array[slot.clone()].copy_from_slice(&front.array[slot]);
        }
    }
    let same = facts(front) == facts(back) && array == front.array;
    (!same).then(|| "the table in front and the one at the end say different things".into())
}

impl Gpt {
    /// The copy that counts: that in front, if it can be believed.
    pub(super) fn table(&self) -> &Copy {
        let [front, back] = &self.copies;
        front.as_ref().or(back.as_ref()).expect("a table that was read has a whole copy")
    }

    /// What the disk is divided into.
    pub(crate) fn division(&self) -> Division {
        Division { entries: self.table().entries(self.block), damage: self.damage.clone() }
    }
}
