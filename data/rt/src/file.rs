//! Files and disks with direct I/O.

use crate::context::{Context, with};
use crate::{DmaBuf, DmaBytes, Errno};
use std::io;
use std::path::Path;

/// Whether a file may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reads only.
    Read,
    /// Reads and writes; takes an exclusive lock, so that no two processes write one disk.
    Write,
    /// The same beside those who use partitions of the disk: it takes the lock, and not the kernel's exclusive claim.
    Shared,
}

/// How [`File::open`] opens.
#[derive(Clone, Copy, Debug)]
pub struct OpenOptions {
    /// Reading, or also writing under an exclusive lock.
    pub access: Access,
    /// Create the file with this length in bytes if it does not exist.
    pub create_len_bytes: Option<u64>,
    /// Bypass the page cache (`O_DIRECT`); offsets, lengths and buffers must then be aligned to the disk's blocks.
    pub direct: bool,
}

/// When a write counts as complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// In the device's cache: survives the death of the process, not a power cut.
    Cached,
    /// On stable media (`RWF_DSYNC`, force unit access).
    Durable,
}

/// An open file or block device.
#[derive(Debug)]
pub struct File(Inner);

#[derive(Debug)]
enum Inner {
    Os(crate::os::OsFile),
    Sim(crate::sim::SimFile),
}

impl File {
    /// Opens `path` (a regular file or a block device).
    ///
    /// # Errors
    /// Those of `open(2)`; `WouldBlock` if another process holds the lock.
    pub async fn open(path: &Path, options: OpenOptions) -> io::Result<Self> {
        match with(Clone::clone) {
            Context::Os(os) => crate::os::OsFile::open(&os, path, options).await.map(|f| Self(Inner::Os(f))),
            Context::Sim(sim) => {
                crate::sim::SimFile::open(&sim, path, options).await.map(|f| Self(Inner::Sim(f)))
            }
        }
    }

    /// Length in bytes at the time of opening, or as last set.
    pub fn len_bytes(&self) -> u64 {
        match &self.0 {
            Inner::Os(file) => file.len_bytes(),
            Inner::Sim(file) => file.len_bytes(),
        }
    }

    /// The unit in which the file must be addressed and in which it is torn at the finest: the disk's logical block.
    pub fn block_size(&self) -> u32 {
        match &self.0 {
            Inner::Os(file) => file.block_size(),
            Inner::Sim(file) => file.block_size(),
        }
    }

    /// Fills `buf` from `offset_bytes` and hands it back.
    ///
    /// # Shape
    /// With direct I/O, offset, length and address are multiples of [`Self::block_size`].
    /// # Errors
    /// `IO` also when the file ends within the range.
    pub async fn read_at(&self, offset_bytes: u64, buf: DmaBuf) -> Result<DmaBuf, Errno> {
        match &self.0 {
            Inner::Os(file) => file.read_at(offset_bytes, buf).await,
            Inner::Sim(file) => file.read_at(offset_bytes, buf).await,
        }
    }

    /// Writes all of `data` at `offset_bytes`.
    pub async fn write_at(
        &self,
        offset_bytes: u64,
        data: DmaBytes,
        durability: Durability,
    ) -> Result<(), Errno> {
        match &self.0 {
            Inner::Os(file) => file.write_at(offset_bytes, data, durability).await,
            Inner::Sim(file) => file.write_at(offset_bytes, data, durability).await,
        }
    }

    /// Makes everything that was completely written before this call durable (`fdatasync`).
    pub async fn sync(&self) -> Result<(), Errno> {
        match &self.0 {
            Inner::Os(file) => file.sync().await,
            Inner::Sim(file) => file.sync().await,
        }
    }

    /// Makes the range read as zeroes; gives the space back where `release` asks for it and the disk can.
    pub async fn zero_range(&self, offset_bytes: u64, len_bytes: u64, release: bool) -> Result<(), Errno> {
        match &self.0 {
            Inner::Os(file) => file.zero_range(offset_bytes, len_bytes, release).await,
            Inner::Sim(file) => file.zero_range(offset_bytes, len_bytes, release).await,
        }
    }
}
