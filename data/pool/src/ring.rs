//! Reading the journal's ring: the batches that follow the checkpoint, and where they end.
//!
//! # Spec
//! `docs/formats/pool.md`, "Recovery".

use crate::error::Error;
use crate::journal::BATCH_LEN_MAX;
use crate::layout::{BLOCK_BYTES, BLOCK_LEN, index};
use crate::load::{Loaded, malformed_record, read_region};
use crate::page::{BATCH_HEADER_LEN, BatchHeader};
use crate::record::Record;
use crate::superblock::Superblock;
use device::Device;

/// A record with its number.
pub(crate) type Numbered = (u64, Record);

/// Every record of the journal that follows the checkpoint, in order.
pub(crate) async fn read(device: &impl Device, loaded: &mut Loaded) -> Result<Vec<Numbered>, Error> {
    let layout = loaded.superblock.layout;
    let bytes = read_region(device, layout.journal_offset, layout.journal_bytes).await.map_err(|status| {
        let name = &loaded.superblock.name;
        Error::io(
            format!("the journal of pool {name} at offset {} cannot be read", layout.journal_offset),
            status,
        )
    })?;
    let ring = Ring { bytes, superblock: loaded.superblock.clone() };
    let mut records: Vec<Numbered> = Vec::new();
    let mut position = loaded.superblock.journal_position;
    let mut number = loaded.superblock.journal_batch;
    let mut expected = None;
    while let Some((header, batch)) = ring.batch(position, number) {
        let offset = layout.journal_offset + position % layout.journal_bytes;
        if expected.is_some_and(|expected| header.first_record != expected) {
            loaded.problem("journal", offset, "its records are not numbered in order");
        }
        if !parse(loaded, &header, &batch, offset, &mut records)? {
            break;
        }
        expected = Some(header.first_record + u64::from(header.records));
        position += (batch.len().next_multiple_of(BLOCK_LEN)) as u64;
        number += 1;
    }
    if let Some(later) = ring.durable_beyond(position) {
        let offset = layout.journal_offset + position % layout.journal_bytes;
        let what = format!("batch {number} is damaged, though batch {later} says that it had been durable");
        loaded.problem("journal", offset, what);
    }
    if let Some(expected) = expected {
        loaded.next_record = loaded.next_record.max(expected);
    }
    Ok(records)
}

/// Takes a batch apart; whether it could be read.
fn parse(
    loaded: &mut Loaded,
    header: &BatchHeader,
    batch: &[u8],
    offset: u64,
    records: &mut Vec<Numbered>,
) -> Result<bool, Error> {
    let mut rest = &batch[BATCH_HEADER_LEN..];
    for number in (header.first_record..).take(index(header.records.into())) {
        match Record::decode(rest) {
            Ok((record, len)) => {
                records.push((number, record));
                rest = &rest[len..];
            }
            Err(malformed) => {
                malformed_record(loaded, "journal", offset, malformed)?;
                return Ok(false);
            }
        }
    }
    Ok(true)
}

struct Ring {
    bytes: Vec<u8>,
    superblock: Superblock,
}

impl Ring {
    /// The batch `number` at `position`, if it is there, whole and of this session; without its padding.
    fn batch(&self, position: u64, number: u64) -> Option<(BatchHeader, Vec<u8>)> {
        let (header, batch) = self.any_batch(position)?;
        (header.batch == number).then_some((header, batch))
    }

    fn any_batch(&self, position: u64) -> Option<(BatchHeader, Vec<u8>)> {
        let start = index(position % self.superblock.layout.journal_bytes);
        let (header, len) = BatchHeader::peek(self.bytes.get(start..start + BLOCK_LEN)?)?;
        if header.session != self.superblock.session || header.position != position || len > BATCH_LEN_MAX {
            return None;
        }
        let total = len.next_multiple_of(BLOCK_LEN);
        let mut batch = self.bytes[start..self.bytes.len().min(start + total)].to_vec();
        batch.extend_from_slice(&self.bytes[..total - batch.len()]);
        if !BatchHeader::holds(&batch) {
            return None;
        }
        batch.truncate(len);
        Some((header, batch))
    }

    /// A later batch of this session which says that the ring was durable beyond `end`.
    fn durable_beyond(&self, end: u64) -> Option<u64> {
        let ring = self.superblock.layout.journal_bytes;
        let limit = self.superblock.journal_position.checked_add(ring)?;
        let mut position = end;
        while position < limit {
            if let Some((header, _)) = self.any_batch(position)
                && header.durable_position > end
            {
                return Some(header.batch);
            }
            position += BLOCK_BYTES;
        }
        None
    }
}
