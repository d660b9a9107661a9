//! A device over a file or a disk of this machine, with direct I/O through [`rt::File`].
//!
//! # Invariants
//! 1. The length of the file is a multiple of the block size, and every block lies within it: no I/O changes the length.
//! 2. Opened for writing it is locked, so that no second process writes it.

use crate::error::{Error, ErrorKind};
use crate::{BlockCount, ByteCount, Device, Geometry, Lba, Status};
use rt::{Access, DmaBuf, DmaBytes, Durability, OpenOptions};
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

/// A device over a file or a disk; clones share the descriptor.
#[derive(Clone, Debug)]
pub struct File {
    file: Rc<rt::File>,
    geometry: Geometry,
}

impl File {
    /// Opens the file at `path`; creates it with `size` if that is given and the file does not exist.
    ///
    /// # Errors
    /// `NotFound` without a size, `WrongSize` if it exists with another one or is not whole blocks, `InUse` if another
    /// process writes it.
    pub async fn open(
        path: &Path,
        size: Option<ByteCount>,
        block_size: u32,
        access: Access,
    ) -> Result<Self, Error> {
        if let Some(size) = size {
            whole_blocks(path, size.0, block_size)?;
        }
        let create = size.filter(|_| access == Access::Write);
        let file = open_direct(path, create, access).await.map_err(|e| explain(path, e))?;
        let actual = ByteCount(file.len_bytes());
        if let Some(size) = size.filter(|size| *size != actual) {
            let message = format!(
                "{} has {actual} ({} bytes) and not the {size} that its URI says: correct or drop `size`",
                path.display(),
                actual.0
            );
            return Err(Error::new(ErrorKind::WrongSize, message));
        }
        let blocks = whole_blocks(path, actual.0, block_size)?;
        Self::over(path, file, Geometry { block_size, blocks })
    }

    /// The device over `file`, of which it uses what `geometry` says.
    pub(crate) fn over(path: &Path, file: rt::File, geometry: Geometry) -> Result<Self, Error> {
        if geometry.block_size.is_multiple_of(file.block_size()) {
            return Ok(Self { file: Rc::new(file), geometry });
        }
        let message = format!(
            "{} can be addressed in blocks of {} bytes only, not of {}: use block_size=4096",
            path.display(),
            file.block_size(),
            geometry.block_size
        );
        Err(Error::new(ErrorKind::WrongSize, message))
    }

    fn len_bytes(&self, count: BlockCount) -> u64 {
        count.0 * u64::from(self.geometry.block_size)
    }

    async fn zero(
        &self,
        lba: Lba,
        count: BlockCount,
        durability: Durability,
        release: bool,
    ) -> Result<(), Status> {
        let len_bytes = self.len_bytes(self.geometry.check_blocks(lba, count)?);
        let offset_bytes = self.geometry.offset_bytes(lba);
        self.file.zero_range(offset_bytes, len_bytes, release).await.map_err(Status::of_write)?;
        match durability {
            Durability::Cached => Ok(()),
            Durability::Durable => self.flush().await,
        }
    }
}

fn whole_blocks(path: &Path, len_bytes: u64, block_size: u32) -> Result<BlockCount, Error> {
    if len_bytes == 0 || !len_bytes.is_multiple_of(u64::from(block_size)) {
        let message = format!(
            "{} with {len_bytes} bytes cannot be a device: the size must be a multiple of {block_size} above zero",
            path.display()
        );
        return Err(Error::new(ErrorKind::WrongSize, message));
    }
    Ok(BlockCount(len_bytes / u64::from(block_size)))
}

/// How long the lock of a process that was just killed may last: its I/O in flight ends first, which is what makes it
/// safe to go on with the file afterwards.
const LOCK_WAIT: Duration = Duration::from_secs(2);
const LOCK_POLL: Duration = Duration::from_millis(10);

/// Opens with direct I/O, or through the page cache where the file system has no direct I/O.
pub(crate) async fn open_direct(
    path: &Path,
    create: Option<ByteCount>,
    access: Access,
) -> io::Result<rt::File> {
    let start = rt::now();
    loop {
        match try_open_direct(path, create, access).await {
            Err(error)
                if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::ResourceBusy)
                    && start.elapsed() < LOCK_WAIT =>
            {
                rt::sleep(LOCK_POLL).await;
            }
            result => return result,
        }
    }
}

async fn try_open_direct(path: &Path, create: Option<ByteCount>, access: Access) -> io::Result<rt::File> {
    let options = OpenOptions { access, create_len_bytes: create.map(|size| size.0), direct: true };
    match rt::File::open(path, options).await {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            tracing::warn!(path = %path.display(), "no direct I/O here: going through the page cache");
            rt::File::open(path, OpenOptions { direct: false, ..options }).await
        }
        result => result,
    }
}

/// Says what opening `path` failed of, and what to do.
pub(crate) fn explain(path: &Path, error: io::Error) -> Error {
    let path = path.display();
    let (kind, message) = match error.kind() {
        io::ErrorKind::NotFound => (
            ErrorKind::NotFound,
            format!("{path} does not exist: check the path, or give a size to create a file"),
        ),
        io::ErrorKind::WouldBlock => {
            (ErrorKind::InUse, format!("{path} is in use by another process: stop that one first"))
        }
        io::ErrorKind::ResourceBusy => (
            ErrorKind::InUse,
            format!("{path} is in use by the system (mounted, swap, RAID, LVM): release it first"),
        ),
        io::ErrorKind::StorageFull => (
            ErrorKind::Io,
            format!("there is no space to create {path}: free some, or choose another folder"),
        ),
        io::ErrorKind::PermissionDenied => {
            (ErrorKind::Io, format!("permission to open {path} is denied: run as its owner or as root"))
        }
        io::ErrorKind::FileTooLarge => (
            ErrorKind::WrongSize,
            format!("{path} would be larger than its file system allows: choose a smaller size"),
        ),
        io::ErrorKind::IsADirectory => {
            (ErrorKind::NotFound, format!("{path} is a folder: name a file or a disk"))
        }
        _ => (ErrorKind::Io, format!("cannot open {path}: {error}")),
    };
    Error::with_source(kind, message, error)
}

impl Device for File {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    async fn read(&self, lba: Lba, buf: DmaBuf) -> Result<DmaBuf, Status> {
        self.geometry.check(lba, buf.len())?;
        self.file.read_at(self.geometry.offset_bytes(lba), buf).await.map_err(Status::of_read)
    }

    async fn write(&self, lba: Lba, data: DmaBytes, durability: Durability) -> Result<(), Status> {
        self.geometry.check(lba, data.len())?;
        self.file.write_at(self.geometry.offset_bytes(lba), data, durability).await.map_err(Status::of_write)
    }

    async fn write_zeroes(&self, lba: Lba, count: BlockCount, durability: Durability) -> Result<(), Status> {
        self.zero(lba, count, durability, false).await
    }

    async fn unmap(&self, lba: Lba, count: BlockCount) -> Result<(), Status> {
        self.zero(lba, count, Durability::Cached, true).await
    }

    async fn flush(&self) -> Result<(), Status> {
        self.file.sync().await.map_err(Status::of_write)
    }
}
