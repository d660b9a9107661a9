//! A partition is planned under the disk's lock, and added. No header is ever rewritten: the new entry's own GUID, which
//! is drawn at random, is chosen so that the checksum of all entries stays what it was. So adding one is one block in each
//! copy of the table.

use super::crc::keep;
use super::place::ALIGN;
use super::read::{Gpt, read};
use super::table::{Copy, ENTRY_LEN, Entry, Header, ID_END, NEW_ENTRIES, ORLOP, check_label};
use crate::Partition;
use crate::content::beside_a_table;
use device::{BlockCount, ByteCount, Device, Lba, Status};
use pool::signature::{Ends, LOOKED_AT_BYTES};
use rt::{DmaBuf, Durability};
use uuid::Uuid;

/// What somebody wants.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Its size; by default the largest free piece is taken whole.
    pub size: Option<ByteCount>,
    /// Its name; by default it has its number in it.
    pub label: Option<String>,
}

/// A partition that can be made, as long as the disk stays locked.
#[derive(Debug)]
pub struct Plan {
    gpt: Gpt,
    /// Whether the disk is blank, and gets a table first.
    pub new_table: bool,
    /// The partition; its GUID is not yet the one that it gets.
    pub entry: Entry,
    /// What lies there from before. It is left alone, and no pool is made over it.
    pub carries: Vec<String>,
}

/// Plans a partition on a disk that is locked, of which the kernel sees the partitions `seen`.
///
/// # Errors
/// The cause, and what to do; without the disk's name.
pub async fn plan(device: &impl Device, seen: &[Partition], wanted: &Wanted) -> Result<Plan, String> {
    let size = wanted.size.map(|size| size.0);
    if let Some(size) = size.filter(|size| *size == 0 || !size.is_multiple_of(ALIGN)) {
        return Err(format!(
            "a partition of {} is not possible: the size is a multiple of 1 MiB",
            ByteCount(size)
        ));
    }
    let geometry = device.geometry();
    let whole = 0..geometry.size().0;
    let (front, back) = ends(device, &whole).await.map_err(unreadable)?;
    let ends_of_disk = Ends { front: &front, back: &back, size: whole.end };
    let signatures = ends_of_disk.signatures();
    if let Some(other) = beside_a_table(&signatures) {
        return Err(format!("it carries {other}"));
    }
    let is_blank = signatures.is_empty();
    let gpt = if is_blank {
        fresh(u64::from(geometry.block_size), geometry.blocks, rt::random_uuid())?
    } else {
        let read = read(&ends_of_disk, geometry.block_size)?;
        read.ok_or("it has no GUID partition table any more: look again")?
    };
    if let Some(damage) = &gpt.damage {
        return Err(damage.clone());
    }
    agrees(&gpt.division().entries, seen)?;
    let room = gpt.room(size)?;
    let size_bytes = room.end - room.start;
    pool::check_size(size_bytes).map_err(|error| error.to_string())?;
    let number = gpt.table().first_free().ok_or("all entries of its table are used")?;
    let label = wanted.label.clone().unwrap_or_else(|| format!("orlop-{number}"));
    check_label(&label)?;
    let (front, back) = ends(device, &room).await.map_err(unreadable)?;
    let carries = Ends { front: &front, back: &back, size: size_bytes }.signatures();
    let entry =
        Entry { number, kind: ORLOP, id: rt::random_uuid(), start_bytes: room.start, size_bytes, label };
    Ok(Plan { gpt, new_table: is_blank, entry, carries })
}

/// The kernel and the table have to say the same: else what is free is not known.
pub(crate) fn agrees(entries: &[Entry], seen: &[Partition]) -> Result<(), String> {
    let by_table = entries.iter().map(|entry| (entry.number, entry.start_bytes, entry.size_bytes));
    let by_kernel = seen.iter().map(|part| (part.number, part.start_bytes, part.size_bytes));
    if by_table.eq(by_kernel) {
        return Ok(());
    }
    let numbers = |numbers: Vec<String>| if numbers.is_empty() { "none".into() } else { numbers.join(", ") };
    Err(format!(
        "its table and the kernel say different things of its partitions ({} and {}): `partx --update` it, or boot again",
        numbers(entries.iter().map(|entry| entry.number.to_string()).collect()),
        numbers(seen.iter().map(|part| part.number.to_string()).collect()),
    ))
}

/// Makes the partition that was planned, durably, and says what it is. The disk has been locked since.
///
/// The copy at the end goes first: until the one in front has the entry too, nobody takes it for a partition.
///
/// # Errors
/// The disk fails, or somebody who ignores the lock has changed the table.
pub async fn add(device: &impl Device, plan: Plan) -> Result<Entry, String> {
    let Plan { gpt, new_table, mut entry, .. } = plan;
    let failed = |status: Status| format!("the table cannot be written: {status}");
    let [Ok(front), Ok(back)] = &gpt.copies else { return Err("a copy of its table is damaged".into()) };
    if new_table {
        lay(device, front, back).await.map_err(failed)?;
    }
    let slot = Copy::slot(entry.number);
    let mut array = front.array.clone();
    array[slot.clone()].copy_from_slice(&entry.encode(gpt.block));
    keep(&mut array, slot.start + ID_END - 4, front.header.entries_crc);
    for copy in [back, front] {
        let start = slot.start as u64 / gpt.block * gpt.block;
        let lba = Lba(copy.header.entries_lba + start / gpt.block);
        let block = index(gpt.block);
        let mut bytes = device.read(lba, DmaBuf::zeroed(block)).await.map_err(failed)?;
        let known = &copy.array[index(start)..copy.array.len().min(index(start) + block)];
        if !bytes.starts_with(known) {
            return Err("somebody else is changing its table: look again".into());
        }
        let in_block = slot.start - index(start);
        bytes[in_block..in_block + ENTRY_LEN].copy_from_slice(&array[slot.clone()]);
        device.write(lba, bytes.freeze(), Durability::Durable).await.map_err(failed)?;
        device.flush().await.map_err(failed)?;
    }
    entry.id = Uuid::from_slice_le(&array[slot][ID_END - 16..ID_END]).expect("16 bytes");
    verify(device, &entry).await?;
    Ok(entry)
}

/// What was written is there, and the table is whole.
async fn verify(device: &impl Device, entry: &Entry) -> Result<(), String> {
    let geometry = device.geometry();
    let whole = 0..geometry.size().0;
    let (front, back) = ends(device, &whole).await.map_err(unreadable)?;
    let read = read(&Ends { front: &front, back: &back, size: whole.end }, geometry.block_size)?;
    let gpt = read.ok_or("the table that was written is not there")?;
    match gpt.damage {
        Some(damage) => Err(format!("the table that was written is not whole: {damage}")),
        None if gpt.division().entries.contains(entry)
            && gpt.copies[0].as_ref().map(|copy| &copy.array)
                == gpt.copies[1].as_ref().map(|copy| &copy.array) =>
        {
            Ok(())
        }
        None => Err("the entry that was written is not in the table".into()),
    }
}

/// An empty table for a disk of so many blocks.
pub(super) fn fresh(block: u64, blocks: BlockCount, disk: Uuid) -> Result<Gpt, String> {
    let array = vec![0; NEW_ENTRIES as usize * ENTRY_LEN];
    let array_blocks = array.len() as u64 / block;
    let last = blocks.0.saturating_sub(1);
    let (first_usable, last_usable) = (2 + array_blocks, last.saturating_sub(1 + array_blocks));
    if first_usable > last_usable {
        return Err("it is too small for a table".into());
    }
    let entries_crc = super::crc::crc32(&array);
    let copy = |lba, alternate, entries_lba| Copy {
        header: Header {
            lba,
            alternate,
            first_usable,
            last_usable,
            disk,
            entries_lba,
            entries: NEW_ENTRIES,
            entries_crc,
        },
        array: array.clone(),
    };
    let copies = [Ok(copy(1, last, 2)), Ok(copy(last, 1, last_usable + 1))];
    Ok(Gpt { block, copies, damage: None })
}

/// Writes an empty table to a blank disk: what makes it one for everybody, the MBR, goes last.
pub(super) async fn lay(device: &impl Device, front: &Copy, back: &Copy) -> Result<(), Status> {
    let block = device.geometry().block_size as usize;
    let mbr = protective_mbr(block, back.header.lba);
    for (lba, bytes) in [
        (back.header.entries_lba, &back.array),
        (back.header.lba, &back.header.encode(block)),
        (front.header.entries_lba, &front.array),
        (front.header.lba, &front.header.encode(block)),
        (0, &mbr),
    ] {
        device.write(Lba(lba), DmaBuf::copy_of(bytes).freeze(), Durability::Durable).await?;
        device.flush().await?;
    }
    Ok(())
}

/// One partition over all of the disk, whose type nobody touches.
fn protective_mbr(block: usize, last: u64) -> Vec<u8> {
    let mut mbr = vec![0; block];
    mbr[446..454].copy_from_slice(&[0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff]);
    mbr[454..458].copy_from_slice(&1_u32.to_le_bytes());
    mbr[458..462].copy_from_slice(&u32::try_from(last).unwrap_or(u32::MAX).to_le_bytes());
    mbr[510..512].copy_from_slice(&[0x55, 0xaa]);
    mbr
}

/// The first and the last bytes of a part of a device, as much as is looked at.
pub(super) async fn ends(
    device: &impl Device,
    part: &std::ops::Range<u64>,
) -> Result<(Vec<u8>, Vec<u8>), Status> {
    let block = u64::from(device.geometry().block_size);
    let len = LOOKED_AT_BYTES.min(part.end - part.start);
    let mut both = Vec::new();
    for start in [part.start, part.end - len] {
        let bytes = device.read(Lba(start / block), DmaBuf::zeroed(index(len))).await?;
        both.push(bytes.to_vec());
    }
    let back = both.pop().unwrap_or_default();
    Ok((both.pop().unwrap_or_default(), back))
}

fn unreadable(status: Status) -> String {
    format!("it cannot be read: {status}")
}

fn index(number: u64) -> usize {
    usize::try_from(number).expect("within what was read")
}
