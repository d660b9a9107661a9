//! GUID partition tables: read with all their checks, and one partition added in free space.
//!
//! # Spec
//! UEFI 2.10, section 5.3: a protective MBR; a header and an array of entries behind it; the same at the end of the disk.
//!
//! # Invariants
//! 1. Whatever lies on a disk is read or refused; nothing is allocated that its numbers ask for.
//! 2. An entry that is there is never changed, moved or removed.
//! 3. While an entry is added both copies of the table are valid at every moment, as long as the disk writes a block as
//!    one (see [`add`]).

mod crc;
mod place;
mod read;
mod table;
mod write;

pub(crate) use read::read;
pub use table::{Entry, ORLOP};
pub(crate) use write::agrees;
pub use write::{Plan, Wanted, add, plan};

/// What a disk is divided into, as its table says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Division {
    /// The partitions, by number.
    pub entries: Vec<Entry>,
    /// Why nothing may be added to the table or taken from it, if that is so.
    pub damage: Option<String>,
}

#[cfg(test)]
mod tests;
