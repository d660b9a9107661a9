//! Free space of a table, and where in it a partition goes.

use super::read::Gpt;
use device::ByteCount;
use std::ops::Range;

/// Partitions begin and end at multiples of this, as all tools make them.
pub(super) const ALIGN: u64 = 1 << 20;

impl Gpt {
    /// The free pieces, in bytes, aligned; in their order.
    pub(super) fn free(&self) -> Vec<Range<u64>> {
        let table = self.table();
        let mut parts: Vec<Range<u64>> = table
            .entries(self.block)
            .iter()
            .map(|entry| entry.start_bytes..entry.start_bytes + entry.size_bytes)
            .collect();
        parts.sort_by_key(|part| part.start);
        let (first, end) = (table.header.first_usable, table.header.last_usable + 1);
        let ends = parts.iter().map(|part| part.end);
        let starts = parts.iter().map(|part| part.start);
        let gaps = [first * self.block].into_iter().chain(ends).zip(starts.chain([end * self.block]));
        let aligned = gaps.map(|(start, end)| start.next_multiple_of(ALIGN)..end / ALIGN * ALIGN);
        aligned.filter(|gap| gap.start < gap.end).collect()
    }

    /// Where a partition of this size goes: at the beginning of the smallest free piece that has room for it; without a
    /// size it is the largest piece.
    ///
    /// # Errors
    /// There is no room, and how much there is.
    pub(super) fn room(&self, size: Option<u64>) -> Result<Range<u64>, String> {
        let len = |piece: &Range<u64>| piece.end - piece.start;
        let free = self.free();
        // The first of several that are as large.
        let largest = free.iter().rev().max_by_key(|piece| len(piece));
        let largest = largest.ok_or("it has no free space")?.clone();
        let Some(size) = size else { return Ok(largest) };
        let fitting = free.iter().filter(|piece| len(piece) >= size).min_by_key(|piece| len(piece));
        fitting.map(|piece| piece.start..piece.start + size).ok_or_else(|| {
            format!(
                "it has no room for {}: its largest free piece has {}",
                ByteCount(size),
                ByteCount(len(&largest))
            )
        })
    }
}
