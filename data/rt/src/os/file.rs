//! Files and block devices.
#![expect(unsafe_code, reason = "one ioctl that rustix does not have")]

use super::Handle;
use super::call::Kind;
use crate::file::{Access, Durability, OpenOptions};
use crate::{DmaBuf, DmaBytes, Errno};
use rustix::fs::{AtFlags, FallocateFlags, FileType, FlockOperation, Mode, OFlags, StatxFlags};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// The finest unit of addressing where the file system names none.
const SECTOR: u32 = 512;
/// Zeroes are written in pieces of this size where the file system has no call for it.
const ZEROES: usize = 1 << 20;

#[derive(Debug)]
pub(crate) struct OsFile {
    os: Handle,
    fd: Rc<OwnedFd>,
    len_bytes: u64,
    block_size: u32,
    /// Holds the lock of a block device, whose other descriptor has the kernel's exclusive claim.
    _lock: Option<OwnedFd>,
}

struct Opened {
    fd: OwnedFd,
    lock: Option<OwnedFd>,
    len_bytes: u64,
    block_size: u32,
}

impl OsFile {
    pub(crate) async fn open(os: &Handle, path: &Path, options: OpenOptions) -> io::Result<Self> {
        // Opening may wait for a disk, or for a file system served by this very reactor.
        let path = PathBuf::from(path);
        let opened = crate::blocking(move || open(&path, options)).await?;
        Ok(Self {
            os: os.clone(),
            fd: Rc::new(opened.fd),
            len_bytes: opened.len_bytes,
            block_size: opened.block_size,
            _lock: opened.lock,
        })
    }

    pub(crate) fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    pub(crate) fn block_size(&self) -> u32 {
        self.block_size
    }

    pub(crate) async fn read_at(&self, offset_bytes: u64, buf: DmaBuf) -> Result<DmaBuf, Errno> {
        let (mut buf, mut done) = (buf, 0);
        while done < buf.len() {
            let (result, call) = self.os.start(&self.fd, Kind::Read { buf, done, offset_bytes }).await;
            let Kind::Read { buf: back, .. } = call.kind else { unreachable!("a call keeps its kind") };
            buf = back;
            match result {
                Ok(0) => return Err(Errno::IO),
                Ok(count) => done += count,
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(buf)
    }

    pub(crate) async fn write_at(
        &self,
        offset_bytes: u64,
        data: DmaBytes,
        durability: Durability,
    ) -> Result<(), Errno> {
        let durable = durability == Durability::Durable;
        let (mut data, mut done) = (data, 0);
        while done < data.len() {
            let kind = Kind::Write { data, done, offset_bytes, durable };
            let (result, call) = self.os.start(&self.fd, kind).await;
            let Kind::Write { data: back, .. } = call.kind else { unreachable!("a call keeps its kind") };
            data = back;
            match result {
                Ok(0) => return Err(Errno::IO),
                Ok(count) => done += count,
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    pub(crate) async fn sync(&self) -> Result<(), Errno> {
        // Not repeated after an error: the kernel forgets what it could not write.
        self.os.start(&self.fd, Kind::Sync).await.0.map(drop)
    }

    pub(crate) async fn zero_range(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        release: bool,
    ) -> Result<(), Errno> {
        if len_bytes == 0 {
            return Ok(());
        }
        // On block devices too: there a punched hole is only made where the device then reads zeroes, and zeroing
        // falls back to writing inside the kernel.
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let zero = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        let ways = [punch, zero];
        for flags in &ways[usize::from(!release)..] {
            let mode = flags.bits().cast_signed();
            let kind = Kind::Allocate { offset_bytes, len_bytes, mode };
            match self.os.start(&self.fd, kind).await.0 {
                Ok(_) => return Ok(()),
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::NODEV) => {}
                Err(error) => return Err(error),
            }
        }
        self.write_zeroes(offset_bytes, len_bytes).await
    }

    async fn write_zeroes(&self, offset_bytes: u64, len_bytes: u64) -> Result<(), Errno> {
        let piece = usize::try_from(len_bytes).map_or(ZEROES, |len| len.min(ZEROES));
        let zeroes = DmaBuf::zeroed(piece).freeze();
        let mut done = 0;
        while done < len_bytes {
            let count = usize::try_from(len_bytes - done).map_or(piece, |rest| rest.min(piece));
            self.write_at(offset_bytes + done, zeroes.slice(0..count), Durability::Cached).await?;
            done += count as u64;
        }
        Ok(())
    }
}

fn open(path: &Path, options: OpenOptions) -> io::Result<Opened> {
    let writes = options.access != Access::Read;
    let mut flags = OFlags::CLOEXEC | if writes { OFlags::RDWR } else { OFlags::RDONLY };
    if options.direct {
        flags |= OFlags::DIRECT;
    }
    let creates = writes && options.create_len_bytes.is_some();
    let create = if creates { OFlags::CREATE } else { OFlags::empty() };
    let fd = rustix::fs::open(path, flags | create, Mode::from_raw_mode(0o600))?;
    if writes {
        rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive)?;
    }
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::DIOALIGN;
    let stat = rustix::fs::statx(&fd, "", AtFlags::EMPTY_PATH, wanted)?;
    if FileType::from_raw_mode(stat.stx_mode.into()).is_block_device() {
        return open_disk(path, flags, fd, options.access);
    }
    let mut len_bytes = stat.stx_size;
    if let Some(len) = options.create_len_bytes
        && creates
        && len_bytes == 0
    {
        // Empty: just made, or its maker died before this point.
        rustix::fs::ftruncate(&fd, len)?;
        rustix::fs::fsync(&fd)?;
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        rustix::fs::fsync(rustix::fs::open(parent, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)?;
        len_bytes = len;
    }
    let reported = StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::DIOALIGN);
    let block_size = if reported { stat.stx_dio_offset_align.max(SECTOR) } else { SECTOR };
    Ok(Opened { fd, lock: None, len_bytes, block_size })
}

/// Opens a disk again with the kernel's exclusive claim, so that a mounted disk is refused, unless others may use it.
fn open_disk(path: &Path, flags: OFlags, lock: OwnedFd, access: Access) -> io::Result<Opened> {
    let (fd, lock) = if access == Access::Write {
        (rustix::fs::open(path, flags | OFlags::EXCL, Mode::empty())?, Some(lock))
    } else {
        (lock, None)
    };
    let mut len_bytes: u64 = 0;
    // SAFETY: BLKGETSIZE64 stores one u64 through the pointer and keeps nothing.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), BLKGETSIZE64, &raw mut len_bytes) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let block_size = rustix::fs::ioctl_blksszget(&fd)?;
    Ok(Opened { fd, lock, len_bytes, block_size })
}

/// `_IOR(0x12, 114, size_t)`.
const BLKGETSIZE64: libc::Ioctl = 0x8008_1272;
