//! Addresses and sizes with their units in their types.

use crate::Status;
use std::fmt;

/// A logical block address: the index of a block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lba(pub u64);

/// A count of blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockCount(pub u64);

/// A count of bytes; written with binary units (`4 KiB`, `1.5 GiB`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteCount(pub u64);

impl Lba {
    /// The address `count` blocks further on.
    #[must_use]
    pub const fn plus(self, count: u64) -> Self {
        Self(self.0 + count)
    }
}

const UNITS: [(&str, u64); 5] =
    [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

impl fmt::Display for ByteCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, size) = UNITS.iter().find(|(_, size)| self.0 >= *size).unwrap_or(&UNITS[4]);
        if self.0.is_multiple_of(*size) {
            write!(f, "{} {unit}", self.0 / size)
        } else {
            let tenths = u128::from(self.0) * 10 / u128::from(*size);
            write!(f, "{}.{} {unit}", tenths / 10, tenths % 10)
        }
    }
}

impl std::str::FromStr for ByteCount {
    type Err = String;

    /// Reads `4096`, `4KiB`, `4Ki`, `1 GiB`: a whole number and a binary unit.
    fn from_str(text: &str) -> Result<Self, String> {
        let trimmed = text.trim();
        let digits = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(digits);
        let unit = unit.trim();
        let factor = if unit.is_empty() {
            Some(1)
        } else {
            UNITS.iter().find(|(name, _)| *name == unit || name.strip_suffix('B') == Some(unit)).map(|u| u.1)
        };
        let value =
            number.parse::<u64>().ok().zip(factor).and_then(|(number, factor)| number.checked_mul(factor));
        value.map(Self).ok_or_else(|| {
            format!("{text:?} is not a size: write a whole number and a unit, such as 4096, 64KiB or 1GiB")
        })
    }
}

/// Block size and count of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes per logical block: 512 or 4096.
    pub block_size: u32,
    /// Number of blocks.
    pub blocks: BlockCount,
}

impl Geometry {
    /// The size in bytes.
    pub const fn size(self) -> ByteCount {
        ByteCount(self.blocks.0 * self.block_size as u64)
    }

    /// Checks that `len` bytes at `lba` are whole blocks within the device, and returns their count.
    pub fn check(self, lba: Lba, len: usize) -> Result<BlockCount, Status> {
        let len = len as u64;
        if len == 0 || !len.is_multiple_of(u64::from(self.block_size)) {
            return Err(Status::Invalid);
        }
        self.check_blocks(lba, BlockCount(len / u64::from(self.block_size)))
    }

    /// Checks that `count` blocks at `lba` lie within the device.
    pub fn check_blocks(self, lba: Lba, count: BlockCount) -> Result<BlockCount, Status> {
        if count.0 == 0 {
            return Err(Status::Invalid);
        }
        match lba.0.checked_add(count.0) {
            Some(end) if end <= self.blocks.0 => Ok(count),
            _ => Err(Status::OutOfRange),
        }
    }

    /// The offset of block `lba` in bytes.
    pub const fn offset_bytes(self, lba: Lba) -> u64 {
        lba.0 * self.block_size as u64
    }
}
